"""Where webhooks may go: addresses of the public Internet, judged once, and connected to as judged."""

import ipaddress
import socket
import threading
from dataclasses import replace

import pytest
from exchanging import refused
from webhook_receiver import Receiver

from licensing_server import settings
from licensing_server.settings import DIRECTORY, WEBHOOK_HOSTS
from licensing_server.webhook_endpoints import addresses, exchange, service
from licensing_server.webhook_endpoints.exchange import Outcome

INTERNAL = """
    127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1
    192.0.0.1 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    192.88.99.1 ::1 :: ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1 fe80::1 fe80::1%lo 2a00::1%lo fc00::1 fd12::1
    fec0::1 ff02::1 ff0e::1 2002:7f00:1:: 2002:808:808:: 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1
    2001::1 2001:db8::1 2001:10::1 3fff::1 100::1 5f00::1 4000::1
""".split()  # noqa: SIM905 - a table
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"]


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses_are_told_from_public_ones(address):
    assert not addresses.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address):
    assert addresses.is_public(ipaddress.ip_address(address))


@pytest.fixture
def connections(monkeypatch):
    """Every address that anyone tries to connect to; nobody gets there."""
    tried = []

    def connect(_self, address):
        tried.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "localhost",
        "localhost.",
    ],
)
def test_no_way_of_writing_it_leads_inside(connections, host):
    outcome = exchange.post(f"https://{host}:8600/", {}, b"{}", allowed=frozenset(), seconds=5)
    assert outcome in (Outcome(failure="url_forbidden"), Outcome(failure="unreachable"))
    assert connections == []


def resolving(monkeypatch, *answers):
    """Let names have these addresses, one list for each time somebody asks; gives what was asked."""
    asked = []

    def look_up(host, port, **_):
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "::1", "64:ff9b::a9fe:a9fe", "fe80::1%2"]
)
def test_a_name_that_leads_inside_is_refused_also_among_public_addresses(connections, monkeypatch, address):
    for found in ([address], ["1.1.1.1", address], [address, "1.1.1.1"]):
        resolving(monkeypatch, found)
        outcome = exchange.post("https://evil.example/", {}, b"{}", allowed={"localhost"}, seconds=5)
        assert outcome == Outcome(failure="url_forbidden")
    assert connections == []


def test_a_name_that_changes_between_looking_and_connecting_gains_nothing(connections, monkeypatch):
    asked = resolving(monkeypatch, ["1.1.1.1"], ["127.0.0.1"])
    outcome = exchange.post("https://rebinding.example/", {}, b"{}", allowed=frozenset(), seconds=5)
    assert (outcome, asked) == (Outcome(failure="unreachable"), ["rebinding.example"])
    assert connections == ["1.1.1.1"]


def test_what_was_judged_is_what_is_connected_to(tmp_path, monkeypatch):
    other = Receiver(tmp_path, "hooks.example", address="127.0.0.2")
    same = Receiver(tmp_path, "hooks.example", address="127.0.0.3", port=other.port)
    monkeypatch.setenv("SSL_CERT_FILE", str(other.certificate))
    asked = resolving(monkeypatch, ["127.0.0.2"], ["127.0.0.3"])
    url = f"https://hooks.example:{other.port}/"
    assert exchange.post(url, {}, b"{}", allowed={"hooks.example"}, seconds=5).is_delivered
    other.stop()
    same.stop()
    assert (len(other.requests), same.connections, asked) == (1, 0, ["hooks.example"])


def test_a_name_whose_first_address_takes_no_connection_is_reached_at_the_next(receiver, monkeypatch):
    resolving(monkeypatch, ["127.0.0.9", "127.0.0.1"])
    assert exchange.post(receiver.url(), {}, b"{}", allowed={"localhost"}, seconds=5).is_delivered


def test_a_resolver_that_does_not_answer_is_left_behind(monkeypatch):
    late = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: [] if late.wait(30) else None)
    outcome = exchange.post("https://slow.example/", {}, b"{}", allowed=frozenset(), seconds=0.1)
    left = [each for each in threading.enumerate() if each.name.endswith("(ask)")]
    assert outcome == Outcome(failure="unreachable")
    assert len(left) == 1
    late.set()
    left[0].join()


NO_URLS = (
    *("http://hooks.example/", "ftp://hooks.example/", "file:///etc/passwd", "gopher://x.example/", "https://"),
    *("https:///x", "https://user@hooks.example/", "https://u:p@hooks.example/", "https://hooks.example/#x"),
    *("https://hooks.example:0/", "https://hooks.example:99999/", "https://hooks.example:x/", "https://[::1/"),
    *("https://hooks.example/ x", "https://hooks.example/\r\nX: y", "https://hooks.example/\n", "https://ho oks/"),
    *("https://.x/", "https://a..b/", "https://-a/", "https://" + "a" * 64 + ".example/"),
    *("https://hööks.example/", "https://hooks.example\\@localhost/", "https://a%2eb/", "HTTPS://hooks.example/"),
    "https://" + "a" * 2_048,
)


@pytest.mark.parametrize("url", NO_URLS)
def test_a_url_that_is_none_is_refused(fleet, url):
    assert refused(service.create, fleet.server, url=url, events=["invoice.finalized"]) == "malformed_members"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:10.0.0.1]"])
def test_a_url_that_names_an_internal_address_is_refused_at_once(fleet, host):
    url = f"https://{host}/"
    assert refused(service.create, fleet.server, url=url, events=["invoice.finalized"]) == "url_forbidden"
    allowed = replace(fleet.server, webhook_hosts=frozenset({host.strip("[]")}))
    assert service.create(allowed, url=url, events=["invoice.finalized"])["url"] == url


def test_the_setting_names_hosts():
    read_ = settings.read({DIRECTORY: "/x", WEBHOOK_HOSTS: " Hooks.Example , erp.local.,, "})
    assert read_.webhook_hosts == {"hooks.example", "erp.local"}
    assert settings.read({DIRECTORY: "/x"}).webhook_hosts == frozenset()
    for host, allowed in (
        ("hooks.example", True),
        ("hooks.example.", True),
        ("x.hooks.example", False),
        ("example", False),
    ):
        assert addresses.is_allowed(host, read_.webhook_hosts) is allowed
