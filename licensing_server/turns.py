"""Taking turns at writing to SQLite, by a lock on the database's directory.

SQLite's own waiting looks for its lock again at ever longer intervals: it leaves the lock free for as long as it
was held, and lets a process that writes again and again keep the others out.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from meterkit.errors import ServiceError

BUSY_TIMEOUT_MS = 10_000


@contextmanager
def taken_turn(engine: sa.Engine) -> Iterator[None]:
    """Be the only writer among all threads of all processes; on PostgreSQL a lock of its own sees to it.

    Raises:
        ServiceError: `database_unavailable` where others write all the time that one waits for a database.
    """
    if engine.dialect.name != "sqlite":
        yield
        return
    handle = _open(Path(engine.url.database or "").parent)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _open(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as fault:
        raise ServiceError("database_unavailable", type(fault).__name__) from None


def _lock(handle: int) -> None:
    for _ in range(BUSY_TIMEOUT_MS):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
    raise ServiceError("database_unavailable", "others are writing")
