"""The ledger on disk: one hash chain in one SQLite file. The only home of `sqlite3`.

A commit is durable when it returns (`synchronous=FULL`, rollback journal `TRUNCATE`). An I/O error on commit
is neither success nor failure: the connection is dropped, and the next transaction reads the head anew.
"""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meterkit import ledger, limits
from meterkit.errors import LedgerError
from meterkit.ledger import Chain, Entry, TokenRef
from meterkit.licenses import Meter
from meterkit.positions import ZERO, Position

Connection = sqlite3.Connection
APPLICATION_ID = 0x4D4B4C31  # "MKL1"
SCHEMA_VERSION = 1
_OBJECTS = {
    "table records",
    "table cells",
    "table leases",
    "table state",
    "index idx_records_model_unit_seq_units_unsettled",
    "index idx_records_kind_seq",
}
SEQ_END = 2**62  # beyond every record
_PRAGMAS = {
    "busy_timeout": limits.BUSY_TIMEOUT_MS,
    "synchronous": 2,
    "trusted_schema": 0,
    "foreign_keys": 1,
    "cell_size_check": 1,
    "mmap_size": 0,
}


class Transaction:
    """One write transaction on a ledger: what is appended in it stands together or not at all.

    `only_looking` says that what is merely noted in it (`note_state`) is not worth a commit of its own.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._changes = connection.total_changes
        self._noted: dict[str, Any] = {}
        self.only_looking = False

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement on the tables beside the records (cells, leases, state)."""
        try:
            return self._connection.execute(sql, values)
        except sqlite3.Error as fault:
            raise _ledger_error(fault) from None

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a query; `ledger_damaged` where not all can be read."""
        try:
            return self._connection.execute(sql).fetchall()
        except sqlite3.Error as fault:
            raise _ledger_error(fault) from None

    def has_schema(self) -> bool:
        """Whether the tables are this SDK's, and nothing else is there: a lenient store does not ask before."""
        return _is_current(self._connection)

    def get_state(self, name: str) -> Any:
        """Read a named value, or None."""
        if name in self._noted:
            return self._noted[name]
        row = self.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        try:
            return json.loads(row[0]) if row else None
        except (TypeError, ValueError):
            raise LedgerError("ledger_damaged", f"state {name} does not parse") from None

    def set_state(self, name: str, value: Any) -> None:
        """Store a named value."""
        self._noted.pop(name, None)
        self.execute("INSERT OR REPLACE INTO state (name, value) VALUES (?, ?)", (name, json.dumps(value)))

    def note_state(self, name: str, value: Any) -> None:
        """Store a named value at the end; not at all if this transaction was only looking, and changed nothing."""
        self._noted[name] = value

    def settle(self) -> None:
        """Store what was noted. Where nothing is stored, committing writes nothing to the disk."""
        if self._connection.total_changes != self._changes or not self.only_looking:
            for name, value in list(self._noted.items()):
                self.set_state(name, value)

    def epoch(self) -> str:
        """The epoch of this ledger; empty before its genesis."""
        return self.get_state("epoch") or ""

    def position(self) -> Position:
        """Where the chain ends."""
        row = self.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
        seq, head = row or (0, ZERO)
        return Position(epoch=self.epoch(), seq=seq, head=_hash(head, seq))

    def hash_at(self, seq: int) -> str | None:
        """The hash of one record, all zeros for seq 0, or None if there is no such record."""
        if seq == 0:
            return ZERO
        row = self.execute("SELECT hash FROM records WHERE seq = ?", (seq,)).fetchone()
        return _hash(row[0], seq) if row else None

    def append(self, members: dict[str, Any], *, time: int, boot: str) -> Entry:
        """Append one record to the chain."""
        entry = ledger.append(self.position(), members, time=time, boot=boot)
        claims = entry.claims
        self.execute(
            "INSERT INTO records (seq, kind, hash, body, model, unit, units, unsettled) VALUES (?,?,?,?,?,?,?,?)",
            (
                entry.seq,
                claims["kind"],
                entry.hash,
                entry.body,
                claims.get("model"),
                claims.get("unit"),
                claims.get("units", 0),
                claims.get("unsettled", 0),
            ),
        )
        return entry

    def bodies(self, seq_from: int, records_max: int = -1) -> Iterator[bytes]:
        """The bytes of the records from a seq on, as they were hashed; `ledger_damaged` where they end early."""
        rows = self.execute(
            "SELECT body FROM records WHERE seq >= ? ORDER BY seq LIMIT ?", (seq_from, records_max)
        )
        found: list[bytes] = []
        ended: LedgerError | None = None
        try:  # read at once: a cursor left open would keep a lock, even of a connection that was closed
            for (body,) in rows:
                found.append(body)
        except sqlite3.Error as fault:
            ended = _ledger_error(fault)
        finally:
            rows.close()
        for body in found:
            if not isinstance(body, bytes):
                raise LedgerError("ledger_damaged", "a record is not bytes")
            yield body
        if ended is not None:
            raise ended

    def noted_hashes(self, seq_from: int) -> dict[int, str]:
        """The hashes beside the records from a seq on, as far as they can be read: notes, which may be wrong."""
        rows = self.execute("SELECT seq, hash FROM records WHERE seq >= ? ORDER BY seq", (seq_from,))
        found: dict[int, str] = {}
        try:
            for seq, noted in rows:
                found[seq] = noted  # noqa: PERF403 - what was read before the damage still counts
        except sqlite3.Error:
            return found
        finally:
            rows.close()
        return found

    def used_after(self, seq: int, meter: Meter) -> int:
        """Units recorded for a meter after a position, unsettled ones included."""
        row = self.execute(
            "SELECT COALESCE(SUM(units + unsettled), 0) FROM records WHERE model = ? AND unit = ? AND seq > ?",
            (*meter, seq),
        ).fetchone()
        return int(row[0])

    def token_before(self, seq: int) -> TokenRef | None:
        """The token that the chain names last before a seq."""
        row = self.execute(
            "SELECT body FROM records WHERE kind = 'token' AND seq < ? ORDER BY seq DESC LIMIT 1", (seq,)
        ).fetchone()
        if row is None:
            return None
        try:
            claims = json.loads(row[0])
            return TokenRef(
                jti=claims["jti"], serial=claims["serial"], iat=claims["iat"], license_id=claims["license"]
            )
        except (ValueError, TypeError, KeyError):
            raise LedgerError("ledger_damaged", "a token record does not parse") from None

    def chain_before(self, seq: int, device: str) -> Chain:
        """The chain up to, and without, a record: what verifying from there on needs. Totals start at zero."""
        head = self.hash_at(seq - 1)
        if head is None:
            raise LedgerError("ledger_damaged", f"record {seq - 1} is missing")
        at = Position(epoch=self.epoch(), seq=seq - 1, head=head)
        return Chain(device=device, position=at, token=self.token_before(seq))


class LedgerStore:
    """One ledger file, used by one process's threads in turn and by other processes beside it.

    A `lenient` one takes tables, indexes and triggers as they are: to read what is left of a ledger.
    """

    def __init__(self, path: Path, *, lenient: bool = False) -> None:
        self.path = path
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
            connection = self._begin()
            transaction = Transaction(connection)
            yield transaction
            transaction.settle()
            connection.execute("COMMIT")
        except BaseException as fault:
            # Whatever it was, a signal's exception included: closing rolls back, and frees the lock.
            self.drop()
            if isinstance(fault, sqlite3.Error):
                raise _ledger_error(fault) from None
            if isinstance(fault, OSError):
                raise LedgerError("ledger_unwritable", fault.strerror or "") from None
            raise

    def _begin(self) -> sqlite3.Connection:
        """Take the write lock of the file that is in place now. While one waits for it, another process may set
        the ledger aside: what were written to the old file then would be lost, or counted again in the new one.
        """
        while True:
            connection = self._connection or self._connect()
            if self._file_id() == self._inode:
                connection.execute("BEGIN IMMEDIATE")
                if self._file_id() == self._inode:
                    return connection
            self.drop()

    def _file_id(self) -> int:
        try:
            return self.path.stat().st_ino
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


def _set_pragmas(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = TRUNCATE").fetchone()[0]
    if mode != "truncate":
        raise LedgerError("ledger_unwritable", f"journal mode is {mode}")
    for name, wanted in _PRAGMAS.items():
        connection.execute(f"PRAGMA {name} = {wanted}")
        row = connection.execute(f"PRAGMA {name}").fetchone()
        if row is not None and row[0] != wanted:
            raise LedgerError("ledger_unwritable", f"{name} is {row[0]}")


def _check_schema(connection: sqlite3.Connection) -> None:
    """Return if the tables are this SDK's and nothing else is there; a new or older ledger is migrated."""
    if _is_current(connection):
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
    if version < SCHEMA_VERSION and (version or not _objects(connection)):
        from device_sdk import ledger_schema  # noqa: PLC0415 - not on the way to an answer

        ledger_schema.migrate(connection)
    if not _is_current(connection):  # else another process migrated it just now
        raise LedgerError("ledger_damaged", "its tables, indexes or triggers are not those it was made with")


def _is_current(connection: sqlite3.Connection) -> bool:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    return version == SCHEMA_VERSION and _objects(connection) == _OBJECTS


def _objects(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT type || ' ' || name FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return {row[0] for row in rows}


_HASH = re.compile(r"[0-9a-f]{64}\Z")


def _hash(value: Any, seq: int) -> str:
    if not isinstance(value, str) or not _HASH.match(value):
        raise LedgerError("ledger_damaged", f"the hash of record {seq}")
    return value


def _ledger_error(fault: sqlite3.Error) -> LedgerError:
    code = getattr(fault, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT):
        return LedgerError("ledger_damaged", getattr(fault, "sqlite_errorname", ""))
    return LedgerError("ledger_unwritable", getattr(fault, "sqlite_errorname", ""))
