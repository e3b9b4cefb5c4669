"""Bodies as a hostile or broken peer sends them, over a real socket to a real process."""

import asyncio
import gzip
import json
import socket
import time
import tracemalloc
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from exchanging import refused, used_device
from raw_peer import PATIENCE_S, answer, send
from serving import Serving
from starlette.requests import Request

from licensing_server import bodies
from meterkit import limits
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, BATCH_MEDIA_TYPE, read_reply

EXCHANGES = "/v1/exchanges", BATCH_MEDIA_TYPE, limits.EXCHANGE_WIRE_BYTES_MAX
ACTIVATIONS = "/v1/activations", ACTIVATION_MEDIA_TYPE, limits.ACTIVATION_BYTES_MAX + 1


@pytest.fixture(scope="module")
def fleet(first_embedded_fleet_of_today, tmp_path_factory):
    made = first_embedded_fleet_of_today.copy(tmp_path_factory.mktemp("wire"), seed=2)
    made.clock.now = int(time.time())
    yield made
    made.remove()


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def url(fleet, logs):
    """One process for all of them: whatever was sent to it before, it answers."""
    serving = Serving(fleet, logs)
    serving.start()
    yield serving.url
    serving.close()


@pytest.fixture
def log(url, logs):
    """What the server has logged so far, whoever asked."""
    return (logs / f"serve-{urlsplit(url).port}.log").read_text


@contextmanager
def connected(url, path, kind, *headers):
    """A connection on which a request has begun, its body still to come."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S) as peer:
        head = [f"POST {path} HTTP/1.1", f"host: {address.netloc}", f"content-type: {kind}", *headers, "", ""]
        peer.sendall("\r\n".join(head).encode())
        yield peer


def refusal(peer):
    status, body = answer(peer)
    return status, json.loads(body)["code"]


def chunk(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@pytest.mark.parametrize(("path", "kind", "most"), [EXCHANGES, ACTIVATIONS])
def test_a_length_that_is_too_large_is_refused_before_any_of_it_is_sent(url, path, kind, most):
    with connected(url, path, kind, f"content-length: {most + 1}") as peer:
        assert refusal(peer) == (413, "too_large")
    with connected(url, path, kind, f"content-length: {'9' * 19}") as peer:
        assert refusal(peer) == (413, "too_large")


@pytest.mark.parametrize(("path", "kind", "most"), [EXCHANGES, ACTIVATIONS])
def test_without_a_length_it_is_refused_once_it_is_too_long_though_it_never_ends(url, path, kind, most):
    with connected(url, path, kind, "transfer-encoding: chunked") as peer:
        send(peer, *[chunk(b"A" * 4_096)] * (most // 4_096 + 1))
        assert refusal(peer) == (413, "too_large")


def test_a_body_in_many_small_pieces_is_put_together(fleet, url):
    device = used_device(fleet, fleet.grant())
    text = device.batch().encode()
    with connected(url, *EXCHANGES[:2], "transfer-encoding: chunked") as peer:
        for at in range(0, len(text), 97):
            peer.sendall(chunk(text[at : at + 97]))
        peer.sendall(b"0\r\n\r\n")
        status, body = answer(peer)
    assert status == 200
    assert device.open_receipt(read_reply(body).receipts[0]).position == device.position


def test_a_body_longer_than_it_was_said_to_be_is_read_as_far_as_was_said(fleet, url):
    device = used_device(fleet, fleet.grant())
    text = device.batch().encode()
    with connected(url, *EXCHANGES[:2], f"content-length: {len(text) - 10}") as peer:
        send(peer, text)
        assert answer(peer)[0] in (400, 401, 422)  # what follows is no request, and may be found first
    assert fleet.units(device.token.license_id) == 0


def test_a_body_that_breaks_off_changes_nothing_and_is_no_fault_of_the_servers(fleet, url, log):
    device = used_device(fleet, fleet.grant())
    text = device.batch().encode()
    for path, kind, _ in (EXCHANGES, ACTIVATIONS):
        with connected(url, path, kind, f"content-length: {len(text)}") as peer:
            peer.sendall(text[:500])
    for path, kind, _ in (EXCHANGES, ACTIVATIONS):
        with connected(url, path, kind, f"content-length: {len(text)}") as peer:
            peer.sendall(text[:500])
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""  # the server has closed it too
    with connected(url, *EXCHANGES[:2], f"content-length: {len(text)}") as peer:
        peer.sendall(text)
        assert answer(peer)[0] == 200
    assert "Traceback" not in log()
    assert "ERROR" not in log()


def test_a_body_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "HTTP_EXCHANGE_MAX_S", 0.01)

    async def never():
        await asyncio.Event().wait()

    headers = [(b"content-type", BATCH_MEDIA_TYPE.encode())]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive=never)
    assert refused(asyncio.run, bodies.wire(BATCH_MEDIA_TYPE, 1)(request)) == "body_incomplete"


def test_many_slow_bodies_hold_nobody_up(fleet, url):
    device = used_device(fleet, fleet.grant())
    text = device.batch().encode()
    head = (*EXCHANGES[:2], f"content-length: {len(text)}")
    slow = [connected(url, *head) for _ in range(100)]
    peers = [each.__enter__() for each in slow]
    try:
        for peer in peers:
            peer.sendall(text[:1])
        with connected(url, *head) as quick:
            quick.sendall(text)
            assert answer(quick)[0] == 200
        peers[0].sendall(text[1:])
        assert answer(peers[0])[0] == 200
    finally:
        for each in slow:
            each.__exit__(None, None, None)
    assert fleet.units(device.token.license_id) == 21


@pytest.mark.parametrize(("path", "kind", "most"), [EXCHANGES, ACTIVATIONS])
def test_a_bomb_is_refused_and_so_is_what_is_no_gzip(url, path, kind, most):
    bomb = gzip.compress(b"A" * 500 * most)
    assert len(bomb) < most
    whole = gzip.compress(b"x.y.z")
    cases = {
        bomb: (413, "too_large"),
        whole: (422, "malformed_envelope"),
        whole[:-1]: (422, "malformed_file"),
        whole + whole: (422, "malformed_file"),
        whole[:-5] + b"\x00" + whole[-4:]: (422, "malformed_file"),
        b"not gzip": (422, "malformed_file"),
    }
    for data, expected in cases.items():
        headers = ("content-encoding: gzip", f"content-length: {len(data)}")
        with connected(url, path, kind, *headers) as peer:
            peer.sendall(data)
            assert refusal(peer) == expected
    with connected(url, path, kind, "content-encoding: deflate", "content-length: 1") as peer:
        peer.sendall(b"x")
        assert refusal(peer) == (415, "media_type_unsupported")


def test_a_bomb_costs_no_more_memory_than_a_body_may_have():
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    try:
        assert refused(bodies.gunzip, bomb, 1_024) == "too_large"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1024 * 1024


def test_what_is_refused_is_not_said_back(fleet, url, log):
    code = fleet.code(fleet.grant())
    secret = code.split(".")[1]
    for path, kind, _ in (EXCHANGES, ACTIVATIONS):
        for text in (secret, f"{secret}.{secret}.{secret}", f'{{"code":"{secret}"}}'):
            with connected(url, path, kind, f"content-length: {len(text)}") as peer:
                peer.sendall(text.encode())
                status, body = answer(peer)
            assert status == 422
            assert secret.encode() not in body
    assert secret not in log()
