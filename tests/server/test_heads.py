"""Heads of requests as a hostile or broken peer sends them, over a real socket to a real process."""

import socket
import time
from urllib.parse import urlsplit

import psutil
import pytest
from exchanging import used_device
from raw_peer import PATIENCE_S, answer, received, send
from serving import Serving

from licensing_server.heads import HEAD_BYTES_MAX
from meterkit.exchange import BATCH_MEDIA_TYPE

MIB = 1024 * 1024
PIECE = 256 * 1024  # as much as a server reads at once


@pytest.fixture(scope="module")
def fleet(first_embedded_fleet_of_today, tmp_path_factory):
    made = first_embedded_fleet_of_today.copy(tmp_path_factory.mktemp("heads"), seed=2)
    made.clock.now = int(time.time())
    yield made
    made.remove()


@pytest.fixture(scope="module")
def serving(fleet, tmp_path_factory):
    made = Serving(fleet, tmp_path_factory.mktemp("logs"))
    made.start()
    yield made
    made.close()


@pytest.fixture
def peer(serving):
    address = urlsplit(serving.url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S) as connected:
        yield connected


@pytest.mark.parametrize(
    "begun",
    [b"GET /", b"GET /healthz?", b"GET /healthz HTTP/1.1\r\nx-", b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-long: "],
    ids=["path", "query", "name", "value"],
)
def test_a_head_that_does_not_end_is_given_up(serving, peer, begun):
    before = psutil.Process(serving.pid).memory_info().rss
    send(peer, begun, *[b"a" * PIECE] * 200)
    received(peer)
    assert psutil.Process(serving.pid).memory_info().rss < before + 20 * MIB


def test_many_short_lines_are_given_up_too(serving, peer):
    before = psutil.Process(serving.pid).memory_info().rss
    send(peer, b"GET /healthz HTTP/1.1\r\n", *[b"x: a\r\n" * 10_000] * 200)
    received(peer)
    assert psutil.Process(serving.pid).memory_info().rss < before + 20 * MIB


CHUNKED = b"POST /v1/exchanges HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-type: "


@pytest.mark.parametrize("part", [b"x: a\r\n" * 40_000, b"x-long" * 40_000], ids=["lines", "one line"])
def test_what_follows_a_body_in_chunks_has_an_end_too(serving, peer, part):
    before = psutil.Process(serving.pid).memory_info().rss
    send(peer, CHUNKED, BATCH_MEDIA_TYPE.encode(), b"\r\n\r\n1\r\na\r\n0\r\n", *[part] * 200)
    assert received(peer).startswith(b"HTTP/1.1 400 ")
    assert psutil.Process(serving.pid).memory_info().rss < before + 20 * MIB


def test_a_field_behind_a_body_is_none_of_the_requests(fleet, peer):
    text = used_device(fleet, fleet.grant()).batch().encode()
    chunk = f"{len(text):x}\r\n".encode() + text + b"\r\n0\r\ncontent-encoding: gzip\r\n\r\n"
    peer.sendall(CHUNKED + BATCH_MEDIA_TYPE.encode() + b"\r\n\r\n" + chunk)
    assert answer(peer)[0] == 200


def test_a_head_just_within_the_bound_is_answered_and_one_beyond_it_is_not(peer):
    for pad, expected in ((HEAD_BYTES_MAX - 8_192, 200), (HEAD_BYTES_MAX + 2 * PIECE, 400)):
        peer.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-pad: ")
        send(peer, b"a" * pad, b"\r\n\r\n")
        assert answer(peer)[0] == expected


def test_bodies_are_no_heads(fleet, peer):
    """Many requests, one after the other on one connection; each body is larger than a head may be."""
    for _ in range(4):
        device = used_device(fleet, fleet.grant())
        for _ in range(200):
            device.use(1)
        text = device.batch().encode()
        assert len(text) > HEAD_BYTES_MAX
        head = f"POST /v1/exchanges HTTP/1.1\r\nhost: a\r\ncontent-type: {BATCH_MEDIA_TYPE}\r\n"
        peer.sendall(f"{head}content-length: {len(text)}\r\n\r\n".encode() + text)
        assert answer(peer)[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "content-length: 4\r\ncontent-length: 5",
        "transfer-encoding: chunked, identity",
        "content-length: +4",
    ],
)
def test_a_body_that_ends_in_two_places_is_refused(peer, lines):
    peer.sendall(f"POST /v1/exchanges HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n0\r\n\r\n".encode())
    assert received(peer).startswith(b"HTTP/1.1 400 ")
