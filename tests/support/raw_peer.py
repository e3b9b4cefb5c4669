"""A peer on a bare socket: it sends what no HTTP client would, and reads what comes."""

import socket

PATIENCE_S = 60  # how long a test waits for an answer before it fails; nothing is measured


def answer(peer: socket.socket) -> tuple[int, bytes]:
    """The status and the body that come back, whatever becomes of the connection then."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = peer.recv(65_536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    while len(body) < length:
        body += peer.recv(65_536)
    return int(lines[0].split()[1]), body[:length]


def received(peer: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    try:
        while part := peer.recv(65_536):
            data += part
    except ConnectionResetError:
        pass
    return data


def send(peer: socket.socket, *parts: bytes) -> None:
    """Send as far as the other side lets us: it may answer, and close, before it has it all."""
    try:
        for part in parts:
            peer.sendall(part)
    except (BrokenPipeError, ConnectionResetError):
        pass
