"""Folding cells into the ledger: read a live count once, append the difference, move its mark.

Everything here runs inside one write transaction of the ledger, so that mark and record move together:
anyone may fold any cell, live or dead, any number of times, and nothing is lost or doubled (DESIGN §5).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from device_sdk.cells import CellFile, ForeignCells, Word
from device_sdk.files import remove_file
from device_sdk.ledger_transaction import SEQ_END, Transaction
from meterkit import ids, limits, shapes, usage
from meterkit.clocks import Instant
from meterkit.errors import InputError, LedgerError
from meterkit.licenses import Meter
from meterkit.tuples import NamedTuple
from meterkit.usage import UsageRecord

_INSERT = (
    "INSERT INTO cells (cell, file, slot, token, model, unit, digest, flags, provisional, boot, mark)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?)"
)
_ONE = (
    "SELECT cell, file, slot, token, model, unit, digest, flags, provisional, boot, mark FROM cells WHERE cell = ?"
)
_OF_FILE = (
    "SELECT cell, file, slot, token, model, unit, digest, flags, provisional, boot, mark"
    " FROM cells WHERE file = ? ORDER BY cell"
)


_FILE = shapes.ident("cells")
_SHAPE = shapes.Members(
    cell=shapes.ident("cel"),
    file=_FILE,
    slot=shapes.integer(0, limits.CELL_SLOTS - 1),
    token=shapes.TOKEN,
    model=shapes.NAME,
    unit=shapes.METER_UNIT,
    digest=shapes.HASH,
    flags=shapes.listed(shapes.one_of(*usage.FLAGS), len(usage.FLAGS), unique=True),
    provisional=shapes.integer(0, 1),
    boot=shapes.BOOT,
    mark=shapes.UNITS,
)


class CellRow(NamedTuple):
    """How far one cell is folded, and what a record of it says."""

    cell: str
    file: str
    slot: int
    token: str
    model: str
    unit: str
    digest: str
    flags: tuple[str, ...]
    provisional: bool
    boot: str
    mark: int

    @property
    def meter(self) -> Meter:
        """The (model, unit) that the cell counts."""
        return self.model, self.unit

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> CellRow:
        """Read a row of the table of cells; `ledger_damaged` where it cannot be one."""
        values = dict(zip(cls._fields, row, strict=True))
        flags = values["flags"].split() if isinstance(values["flags"], str) else values["flags"]
        try:
            _SHAPE({**values, "flags": flags}, "cells")
        except InputError as fault:
            raise LedgerError("ledger_damaged", fault.detail) from None
        return cls(**{**values, "flags": tuple(flags), "provisional": bool(values["provisional"])})


class Folded:
    """What folding every cell found: whether calls are in flight, the earliest window in which units may still
    be counted, and files to unlink.
    """

    def __init__(self) -> None:
        self.in_flight = False
        self.open_window: int | None = None
        self.finished: list[str] = []

    def note(self, word: Word, now: Instant) -> None:
        """Take in whether a living thread's cell may still count in its window."""
        self.in_flight = self.in_flight or word.in_flight_units > 0
        is_open = word.in_flight_units > 0 or word.open_until_ns > now.boot_ns
        if is_open and (self.open_window is None or word.window < self.open_window):
            self.open_window = word.window

    def unlink(self) -> None:
        """After the commit: remove the files of owners that are gone. What cannot be is swept later."""
        for path in self.finished:
            with suppress(OSError):
                remove_file(path)


def insert_cell(tx: Transaction, row: CellRow) -> None:
    """Enter a new cell, marked at the count that it starts from.

    A cell in the same slot is there only if an earlier attempt was committed after all: nobody has written it.
    """
    tx.execute("DELETE FROM cells WHERE file = ? AND slot = ?", (row.file, row.slot))
    values = (row.cell, row.file, row.slot, row.token, row.model, row.unit, row.digest, " ".join(row.flags))
    tx.execute(_INSERT, (*values, int(row.provisional), row.boot, row.mark))


def update_standing(tx: Transaction, cell: str, flags: tuple[str, ...], *, provisional: bool) -> None:
    """Change what the next record of a cell will say; the cell must have been folded in this transaction."""
    tx.execute(
        "UPDATE cells SET flags = ?, provisional = ? WHERE cell = ?", (" ".join(flags), int(provisional), cell)
    )


def get_cell(tx: Transaction, cell: str) -> CellRow | None:
    """The row of one cell, or None where it has been finished."""
    row = tx.execute(_ONE, (cell,)).fetchone()
    return CellRow.from_row(row) if row else None


def remove_cell(tx: Transaction, cell: str) -> None:
    """Forget a cell that was folded in this transaction and will not be written again."""
    tx.execute("DELETE FROM cells WHERE cell = ?", (cell,))


def leased(tx: Transaction, file: str, meter: Meter) -> int:
    """Units that one process holds on lease for a meter and has not yet folded or returned."""
    row = tx.execute(
        "SELECT units FROM leases WHERE file = ? AND model = ? AND unit = ?", (file, *meter)
    ).fetchone()
    if row and type(row[0]) is not int:
        raise LedgerError("ledger_damaged", "a row of the leases")
    return row[0] if row else 0


def leased_in_all(tx: Transaction, meter: Meter) -> int:
    """Units that all processes hold on lease for a meter."""
    row = tx.execute("SELECT COALESCE(SUM(units), 0) FROM leases WHERE model = ? AND unit = ?", meter).fetchone()
    return int(row[0])


def change_lease(tx: Transaction, file: str, meter: Meter, units: int, boot: str) -> None:
    """Add units to a process's lease for a meter, or take them from it."""
    if units == 0:
        return
    tx.execute(
        "INSERT INTO leases (file, model, unit, units, boot) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (file, model, unit) DO UPDATE SET units = units + excluded.units",
        (file, *meter, units, boot),
    )


def set_lease(tx: Transaction, file: str, meter: Meter, units: int, boot: str) -> None:
    """Set what a process holds on lease for a meter, whatever the ledger said before."""
    tx.execute(
        "INSERT OR REPLACE INTO leases (file, model, unit, units, boot) VALUES (?, ?, ?, ?, ?)",
        (file, *meter, units, boot),
    )


def unfolded(tx: Transaction, cells: CellFile, meter: Meter) -> int:
    """Units of a meter that this process has taken from its lease, and which are in no record yet: counted
    since the marks, or in flight.
    """
    words = [(cells.read(row.slot), row.mark) for row in _rows_of(tx, cells.name) if row.meter == meter]
    return sum(max(0, word.count + word.in_flight_units - mark) for word, mark in words)


def _rows_of(tx: Transaction, file: str) -> list[CellRow]:
    return [CellRow.from_row(row) for row in tx.execute(_OF_FILE, (file,)).fetchall()]


def fold_cell(tx: Transaction, row: CellRow, word: Word, now: Instant) -> None:
    """Append what a cell counted since its mark, and move the mark.

    A count below the mark, or beyond what was leased, is impossible: in the same boot the lease's rest counts
    as used (`cell_lost`); after a power loss the cell may be stale, and proves nothing.
    """
    units = word.count - row.mark
    held = leased(tx, row.file, row.meter)
    if 0 <= units <= held:
        if units:
            flags = row.flags if row.boot == now.boot else (*row.flags, "recovered")
            _append(tx, row._replace(flags=flags), now, window=word.window, units=units, count_to=word.count)
    elif row.boot == now.boot:
        lose_cell(tx, row, now)
    if word.count != row.mark:
        tx.execute("UPDATE cells SET mark = ? WHERE cell = ?", (word.count, row.cell))


def lose_cell(tx: Transaction, row: CellRow, now: Instant) -> None:
    """Count the rest of a lease as used, because the cell that should tell is missing or impossible."""
    rest = leased(tx, row.file, row.meter)
    tx.append(usage.recovery("cell_lost", row.cell), time=now.effective_s, boot=now.boot)
    if rest:
        _append_now(tx, row, "cell_lost", now, units=rest, count_to=row.mark)


def _append_now(
    tx: Transaction, row: CellRow, flag: str, now: Instant, *, units: int, count_to: int, unsettled: int = 0
) -> None:
    """Append what no cell tells the window of: it stands in this one, no more certain than this moment is."""
    flagged = row._replace(flags=(*row.flags, flag), provisional=row.provisional or now.provisional)
    _append(tx, flagged, now, window=now.window, units=units, count_to=count_to, unsettled=unsettled)


def _append(
    tx: Transaction, row: CellRow, now: Instant, *, window: int, units: int, count_to: int, unsettled: int = 0
) -> None:
    token = tx.token_before(SEQ_END)
    if token is None:
        raise LedgerError("ledger_damaged", "usage without a token record before it")
    record = UsageRecord(
        seq=0,
        time=0,
        boot="",
        window=window,
        provisional=row.provisional,
        license_id=token.license_id,
        token=row.token,
        model=row.model,
        digest=row.digest,
        unit=row.unit,
        units=units,
        unsettled=unsettled,
        flags=row.flags,
        cell=row.cell,
        count_from=row.mark,
        count_to=count_to,
    )
    tx.append(record.to_claims(), time=now.effective_s, boot=now.boot)
    change_lease(tx, row.file, row.meter, -(units + unsettled), row.boot)


def fold_file(
    tx: Transaction, directory: str, file: str, now: Instant, folded: Folded, *, if_living: bool = True
) -> None:
    """Fold all cells of one process; if it is gone, settle its leases and finish its file."""
    try:
        cells = ForeignCells(os.path.join(directory, file))
    except FileNotFoundError:
        _fold_cells(tx, None, file, now, folded)
        return
    try:
        if if_living or cells.owner_is_gone():
            _fold_cells(tx, cells, file, now, folded)
    finally:
        cells.close()


def _fold_cells(tx: Transaction, cells: ForeignCells | None, file: str, now: Instant, folded: Folded) -> None:
    rows = _rows_of(tx, file)
    gone = cells is None or cells.owner_is_gone()
    for row in rows:
        word = cells.read(row.slot) if cells else None
        if word is not None:
            fold_cell(tx, row, word, now)
            if not gone:
                folded.note(word, now)
        elif row.boot == now.boot:
            lose_cell(tx, row, now)
    if gone:
        _settle(tx, rows, file, now)
        if cells is not None:
            folded.finished.append(cells.path)


def _settle(tx: Transaction, rows: list[CellRow], file: str, now: Instant) -> None:
    """The owner is gone: in the same boot its unused units are free again; after a power loss they are
    `unsettled`, once per lease.
    """
    last_by_meter = {row.meter: row for row in rows}
    for meter, row in last_by_meter.items():
        rest = leased(tx, file, meter)
        if row.boot != now.boot and rest > 0:
            current = get_cell(tx, row.cell) or row
            _append_now(tx, current, "recovered", now, units=0, count_to=current.mark, unsettled=rest)
            tx.append(usage.recovery("power_lost", row.cell), time=now.effective_s, boot=now.boot)
    forget_file(tx, file)


def forget_file(tx: Transaction, file: str) -> None:
    """Return what a process leased and forget its cells, which were folded in this transaction."""
    tx.execute("DELETE FROM leases WHERE file = ?", (file,))
    tx.execute("DELETE FROM cells WHERE file = ?", (file,))


def _files(tx: Transaction) -> set[str]:
    rows = tx.rows("SELECT file FROM cells UNION SELECT file FROM leases")
    try:
        return {_FILE(file, "file") for (file,) in rows}
    except InputError as fault:
        raise LedgerError("ledger_damaged", fault.detail) from None


def is_cell(row: tuple[Any, ...]) -> bool:
    """Whether a row of the cells can be one."""
    try:
        CellRow.from_row(row)
    except LedgerError:
        return False
    return True


def is_lease(row: tuple[Any, ...]) -> bool:
    """Whether a row of the leases can be one."""
    file, model, unit, units, boot = row
    try:
        _FILE(file, "file")
        shapes.NAME(model, "model")
        shapes.METER_UNIT(unit, "unit")
        shapes.BOOT(boot, "boot")
    except InputError:
        return False
    return type(units) is int


def fold_all(tx: Transaction, directory: str, now: Instant, folded: Folded) -> None:
    """Fold every cell of every process that shares this device, living or gone."""
    for file in sorted(_files(tx)):
        fold_file(tx, directory, file, now, folded)


def fold_left_behind(tx: Transaction, directory: str, now: Instant, folded: Folded) -> None:
    """Fold the cells of processes that are gone, once there are many: until then each keeps its file, and its
    units on lease, though every process of a device may be too short for an edge.
    """
    files = _files(tx)
    if len(files) > limits.CELL_FILES_MAX:
        for file in sorted(files):
            fold_file(tx, directory, file, now, folded, if_living=False)


def try_rows(tx: Transaction) -> None:
    """Write one row of each kind and read it; raises `ledger_damaged` where the tables do not take it."""
    file, meter, boot = ids.make("cells", bytes(16)), ("trial", "call"), "0" * 36
    token, model, unit = ids.make("tok", bytes(16)), *meter
    row = (ids.make("cel", bytes(16)), file, 0, token, model, unit, "0" * 64, "", 0, boot, 0)
    insert_cell(tx, CellRow.from_row(row))
    update_standing(tx, row[0], ("grace",), provisional=True)
    change_lease(tx, file, meter, 1, boot)
    if get_cell(tx, row[0]) is None or leased(tx, file, meter) != 1 or tx.used_after(0, meter):
        raise LedgerError("ledger_damaged", "its tables do not hold what is written to them")
    forget_file(tx, file)


def sweep(tx: Transaction, directory: str) -> None:
    """Unlink cell files that no row names and whose owner is gone: a process ended before its first call."""
    known = _files(tx)
    for name in os.listdir(directory):
        if name in known or not name.removeprefix(".").startswith("cells_"):
            continue
        path = os.path.join(directory, name)
        try:
            cells = ForeignCells(path)
        except OSError:
            continue
        try:
            if cells.owner_is_gone():
                remove_file(path)
        finally:
            cells.close()
