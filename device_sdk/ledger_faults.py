"""What SQLite refuses, in Meterkit's words: a ledger that is damaged, or one that cannot be written now."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from meterkit.errors import LedgerError

_FAULTS = (sqlite3.Error, UnicodeDecodeError)  # Python decodes SQLite's word on a damage, which may quote it
# The last is what SQLite says where a table is not there: the file was emptied behind an open connection.
_DAMAGES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turn what SQLite, or the system, refuses inside into a `LedgerError`: a damage, or what may work later."""
    try:
        yield
    except _FAULTS as fault:
        code = getattr(fault, "sqlite_errorcode", 0) & 0xFF
        no_text = isinstance(fault, UnicodeDecodeError) or str(fault).startswith("Could not decode")
        name = "ledger_damaged" if code in _DAMAGES or no_text else "ledger_unwritable"
        raise LedgerError(name, getattr(fault, "sqlite_errorname", "")) from None
    except OSError as fault:
        raise LedgerError("ledger_unwritable", fault.strerror or "") from None


class Rows:
    """What a statement gives. A row that cannot be read is a `LedgerError`, whichever it is, and ends it: a cursor
    left open would keep a lock, even of a connection that was closed.
    """

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor
        self.close = cursor.close

    @property
    def changed(self) -> int:
        """How many rows the statement has changed."""
        return self._cursor.rowcount

    def fetchone(self) -> Any:
        """The next row, or None."""
        with self._ending():
            return self._cursor.fetchone()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rest of the rows."""
        with self._ending():
            return self._cursor.fetchall()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        with self._ending():
            yield from self._cursor

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            with in_our_words():
                yield
        except LedgerError:
            self.close()
            raise
