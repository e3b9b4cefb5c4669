"""The counting of one process on one device: leases taken, cells folded, edges kept.

What happens here costs a durable commit, and happens about once a second at most; the gate does the rest
without coming here (DESIGN §5, "Counting").
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from device_sdk import folding, granting, timekeeper
from device_sdk.cells import Cell, CellFile
from device_sdk.folding import Folded
from device_sdk.holder import Holder
from device_sdk.keeper import Keeper
from device_sdk.leases import Lease
from device_sdk.ledger_store import LedgerStore, Transaction
from device_sdk.meters import MeterCount
from device_sdk.own_cells import OwnCells
from device_sdk.readings import Clocks
from meterkit.clocks import NS, Instant
from meterkit.errors import DeviceError, LedgerError, MeterkitError
from meterkit.licenses import Meter

_RETRY_NS = NS


class Admitted(NamedTuple):
    """A call may run: the cell that will count it, the lease it came from, and when to look again."""

    cell: Cell
    lease: Lease
    deadline_ns: int


class Counter:
    """All meters of one device in this process. Its methods may be called from any thread.

    `lock` is held over commits; a call waits for it at an edge, or where its lease is used up and nothing was
    fetched ahead.
    """

    def __init__(self, *, store: LedgerStore, holder: Holder, clocks: Clocks, cells_directory: Path) -> None:
        self.store = store
        self.holder = holder
        self.clocks = clocks
        self.cells_directory = cells_directory
        self._begin()

    def _begin(self) -> None:
        """Start with nothing leased and no cells: at open, and in a child after fork()."""
        self.lock = threading.RLock()
        self.closed = False
        self.commit_ns = 0
        self.committed_ns = 0
        self.flushed_ns = 0
        self.own = OwnCells(self.cells_directory)
        self._meters: dict[Meter, MeterCount] = {}
        self._connections = -1
        self._keeper = Keeper(self)

    def after_fork(self) -> None:
        """In the child: leave the parent its cells, locks and connection, and start anew."""
        self.own.disown()
        self.store.leak()
        self._begin()

    def meter(self, meter: Meter) -> MeterCount:
        """The counts of one meter, shared by all sessions and threads of this process."""
        with self.lock:
            return self._meters.setdefault(meter, MeterCount(meter, self.clocks.boot_ns()))

    def meters(self) -> list[MeterCount]:
        """The counts of all meters."""
        with self.lock:
            return list(self._meters.values())

    # -- admitting

    def admit(self, count: MeterCount, digest: str, cell: Cell | None, units: int) -> Admitted:
        """Admit one call, off the fast path: at a thread's first call, at an edge, or when a lease is used up.

        The cell that it gives says already that the call is in flight; while a call waits here, none does.

        Raises:
            DenialError: the license does not allow it.
            TrustError: the stored token does not hold any more.
            LedgerError: the ledger cannot be written, and the lease in hand does not cover the call.
        """
        if cell is not None:
            cell.start(units)
            lease = count.take(units, self.clocks.boot_ns())
            if lease is not None and lease.standing == cell.standing:
                return _admitted(cell, lease, units)
            if lease is not None:
                count.give_back(units)
            cell.start(0)
        with self.lock:
            self._check_denied(count, units)
            count.digest = digest
            return self._admit(count, cell, units)

    def _admit(self, count: MeterCount, cell: Cell | None, units: int) -> Admitted:
        if cell is not None:
            cell.start(units)
        now_ns = self.clocks.boot_ns()
        lease = count.lease
        taken = count.take(units, now_ns)
        if taken is not None and cell is not None and cell.standing == taken.standing:
            return _admitted(cell, taken, units)
        if cell is not None:
            cell.start(0)
        count.measure(now_ns)
        unused = 0 if taken else count.end_lease()
        try:
            return self._renew(count, cell, units, kept=taken)
        except MeterkitError as fault:
            self.own.unprepare()
            if taken:
                count.give_back(units)
            if isinstance(fault, LedgerError):
                resumed = self._resume(count, lease, cell, units, unused)
                if resumed is not None:
                    return resumed
            raise

    def _check_denied(self, count: MeterCount, units: int) -> None:
        if self.closed:
            raise DeviceError("device_closed")
        if count.denied is None:
            return
        if units < count.denied_units and count.denied.code == "limit_reached":
            return
        if self.clocks.boot_ns() < count.denied_until_ns and not self.holder.refresh():
            raise type(count.denied)(count.denied.code, count.denied.detail)
        count.denied = None

    def _resume(
        self, count: MeterCount, lease: Lease | None, cell: Cell | None, units: int, unused: int
    ) -> Admitted | None:
        """If only the fold at a window's edge failed, the cell keeps its window and counts on in its lease."""
        now_ns = self.clocks.boot_ns()
        if lease is None or cell is None or cell.standing != lease.standing or now_ns >= lease.hard_ns:
            return None
        resumed = count.resume(lease, unused, min(lease.hard_ns, now_ns + _RETRY_NS))
        return _admitted(cell, resumed, units) if resumed.take(units) else None

    def _renew(self, count: MeterCount, cell: Cell | None, units: int, *, kept: Lease | None) -> Admitted:
        """Fold, decide, lease and set up the thread's cell in one durable transaction."""
        with self._write_for(count, taken=units if kept else 0) as (tx, now):
            lease = kept or granting.grant(
                tx,
                self.holder,
                self.own,
                count,
                units=units,
                now=now,
                commit_ns=self.commit_ns,
                folded=self._folded,
            )
            if isinstance(lease, Lease):
                row = granting.renew_cell(tx, self.own, count, cell, standing=lease.standing, now=now)
            count.attempted = lease.units if isinstance(lease, Lease) else 0
        if not isinstance(lease, Lease):
            raise count.deny(lease, units, now.boot_ns + _RETRY_NS)
        if kept is None:
            count.start_lease(lease, units)
        if row is not None:
            cell = self.own.make(row, lease.standing)
        elif cell is None:
            raise RuntimeError("a lease without a cell")
        elif cell.standing != lease.standing:
            cell.restate(lease.standing)
        self._keeper.start()
        return _admitted(cell, lease, units)

    # -- between calls: what the keeper does

    def extend_lease(self, count: MeterCount) -> None:
        """Fetch units ahead of need, so that no call waits for a commit."""
        with self.lock:
            if self.closed or count.exact or count.lease is None or count.denied is not None:
                return
            with self._write_for(count, taken=0) as (tx, now):
                units = granting.extend(tx, self.holder, self.own, count, now=now, commit_ns=self.commit_ns)
            count.add_ahead(units)

    def return_lease(self, count: MeterCount) -> None:
        """Give unused units back to the ledger: nobody seems to need them here."""
        with self.lock:
            if self.closed or count.lease is None:
                return
            count.end_lease()
            with self._write_for(count, taken=0):
                pass

    def flush(self) -> bool:
        """Write cells that changed to disk; tells whether there were any."""
        with self.lock:
            self.flushed_ns = self.clocks.boot_ns()
            return self.own.file is not None and not self.closed and self.own.file.flush_changed()

    def flush_cell(self, cell: Cell) -> None:
        """Write one cell to disk now; raises LedgerError `ledger_unwritable` where that fails."""
        file = self.own.file
        if file is not None:
            file.flush_slot(cell.slot)

    def keep_time(self) -> None:
        """Write down what time has certainly passed."""
        with self.transaction() as tx:
            timekeeper.observe(tx, self.clocks)

    # -- transactions

    @contextmanager
    def _write_for(self, count: MeterCount, *, taken: int) -> Iterator[tuple[Transaction, Instant]]:
        """A transaction that puts the ledger's row of a meter's lease right, and remembers if it is unsure."""
        file, _ = self.own.place()
        returned = count.returned
        started_ns = self.clocks.boot_ns()
        sure, count.sure = count.sure, False  # until it is known how this ends
        count.attempted = None
        with self._write() as tx:
            now = timekeeper.observe(tx, self.clocks)
            sure = sure and count.connections == self.store.connections
            granting.release(tx, file, count, returned=returned, taken=taken, now=now, sure=sure)
            yield tx, now
        self.committed_ns = self.clocks.boot_ns()
        self.commit_ns = self.committed_ns - started_ns
        count.take_returned(returned)
        count.sure, count.connections = True, self.store.connections

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        """A write transaction in which retired cells are folded; slots and files are freed after its commit."""
        retired = self.own.take_retired()
        self._folded = Folded()
        try:
            with self.store.write() as tx:
                self._check_epoch(tx)
                if retired:
                    now = timekeeper.observe(tx, self.clocks)
                for each in retired:
                    self.own.finish(tx, each, now)
                yield tx
        except BaseException:
            self.own.put_back(retired)
            raise
        self._folded.unlink()
        self.own.free(retired)

    def _check_epoch(self, tx: Transaction) -> None:
        """Nothing is written to a ledger that has no genesis: the file was deleted under this process."""
        if self.store.connections != self._connections and not tx.epoch():
            raise LedgerError("ledger_damaged", "it holds no record")
        self._connections = self.store.connections

    @contextmanager
    def fold_everything(self) -> Iterator[tuple[Transaction, Instant, Folded]]:
        """A write transaction that begins by folding every cell of every process on this device."""
        with self.lock, self._write() as tx:
            now = timekeeper.observe(tx, self.clocks)
            folding.fold_all(tx, self.cells_directory, now, self._folded)
            yield tx, now, self._folded

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A write transaction that may wait for other threads' and processes' ones."""
        with self.lock, self._write() as tx:
            yield tx

    # -- edges and the end

    def unused_units(self, meter: Meter) -> int:
        """Units that this process holds on lease and has not used: they are free again when it ends."""
        with self.lock:
            count = self._meters.get(meter)
            return 0 if count is None else count.returned + count.unused()

    def end_leases(self) -> None:
        """Make every thread look again at its next call: something was installed, or the time was mended."""
        with self.lock:
            for count in self._meters.values():
                count.end_lease()
                count.denied = None

    def close(self) -> None:
        """Fold what this process counted and return what it leased. Where a call is still in flight, the cell
        file stays, and stays locked: the call will be counted, and whoever comes next folds it.
        """
        self._keeper.stop()
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.end_leases()
            file, self.own.file = self.own.file, None
            if file is None:
                return
            try:
                in_flight = self._close_file(file)
            except MeterkitError:
                return
            if not in_flight:
                file.remove()

    def _close_file(self, file: CellFile) -> bool:
        with self.store.write() as tx:
            now = timekeeper.observe(tx, self.clocks)
            folded = Folded()
            folding.fold_file(tx, self.cells_directory, file.name, now, folded)
            if folded.in_flight:
                for meter in self._meters:
                    folding.set_lease(tx, file.name, meter, folding.unfolded(tx, file, meter), now.boot)
            else:
                folding.forget_file(tx, file.name)
        return folded.in_flight


def _admitted(cell: Cell, lease: Lease, units: int) -> Admitted:
    cell.admit(units, lease.deadline_ns)
    return Admitted(cell, lease, lease.deadline_ns)
