"""One exchange ends in time, whatever its server does to draw it out: against real sockets that drip.

Each server gives up by itself after `DRIPS` drips, far beyond the deadline: a device that waited for its end would
see another failure, or none.
"""

import contextlib
import socket
import threading

import pytest
from device_site import MUL, session, use

from device_sdk.transport import HttpTransport, Message
from meterkit.errors import MeterkitError, TransportError
from meterkit.exchange import BATCH_MEDIA_TYPE

DRIPS = 500
BETWEEN_S = 0.04
DEADLINE_S = 0.5
PATIENT_S = 30  # the silence that each operation of the client bears


class Dripping:
    """A server of one connection: it says `first` at once, then `each` again and again."""

    def __init__(self, first: bytes, each: bytes, last: bytes = b"", *, drips: int = DRIPS, listens: bool = True):
        self._said = (first, each, last)
        self._drips = drips
        self._listens = listens
        self.stopped = threading.Event()
        self.gave_up = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        first, each, last = self._said
        with connection, contextlib.suppress(OSError):
            if self._listens:
                connection.recv(65_536)
            connection.sendall(first)
            for _ in range(self._drips):
                if self.stopped.wait(BETWEEN_S):
                    return
                connection.sendall(each)
                if not self._listens:
                    connection.recv(1)
            self.gave_up.set()
            connection.sendall(last)

    def stop(self) -> None:
        self.stopped.set()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            pass
        self._thread.join()
        self._listener.close()


@pytest.fixture
def dripping(monkeypatch):
    """Makes such servers, and stops them at the end."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = []

    def make(*said: bytes, **how) -> Dripping:
        made.append(Dripping(*said, **how))
        return made[-1]

    yield make
    for each in made:
        each.stop()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
PLACES = {
    "in its status line": ("http", b"HTTP/1.1 200 O", b"K"),
    "in its headers": ("http", HEAD + b"x: ", b"x"),
    "in interim answers": ("http", b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "in a body of known length": ("http", HEAD + b"content-length: 100000\r\n\r\n", b" "),
    "in a body that ends with the connection": ("http", HEAD + b"connection: close\r\n\r\n", b" "),
    "in chunks": ("http", HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "in the handshake of TLS": ("https", b"\x16\x03\x03\x40\x00", b"\x02"),
}


@pytest.fixture
def device(site):
    made = site.activated(MUL)
    use(session(made), 3)
    return made


@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_drips_is_given_up(device, dripping, place):
    scheme, first, each = PLACES[place]
    server = dripping(first, each)
    way = HttpTransport(f"{scheme}://127.0.0.1:{server.port}", timeout_s=PATIENT_S, exchange_s_max=DEADLINE_S)
    with pytest.raises(TransportError) as caught:
        device.sync(way)
    assert caught.value.code == "server_unreachable"
    assert caught.value.detail == f"no whole answer within {DEADLINE_S} s"
    assert not server.gave_up.is_set()


def test_a_server_that_takes_a_request_in_drops_is_given_up(dripping):
    """The request is larger than what the system takes in advance."""
    server = dripping(b"", b"", listens=False)
    way = HttpTransport(f"http://127.0.0.1:{server.port}", timeout_s=PATIENT_S, exchange_s_max=DEADLINE_S)
    with pytest.raises(TransportError) as caught:
        way.deliver(Message("exchanges", BATCH_MEDIA_TYPE, bytes(64 * 1024 * 1024)))
    assert caught.value.code == "server_unreachable"
    assert not server.gave_up.is_set()


def test_a_slow_answer_that_is_whole_in_time_is_taken(site, device, dripping):
    reply = site.vendor.accept(device.make_batches())
    start = HEAD + f"content-length: {len(reply) + 10}\r\n\r\n".encode()
    server = dripping(start, b" ", reply, drips=10)
    way = HttpTransport(f"http://127.0.0.1:{server.port}")
    (outcome,) = device.sync(way)
    assert not outcome.refused
    assert device.status().unreceipted_records == 0


def test_a_deadline_leaves_nothing_behind(device, dripping):
    server = dripping(HEAD + b"content-length: 2\r\n\r\n", b"", b"{}", drips=1)
    before = set(threading.enumerate())
    with pytest.raises(MeterkitError):
        device.sync(HttpTransport(f"http://127.0.0.1:{server.port}"))
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENT_S)
        assert not thread.is_alive()
