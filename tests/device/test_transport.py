"""A server that misbehaves: whatever it answers, nothing changes here, and the code says what was wrong."""

import gzip
import json
import os
import socket

import pytest
import vendor as vendors
from device_site import MUL, records, session, unchanged, use
from http_answers import HTML, REPLY, hangs_up, made, plain
from ports import held_port

from device_sdk import DeviceError, MeterkitError
from device_sdk.transport import FileTransport, HttpTransport, Message
from meterkit import limits
from meterkit.errors import TransportError
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, BATCH_MEDIA_TYPE

PROBLEM = "application/problem+json"


def problem(status: int, **members):
    return plain(status, PROBLEM, json.dumps({"type": "about:blank", "status": status, **members}).encode())


def endless(handler, _body) -> None:
    """More than any reply holds, without a length beforehand."""
    handler.send_response(200)
    handler.send_header("content-type", REPLY)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65_536)
    except OSError:
        return


def hangs_up_midway(handler, _body) -> None:
    handler.send_response(200)
    handler.send_header("content-type", REPLY)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"v":1')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def no_http(handler, _body) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


BOMB = gzip.compress(b" " * (64 * 1024 * 1024))

ANSWERS = {
    "a captive portal": (plain(200, HTML, b"<title>Sign in</title>"), "answer_refused"),
    "a reply with no type": (plain(200, None, b"{}"), "answer_refused"),
    "JSON under another type": (plain(200, "text/plain", b"{}"), "answer_refused"),
    "created": (plain(201, REPLY, b"{}"), "answer_refused"),
    "no content": (plain(204, None, b""), "answer_refused"),
    "a redirect": (plain(302, HTML, b"", location="http://127.0.0.1:1/elsewhere"), "answer_refused"),
    "a redirect that keeps the method": (plain(307, HTML, b"", location="/v1/activations"), "answer_refused"),
    "a permanent redirect": (plain(308, REPLY, b"{}", location="https://other.example/"), "answer_refused"),
    "not found": (plain(404, HTML, b"<h1>404</h1>"), "answer_refused"),
    "an error page": (plain(500, HTML, b"<h1>oops</h1>"), "answer_refused"),
    "a bad gateway": (plain(502, HTML, b""), "answer_refused"),
    "an endless body": (endless, "answer_refused"),
    "a large body": (plain(200, REPLY, b" " * (limits.REPLY_BYTES_MAX + 1)), "answer_refused"),
    "a packed bomb": (plain(200, REPLY, BOMB, content_encoding="gzip"), "not_text"),
    "too many requests": (plain(429, HTML, b"", retry_after="120"), "server_busy"),
    "unavailable": (plain(503, HTML, b"", retry_after="Sun, 22 Nov 2026 14:00:00 GMT"), "server_busy"),
    "unavailable, as a problem": (problem(503, code="database_unavailable"), "server_busy"),
    "a refusal": (problem(403, code="license_inactive", detail="suspended"), "license_inactive"),
    "a refusal of what was sent": (problem(409, code="batch_gap"), "batch_gap"),
    "a refusal of an unknown code": (problem(403, code="no_such_code"), "answer_refused"),
    "a refusal without a code": (problem(400), "answer_refused"),
    "a refusal that is no JSON": (plain(403, PROBLEM, b"<no>"), "answer_refused"),
    "a refusal that is a list": (plain(403, PROBLEM, b"[]"), "answer_refused"),
    "a refusal with a number as code": (problem(403, code=5), "answer_refused"),
    "a refusal with odd details": (problem(403, code="forbidden", detail=["x"]), "forbidden"),
    "JSON that is no reply": (plain(200, REPLY, b"{}"), "malformed_members"),
    "no JSON": (plain(200, REPLY, b"oops"), "malformed_json"),
    "a hang-up": (hangs_up, "server_unreachable"),
    "a hang-up midway": (hangs_up_midway, "server_unreachable"),
    "another protocol": (no_http, "server_unreachable"),
}


@pytest.fixture
def device(site):
    made = site.activated(MUL)
    use(session(made), 3)
    made.make_batches()
    return made


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_is_answered_nothing_changes(site, device, server, answer):
    give, code = ANSWERS[answer]
    server.answers = [give]
    before = records(device)
    with unchanged(site.path, "ledger.sqlite"), pytest.raises(MeterkitError) as caught:
        device.sync(server.url)
    assert caught.value.code == code
    with unchanged(site.path, "ledger.sqlite"), pytest.raises(MeterkitError) as caught:
        device.activate(vendors.code(), server.url)
    assert caught.value.code == code
    assert len(server.requests) == 2
    assert records(device) == before


def test_how_long_to_wait_is_told(device, server):
    week_s = 7 * 86_400
    waits = {"120": 120, "0": 0, "soon": None, "-5": None, "9" * 30: week_s, None: None}
    for given, expected in waits.items():
        headers = {} if given is None else {"retry_after": given}
        server.answers = [plain(503, HTML, b"", **headers)]
        with pytest.raises(TransportError) as caught:
            device.sync(server.url)
        assert (caught.value.code, caught.value.retry_after_s) == ("server_busy", expected)


def test_nobody_there_is_unreachable(site, device):
    with held_port() as silent:
        here = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for url in (here, "http://no-such-host.invalid", "http://127.0.0.1:99999", "http://["):
            with unchanged(site.path, "ledger.sqlite"), pytest.raises(TransportError) as caught:
                device.sync(url)
            assert caught.value.code == "server_unreachable"


def test_a_server_that_says_nothing_is_given_up(device):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        way = HttpTransport(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(TransportError) as caught:
            device.sync(way)
    assert caught.value.code == "server_unreachable"


@pytest.mark.parametrize("url", ["", "server.example", "ftp://server.example", "file:///etc/passwd"])
def test_an_address_is_http(device, url):
    with pytest.raises((DeviceError, TransportError)):
        device.sync(url)


def test_without_a_server_sync_says_so(device):
    with pytest.raises(TransportError) as caught:
        device.sync()
    assert caught.value.code == "server_unreachable"


def test_activating_and_syncing_over_http(site, server):
    """What crosses is what a stick would carry; the server's address is remembered from activation on."""
    server.answers = [
        made(REPLY, lambda body: site.vendor.answer_activation(body.decode(), [MUL])),
        made(f"{REPLY}; charset=utf-8", lambda body: site.vendor.accept(body.decode().split(), [MUL])),
    ]
    device = site.open()
    code = vendors.code()
    device.activate(code, server.url + "/")
    use(session(device), 3)
    (outcome,) = device.sync()
    assert not outcome.refused
    assert site.vendor.units("mul") == 3
    (_, path, headers, body), (_, next_path, next_headers, _) = server.requests
    lower = {name.lower(): value for name, value in headers.items()}
    assert (path, lower["content-type"]) == ("/v1/activations", ACTIVATION_MEDIA_TYPE)
    next_lower = {name.lower(): value for name, value in next_headers.items()}
    assert (next_path, next_lower["content-type"]) == ("/v1/exchanges", BATCH_MEDIA_TYPE)
    assert code.partition(".")[2].encode() not in body
    assert device.status().unreceipted_records == 1


def test_a_failed_sync_is_made_up_for_by_the_next(site, device, server):
    server.answers = [
        hangs_up,
        made(REPLY, lambda body: site.vendor.accept(body.decode().split())),
    ]
    with pytest.raises(TransportError):
        device.sync(server.url)
    device.sync(server.url)
    assert site.vendor.units("mul") == 3
    assert device.status().unreceipted_records == 0


def test_a_lost_answer_is_harmless(site, device, server):
    """The server had accepted everything; the device sends it again, and it is counted once."""

    def accepts_and_hangs_up(handler, body) -> None:
        site.vendor.accept(body.decode().split())
        hangs_up(handler, body)

    server.answers = [
        accepts_and_hangs_up,
        made(REPLY, lambda body: site.vendor.accept(body.decode().split())),
    ]
    with pytest.raises(TransportError):
        device.sync(server.url)
    device.sync(server.url)
    assert site.vendor.units("mul") == 3


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    way = FileTransport(tmp_path / "out.mkbatch")
    assert way.deliver(Message("exchanges", BATCH_MEDIA_TYPE, b"one\n")) is None
    assert (tmp_path / "out.mkbatch").read_bytes() == b"one\n"
    with pytest.raises(DeviceError) as caught:
        FileTransport(tmp_path / "none" / "out").deliver(Message("exchanges", BATCH_MEDIA_TYPE, b"two\n"))
    assert caught.value.code == "directory_unusable"


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """A device or a pipe that is named by mistake stays what it is."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeviceError) as caught:
        FileTransport(tmp_path / "pipe").deliver(Message("exchanges", BATCH_MEDIA_TYPE, b"one\n"))
    assert caught.value.code == "directory_unusable"
    assert (tmp_path / "pipe").is_fifo()
