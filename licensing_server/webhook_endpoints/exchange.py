"""One POST over TLS, to an address that was judged: within one deadline, with a bounded answer, and no redirects.

Only the status of the answer is read. Whatever follows the connection's setting up, no name is resolved again.
"""

import re
import socket
import ssl
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from licensing_server.webhook_endpoints import addresses
from licensing_server.webhook_endpoints.addresses import Place
from meterkit.errors import ServiceError

TIMEOUT_S = 15.0  # for all of it: resolving, connecting, TLS, asking, and the answer's status
_ADDRESSES_MAX = 4
ANSWER_BYTES_MAX = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it: the answer's status, or in one word why there is none."""

    status: int | None = None
    failure: str | None = None

    @property
    def is_delivered(self) -> bool:
        """Whether the other side has taken it. A redirect is none."""
        return self.status is not None and 200 <= self.status < 300


def post(
    url: str, headers: Mapping[str, str], body: bytes, *, allowed: Collection[str], seconds: float = TIMEOUT_S
) -> Outcome:
    """Send a body; gives what came of it, and raises nothing for what the other side does."""
    deadline = time.monotonic() + seconds
    place = addresses.read_url(url)
    try:
        with _connect(place, allowed, deadline) as connection:
            connection.settimeout(_left(deadline))
            connection.sendall(_request(place, headers, body))
            return _read_status(connection, deadline)
    except ServiceError as refused:
        return Outcome(failure=refused.code)
    except ssl.SSLCertVerificationError:
        return Outcome(failure="certificate_wrong")
    except TimeoutError:
        return Outcome(failure="timed_out")
    except ssl.SSLError:
        return Outcome(failure="tls_failed")
    except OSError:
        return Outcome(failure="unreachable")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(place: Place, allowed: Collection[str], deadline: float) -> ssl.SSLSocket:
    """Connect to exactly an address that was judged; the certificate must be the name's."""
    context = ssl.create_default_context()
    plain = _connect_to_any(addresses.resolve(place, allowed, _left(deadline)), deadline)
    try:
        plain.settimeout(_left(deadline))
        return context.wrap_socket(plain, server_hostname=place.host.rstrip("."))
    except BaseException:
        plain.close()
        raise


def _connect_to_any(found: list[tuple[Any, Any]], deadline: float) -> socket.socket:
    """Connect to the first address that takes a connection."""
    last = OSError()
    for family, address in found[:_ADDRESSES_MAX]:
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(_left(deadline))
            plain.connect(address)
        except OSError as fault:
            plain.close()
            last = fault
        else:
            return plain
    raise last


def _request(place: Place, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [
        f"POST {place.target} HTTP/1.1",
        f"Host: {place.authority}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode("ascii") + _END + body


def _read_status(connection: ssl.SSLSocket, deadline: float) -> Outcome:
    """Read as much of the answer as says its status, past those that only say that another one comes."""
    data = b""
    total = 0
    while True:
        found = _STATUS.match(data)
        if found and not 100 <= int(found[1]) < 200:
            return Outcome(status=int(found[1]))
        if found and _END in data:
            data = data.partition(_END)[2]
            continue
        connection.settimeout(_left(deadline))
        part = connection.recv(4_096)
        data, total = data + part, total + len(part)
        if not part or total > ANSWER_BYTES_MAX:
            return Outcome(failure="answer_bad")
