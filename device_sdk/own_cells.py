"""The cells of this process: its file, the slot that its next cell will take, and cells that threads left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from device_sdk import folding
from device_sdk.cells import Cell, CellFile, Retired, Standing
from device_sdk.folding import CellRow, Folded
from device_sdk.ledger_transaction import Transaction
from meterkit.clocks import Instant
from meterkit.licenses import Meter


class OwnCells:
    """Made at the first call of this process. All of it is used under `Counter.lock`, but for finalizers of cells,
    which only append to `retired`.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.file: CellFile | None = None
        self.retired: deque[Retired] = deque()
        self.ready: dict[tuple[Meter, str], Cell] = {}  # by meter and digest: no thread has them yet
        self._spare: int | None = None

    def place(self) -> tuple[CellFile, int]:
        """The file, and the slot in it that the next new cell will take."""
        if self.file is None:
            self.file = CellFile(self.directory)
        if self._spare is None:
            self._spare = self.file.take_slot()
        return self.file, self._spare

    def make(self, row: CellRow, standing: Standing) -> Cell:
        """The cell of a row that was just committed, in the slot that `place` gave."""
        file, slot = self.place()
        self._spare = None
        return Cell(row.cell, slot, file, self.retired, standing=standing)

    def unprepare(self) -> None:
        """Say that no call is in flight in the next slot after all: its cell did not come to be."""
        if self.file is not None and self._spare is not None:
            self.file.unprepare(self._spare)

    def take_retired(self) -> list[Retired]:
        """Cells that nobody will write again; those not finished are to be put back."""
        return [self.retired.popleft() for _ in range(len(self.retired))]

    def put_back(self, retired: list[Retired]) -> None:
        """Keep cells for the next transaction: this one did not finish them."""
        self.retired.extendleft(reversed(retired))

    def finish(self, tx: Transaction, retired: Retired, now: Instant) -> None:
        """Fold a cell that nobody will write again, and forget it."""
        row = folding.get_cell(tx, retired.cell)
        if row is not None and self.file is not None:
            folding.fold_cell(tx, row, self.file.read(retired.slot), now)
            folding.remove_cell(tx, retired.cell)

    def free(self, retired: list[Retired]) -> None:
        """After the commit: their slots can be used again."""
        if self.file is not None:
            for each in retired:
                self.file.free_slot(each.slot)

    def close(self, tx: Transaction, file: CellFile, meters: Iterable[Meter], now: Instant) -> bool:
        """Fold the file and return what was leased, but for calls in flight; tells whether there are any."""
        folded = Folded()
        folding.fold_file(tx, self.directory, file.name, now, folded)
        if folded.in_flight:
            for meter in meters:
                folding.set_lease(tx, file.name, meter, folding.unfolded(tx, file, meter), now.boot)
        else:
            folding.forget_file(tx, file.name)
        return folded.in_flight

    def disown(self) -> None:
        """After fork(), in the child: leave the file to the parent."""
        if self.file is not None:
            self.file.disown()
