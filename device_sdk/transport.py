"""How what a device says reaches its server: over HTTP, or as a file on a stick. One method.

The same bytes cross either way. The only home of the HTTP client, which is imported at the first request.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from device_sdk.deadline import Deadline
from device_sdk.files import sync_directory
from meterkit import limits
from meterkit.canonical import from_bytes
from meterkit.errors import CODES, DeviceError, InputError, TransportError, refusal
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, BATCH_MEDIA_TYPE, PROBLEM_MEDIA_TYPE, REPLY_MEDIA_TYPE

_RETRY_LATER = (429, 503)
_RETRY_AFTER_MAX_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Message:
    """What goes out: an activation request, or batches, one a line."""

    name: str
    media_type: str
    body: bytes


def activation_message(request: str) -> Message:
    """Wrap an activation request."""
    return Message("activations", ACTIVATION_MEDIA_TYPE, request.encode("ascii"))


def batches_message(batches: list[str]) -> Message:
    """Wrap batches."""
    return Message("exchanges", BATCH_MEDIA_TYPE, "\n".join(batches).encode("ascii") + b"\n")


class Transport(Protocol):
    """Takes a message to the server, and brings the reply back if there is one already."""

    def deliver(self, message: Message) -> bytes | None:
        """Hand over a message; gives the reply's bytes, or None if it will come another way."""


class HttpTransport:
    """Posts to a server. Redirects are not followed, and no answer larger than a reply is read.

    `timeout_s` is how long the server may be silent, `exchange_s_max` how long all of one exchange may take,
    from its connection on; looking up the server's name takes as long as the system's resolver does.

    Raises:
        TransportError: `server_unreachable`, `server_busy` (with how long to wait), `answer_refused`.
        MeterkitError: the server's own refusal, with its code.
    """

    def __init__(
        self,
        server: str,
        *,
        timeout_s: float = limits.HTTP_TIMEOUT_S,
        exchange_s_max: float = limits.HTTP_EXCHANGE_MAX_S,
    ) -> None:
        if not server.startswith(("https://", "http://")):
            raise DeviceError("directory_unusable", "the server's address must start with https:// or http://")
        self.server = server.rstrip("/")
        self._timeout_s = timeout_s
        self._exchange_s_max = exchange_s_max

    def deliver(self, message: Message) -> bytes | None:
        """Post the message to the server's `/v1` and give its reply."""
        import httpx2  # noqa: PLC0415 - not on the way to an answer

        # Unpacked, a small answer may be a huge one: none is asked for, and none is unpacked.
        headers = {"content-type": message.media_type, "accept": REPLY_MEDIA_TYPE, "accept-encoding": "identity"}
        url = f"{self.server}/v1/{message.name}"
        deadline = Deadline(self._exchange_s_max)
        try:
            with (
                deadline,
                httpx2.Client(timeout=self._timeout_s, follow_redirects=False) as client,
                client.stream(
                    "POST", url, content=message.body, headers=headers, extensions={"trace": deadline.watch}
                ) as response,
            ):
                body = _read_capped(response.iter_raw(), deadline)
                kind = response.headers.get("content-type", "").split(";")[0].strip()
                return _judge(response.status_code, kind, body, response.headers.get("retry-after"))
        except (httpx2.HTTPError, httpx2.InvalidURL) as fault:
            detail = deadline.sentence if deadline.passed else type(fault).__name__
            raise TransportError("server_unreachable", detail) from None


def load() -> None:
    """Import the HTTP client now, and whatever it imports when it is used first."""
    import httpx2  # noqa: PLC0415 - see above

    "localhost".encode("idna")
    with httpx2.Client():
        pass


def _read_capped(chunks: Iterable[bytes], deadline: Deadline) -> bytes:
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > limits.REPLY_BYTES_MAX:
            raise TransportError("answer_refused", "too large")
    if deadline.passed:  # then its end may be ours: an answer without a length ends with its connection
        raise TransportError("server_unreachable", deadline.sentence)
    return bytes(body)


def _judge(status: int, kind: str, body: bytes, retry_after: str | None) -> bytes:
    if status in _RETRY_LATER:
        raise TransportError("server_busy", f"HTTP {status}", retry_after_s=_seconds(retry_after))
    if kind == PROBLEM_MEDIA_TYPE:
        raise_problem(body)
    if status != 200 or kind != REPLY_MEDIA_TYPE:
        raise TransportError("answer_refused", f"HTTP {status}")
    return body


def _seconds(retry_after: str | None) -> int | None:
    if retry_after is None or not retry_after.isascii() or not retry_after.isdigit():
        return None
    return min(int(retry_after[:9]), _RETRY_AFTER_MAX_S)


def raise_problem(body: bytes) -> None:
    """Raise the refusal that a problem document names, if it is one; else return."""
    try:
        problem = from_bytes(body, bytes_max=limits.REPLY_BYTES_MAX)
    except InputError:
        return
    code = problem.get("code") if isinstance(problem, dict) else None
    if isinstance(code, str) and code in CODES:
        detail = problem.get("detail")
        raise refusal(code, detail[:200] if isinstance(detail, str) else "")


class FileTransport:
    """Writes what goes out into a folder, for somebody to carry; the reply comes back as a `.mkreply` file.

    It opens no socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def deliver(self, message: Message) -> bytes | None:
        """Write the message to the file, whole or not at all, durably. There is no reply yet."""
        temporary = self.path.with_name(f".{self.path.name}.part")
        if self.path.exists() and not self.path.is_file():  # renaming would put a file in a device's place
            raise DeviceError("directory_unusable", f"{self.path.name}: it is no file")
        try:
            with temporary.open("wb") as file:
                file.write(message.body)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_directory(self.path.parent)
        except OSError as fault:
            raise DeviceError("directory_unusable", f"{self.path.name}: {fault.strerror}") from None
        return None


def read_reply_file(path: Path) -> bytes:
    """Read a `.mkreply` file; a refusal in it is raised as what it is."""
    body = read_bounded(path, bytes_max=limits.REPLY_BYTES_MAX)
    raise_problem(body)
    return body


def read_bounded(path: Path, *, bytes_max: int) -> bytes:
    """Read a file that somebody handed over, at most so many bytes of it."""
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as fault:
        raise InputError("malformed_file", f"{path.name}: {fault.strerror}") from None
    if len(data) > bytes_max:
        raise InputError("too_large", f"{path.name}: at most {bytes_max} bytes")
    return data
