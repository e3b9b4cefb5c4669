"""Ports for servers that are real processes."""

import socket


def held_port() -> socket.socket:
    """A port of this machine that nobody else is given while this socket is open.

    A server may be started on it all the same, and again: neither minds the other, as this one never listens.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held
