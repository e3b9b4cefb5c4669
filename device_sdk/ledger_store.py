"""The ledger on disk: one hash chain in one SQLite file. `sqlite3` is at home here, in
`ledger_transaction` and in `ledger_faults`.

A commit is durable when it returns (`synchronous=FULL`, rollback journal `TRUNCATE`). An I/O error on commit
is neither success nor failure: the connection is dropped, and the next transaction reads the head anew.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from device_sdk.ledger_faults import in_our_words
from device_sdk.ledger_transaction import SCHEMA_VERSION, Transaction, is_current, objects
from meterkit import limits
from meterkit.errors import LedgerError

Connection = sqlite3.Connection
APPLICATION_ID = 0x4D4B4C31  # "MKL1"
_PRAGMAS = {
    "busy_timeout": limits.BUSY_TIMEOUT_MS,
    "synchronous": 2,
    "trusted_schema": 0,
    "foreign_keys": 1,
    "cell_size_check": 1,
    "mmap_size": 0,
}


class LedgerStore:
    """One ledger file, used by one process's threads in turn and by other processes beside it.

    Whoever would write locks the directory `queue`, where one is given, until the write lock is theirs: SQLite
    alone lets a process that writes again and again keep the others out. A `lenient` one takes tables, indexes and
    triggers as they are: to read what is left of a ledger. It keeps others from writing meanwhile, and commits
    nothing: on a damaged page even that would fail.
    """

    def __init__(self, path: str, *, queue: str | None = None, lenient: bool = False) -> None:
        self.path = path
        self._queue = queue
        self._lenient = lenient
        self._connection: sqlite3.Connection | None = None
        self._inode = -1  # which file the connection is on: another one after a ledger was set aside
        self.connections = 0  # how many were made so far: what was known through an older one is to be asked again

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open a write transaction, commit it at the end, roll it back on any exception.

        Raises:
            LedgerError: `ledger_unwritable` (then whether it committed is unknown until it is read again),
                `ledger_damaged`, `ledger_newer`.
        """
        try:
            with in_our_words():
                connection = self._begin()
                self._check_writable()
                transaction = Transaction(connection)
                yield transaction
                transaction.settle()
                connection.execute("ROLLBACK" if self._lenient else "COMMIT")
        except BaseException:
            # Whatever it was, a signal's exception included: closing rolls back, and frees the lock.
            self.drop()
            raise

    @contextmanager
    def copy(self) -> Iterator[Transaction]:
        """Open a transaction on a copy in memory of what is committed: to look where nothing can be written.

        Whatever is done in it ends with it. Raises what `write` does, where the file cannot even be read.
        """
        with in_our_words(), closing(sqlite3.connect(":memory:", isolation_level=None)) as copied:
            self._copy_into(copied)
            yield Transaction(copied)

    def _copy_into(self, copied: sqlite3.Connection) -> None:
        from pathlib import Path  # noqa: PLC0415 - not on the way to an answer

        there = sqlite3.connect(
            f"{Path(self.path).absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            timeout=limits.BUSY_TIMEOUT_MS / 1000,
        )
        with closing(there):
            there.execute("BEGIN")
            there.execute("SELECT name FROM sqlite_schema").fetchone()  # locked from here on: copying never waits
            there.backup(copied)
        _set_guards(copied)
        if not self._lenient and not is_current(copied):
            raise LedgerError("ledger_damaged", "its tables, indexes or triggers are not those it was made with")

    def _begin(self) -> sqlite3.Connection:
        """Take the write lock of the file that is in place now. While one waits for it, another process may set
        the ledger aside: what were written to the old file then would be lost, or counted again in the new one.
        """
        while True:
            connection = self._connection or self._connect()
            if self._file_id() == self._inode:
                with _turn(self._queue):
                    connection.execute("BEGIN IMMEDIATE")
                if self._file_id() == self._inode:
                    return connection
            self.drop()

    def _check_writable(self) -> None:
        """Return if the file can be written: SQLite begins all the same, and refuses only a change."""
        if not os.access(self.path, os.W_OK):
            raise LedgerError("ledger_unwritable", "it is read-only")

    def _file_id(self) -> int:
        try:
            return os.stat(self.path).st_ino
        except FileNotFoundError:
            return -1

    def _connect(self) -> sqlite3.Connection:
        before = self._file_id()
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            timeout=limits.BUSY_TIMEOUT_MS / 1000,
            check_same_thread=False,
            cached_statements=64,
        )
        try:
            _set_pragmas(connection)
            if not self._lenient:
                _check_schema(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._inode = self._file_id() if before == -1 else before
        self.connections += 1
        return connection

    def drop(self) -> None:
        """Close the connection, whatever state it is in; the next transaction opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def leak(self) -> None:
        """Forget a connection inherited over fork() without closing it: closing would drop the parent's locks."""
        _LEAKED.append(self._connection)
        self._connection = None


_LEAKED: list[sqlite3.Connection | None] = []


@contextmanager
def _turn(queue: str | None) -> Iterator[None]:
    """Wait to be the one who waits for the write lock. It is a matter of fairness alone: who cannot have a turn in
    the time that SQLite would wait goes on without one.
    """
    try:
        handle = -1 if queue is None else os.open(queue, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        handle = -1
    try:
        for _ in range(limits.BUSY_TIMEOUT_MS if handle >= 0 else 0):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.001)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _set_pragmas(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = TRUNCATE").fetchone()[0]
    if mode != "truncate":
        raise LedgerError("ledger_unwritable", f"journal mode is {mode}")
    _set_guards(connection)


def _set_guards(connection: sqlite3.Connection) -> None:
    for name, wanted in _PRAGMAS.items():
        connection.execute(f"PRAGMA {name} = {wanted}")
        row = connection.execute(f"PRAGMA {name}").fetchone()
        if row is not None and row[0] != wanted:
            raise LedgerError("ledger_unwritable", f"{name} is {row[0]}")


def _check_schema(connection: sqlite3.Connection) -> None:
    """Return if the tables are this SDK's and nothing else is there; a new or older ledger is migrated."""
    if is_current(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _migrate(connection)
    except BaseException:
        connection.rollback()
        raise
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise LedgerError("ledger_newer")
    if version < SCHEMA_VERSION and (version or not objects(connection)):
        from device_sdk import ledger_schema  # noqa: PLC0415 - not on the way to an answer

        ledger_schema.migrate(connection)
    if not is_current(connection):  # else another process migrated it just now
        raise LedgerError("ledger_damaged", "its tables, indexes or triggers are not those it was made with")
