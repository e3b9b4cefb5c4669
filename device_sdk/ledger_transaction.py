"""One write transaction on a ledger: the records of its chain, and what stands beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from sqlite3 import Connection
from typing import Any

from device_sdk.ledger_faults import Rows, in_our_words
from meterkit import ledger, shapes
from meterkit.canonical import from_base64url
from meterkit.errors import InputError, LedgerError
from meterkit.ledger import Chain, Entry, TokenRef
from meterkit.licenses import Meter
from meterkit.positions import ZERO, Position

SCHEMA_VERSION = 2
_OBJECTS = {
    "table records",
    "table cells",
    "table leases",
    "table state",
    "table receipts",
    "index idx_records_model_unit_seq_units_unsettled",
    "index idx_records_kind_seq",
}
SEQ_END = 2**62  # beyond every record


class Transaction:
    """One write transaction on a ledger: what is appended in it stands together or not at all.

    `only_looking` says that what is merely noted in it (`note_state`) is not worth a commit of its own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changes = connection.total_changes
        self._noted: dict[str, Any] = {}
        self._cut: int | None = None
        self.only_looking = False

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> Rows:
        """Run one statement on the tables beside the records (cells, leases, state)."""
        with in_our_words():
            return Rows(self._connection.execute(sql, values))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a query; `ledger_damaged` where not all can be read."""
        return self.execute(sql).fetchall()

    def has_schema(self) -> bool:
        """Whether the tables are this SDK's, and nothing else is there: a lenient store does not ask before."""
        return is_current(self._connection)

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

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Undo at the end what is done inside, and nothing else."""
        self.execute("SAVEPOINT trial")
        try:
            yield
        finally:
            with suppress(LedgerError):  # it is undone already where the whole transaction is
                self.execute("ROLLBACK TO trial")

    def settle(self) -> None:
        """Store what was noted. Where nothing is stored, committing writes nothing to the disk."""
        if self._connection.total_changes != self._changes or not self.only_looking:
            for name, value in list(self._noted.items()):
                self.set_state(name, value)

    def epoch(self) -> str:
        """The epoch of this ledger; empty before its genesis."""
        return self.get_state("epoch") or ""

    def chain_epoch(self) -> str:
        """The same; where that cannot be read any more, what the genesis names, or the receipt at the cut."""
        try:
            return self.epoch()
        except LedgerError as fault:
            if fault.code != "ledger_damaged":
                raise
        try:
            if not self.cut():
                return str(json.loads(next(self.bodies(1, 1)))["epoch"])
            (text,) = self.rows("SELECT text FROM receipts ORDER BY seq LIMIT 1")[0]
            return str(json.loads(from_base64url(text.split(".")[1]))["position"]["epoch"])
        except (StopIteration, ValueError, TypeError, KeyError, IndexError, AttributeError, InputError):
            raise LedgerError("ledger_damaged", "neither a genesis nor a receipt names the epoch") from None

    def position(self) -> Position:
        """Where the chain ends."""
        row = self.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
        seq, head = row or (0, ZERO)
        return Position(epoch=self.epoch(), seq=seq, head=_hash(head, seq))

    def cut(self) -> int:
        """The seq at which the chain starts here, 0 where nothing was pruned: where its first record is gone, the
        one that the oldest receipt kept covers.
        """
        if self._cut is None:
            whole = self.execute("SELECT 1 FROM records WHERE seq = 1").fetchone()
            row = None if whole else self.execute("SELECT MIN(seq) FROM receipts").fetchone()
            self._cut = (row[0] or 0) if row else 0
        return self._cut

    def move_cut(self, seq: int) -> None:
        """Let the chain start at a record that a receipt kept here covers: its first record is deleted."""
        self.execute("DELETE FROM receipts WHERE seq < ?", (seq,))
        self.execute("DELETE FROM records WHERE seq = 1")
        self._cut = seq

    def hash_at(self, seq: int) -> str | None:
        """The hash of one record, all zeros for seq 0; None if there is no such record, or it may be pruned."""
        if seq < self.cut():
            return None
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
        found, ended = self._readable("body", seq_from, records_max)
        for (body,) in found:
            if not isinstance(body, bytes):
                raise LedgerError("ledger_damaged", "a record is not bytes")
            yield body
        if ended is not None:
            raise ended

    def noted_hashes(self, seq_from: int) -> dict[int, str]:
        """The hashes beside the records from a seq on, as far as they can be read: notes, which may be wrong."""
        found, _ = self._readable("seq, hash", seq_from, -1)
        return dict(found)

    def _readable(
        self, columns: str, seq_from: int, records_max: int
    ) -> tuple[list[tuple[Any, ...]], LedgerError | None]:
        """Rows of records as far as they can be read, and what ended them. They are read at once: a cursor left
        open would keep a lock, even of a connection that was closed.
        """
        sql = f"SELECT {columns} FROM records WHERE seq >= ? ORDER BY seq LIMIT ?"  # noqa: S608 - names from above
        rows = self.execute(sql, (seq_from, records_max))
        found: list[tuple[Any, ...]] = []
        try:
            for row in rows:
                found.append(row)  # noqa: PERF402 - what was read before the damage still counts
        except LedgerError as fault:
            with suppress(LedgerError):  # a row is given only once the next has been looked for
                found = self.execute(sql, (seq_from, len(found) + 1)).fetchall()
            return found, fault
        finally:
            rows.close()
        return found, None

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
        at = Position(epoch=self.chain_epoch(), seq=seq - 1, head=head)
        return Chain(device=device, position=at, token=self.token_before(seq) if seq > 1 else None)


def is_current(connection: Connection) -> bool:
    """Whether a file holds the tables and indexes of this SDK's ledger, and nothing else."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    return version == SCHEMA_VERSION and objects(connection) == _OBJECTS


def objects(connection: Connection) -> set[str]:
    """What a file holds: tables, indexes, views and triggers, by kind and name."""
    rows = connection.execute("SELECT type || ' ' || name FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return {row[0] for row in rows}


def _hash(value: Any, seq: int) -> str:
    try:
        return str(shapes.HASH(value, "hash"))
    except InputError:
        raise LedgerError("ledger_damaged", f"the hash of record {seq}") from None
