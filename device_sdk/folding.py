"""Folding cells into the ledger: read a live count once, append the difference, move its mark.

Everything here runs inside one write transaction of the ledger, so that mark and record move together:
anyone may fold any cell, live or dead, any number of times, and nothing is lost or doubled (DESIGN §5).
"""

from pathlib import Path
from typing import NamedTuple

from device_sdk.cells import CellFile, ForeignCells, Word
from device_sdk.ledger_store import SEQ_END, Transaction
from meterkit import usage
from meterkit.clocks import Instant
from meterkit.errors import LedgerError
from meterkit.licenses import Meter
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
    def from_row(cls, row: tuple[str, str, int, str, str, str, str, str, int, str, int]) -> "CellRow":
        """Read a row of the table of cells."""
        cell, file, slot, token, model, unit, digest, flags, provisional, boot, mark = row
        return cls(
            cell=cell,
            file=file,
            slot=slot,
            token=token,
            model=model,
            unit=unit,
            digest=digest,
            flags=tuple(flags.split()),
            provisional=bool(provisional),
            boot=boot,
            mark=mark,
        )


class Folded:
    """What folding every cell found: whether calls are in flight, the earliest window in which units may still
    be counted, and files to unlink.
    """

    def __init__(self) -> None:
        self.in_flight = False
        self.open_window: int | None = None
        self.finished: list[Path] = []

    def note(self, word: Word, now: Instant) -> None:
        """Take in whether a living thread's cell may still count in its window."""
        self.in_flight = self.in_flight or word.in_flight_units > 0
        is_open = word.in_flight_units > 0 or word.open_until_ns > now.boot_ns
        if is_open and (self.open_window is None or word.window < self.open_window):
            self.open_window = word.window

    def unlink(self) -> None:
        """After the commit: remove the files of owners that are gone."""
        for path in self.finished:
            path.unlink(missing_ok=True)


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
    return int(row[0]) if row else 0


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
    rows = tx.execute(
        "SELECT slot, mark FROM cells WHERE file = ? AND model = ? AND unit = ?", (cells.name, *meter)
    ).fetchall()
    words = [(cells.read(slot), mark) for slot, mark in rows]
    return sum(max(0, word.count + word.in_flight_units - mark) for word, mark in words)


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
        flagged = row._replace(flags=(*row.flags, "cell_lost"))
        _append(tx, flagged, now, window=now.window, units=rest, count_to=row.mark)


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


def fold_file(tx: Transaction, directory: Path, file: str, now: Instant, folded: Folded) -> None:
    """Fold all cells of one process; if it is gone, settle its leases and finish its file."""
    try:
        cells = ForeignCells(directory / file)
    except FileNotFoundError:
        _fold_cells(tx, None, file, now, folded)
        return
    try:
        _fold_cells(tx, cells, file, now, folded)
    finally:
        cells.close()


def _fold_cells(tx: Transaction, cells: ForeignCells | None, file: str, now: Instant, folded: Folded) -> None:
    rows = [CellRow.from_row(row) for row in tx.execute(_OF_FILE, (file,)).fetchall()]
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
            flagged = current._replace(flags=(*current.flags, "recovered"))
            window = now.window
            _append(tx, flagged, now, window=window, units=0, count_to=current.mark, unsettled=rest)
            tx.append(usage.recovery("power_lost", row.cell), time=now.effective_s, boot=now.boot)
    forget_file(tx, file)


def forget_file(tx: Transaction, file: str) -> None:
    """Return what a process leased and forget its cells, which were folded in this transaction."""
    tx.execute("DELETE FROM leases WHERE file = ?", (file,))
    tx.execute("DELETE FROM cells WHERE file = ?", (file,))


def fold_all(tx: Transaction, directory: Path, now: Instant, folded: Folded) -> None:
    """Fold every cell of every process that shares this device, living or gone."""
    files = tx.execute("SELECT file FROM cells UNION SELECT file FROM leases").fetchall()
    for (file,) in sorted(files):
        fold_file(tx, directory, file, now, folded)


def sweep(tx: Transaction, directory: Path) -> None:
    """Unlink cell files that no row names and whose owner is gone: a process ended before its first call."""
    known = {file for (file,) in tx.execute("SELECT file FROM cells UNION SELECT file FROM leases").fetchall()}
    for path in directory.iterdir():
        if path.name in known or not path.name.removeprefix(".").startswith("cells_"):
            continue
        try:
            cells = ForeignCells(path)
        except OSError:
            continue
        try:
            if cells.owner_is_gone():
                path.unlink(missing_ok=True)
        finally:
            cells.close()
