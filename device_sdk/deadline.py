"""One deadline for a whole exchange: the HTTP client knows only how long each of its operations may take."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Self


class Deadline:
    """Ends an exchange that takes too long by shutting its connection down, whatever it waits for.

    As a context manager it spans the exchange. It needs a thread, as a thread that waits inside the client sees
    nothing else; where none can be had, as at the very end of a process, each operation's own limit is left.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends_at_s = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut_down)
        self._timer.name = "meterkit-deadline"
        self._timer.daemon = True

    @property
    def passed(self) -> bool:
        """Whether it has come."""
        return time.monotonic() >= self._ends_at_s

    @property
    def sentence(self) -> str:
        """What it means that it has passed."""
        return f"no whole answer within {self.seconds} s"

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of a connection: this is the client's `trace`, called at each step that it takes.

        Our own handle on it stays good when TLS takes the client's away, and names no other file meanwhile.
        """
        if not event.endswith("connect_tcp.complete"):
            return
        theirs = info["return_value"].get_extra_info("socket")
        with self._lock, contextlib.suppress(OSError):  # no handle left to be had: as without a thread
            self._connections.append(socket.socket(fileno=os.dup(theirs.fileno())))
        if self.passed:
            self._shut_down()

    def _shut_down(self) -> None:
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        with contextlib.suppress(RuntimeError):
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            while self._connections:
                self._connections.pop().close()
