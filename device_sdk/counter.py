"""The counting of one process on one device: leases taken, cells folded, edges kept.

What happens here costs a durable commit, and happens about once a second at most; the gate does the rest
without coming here (DESIGN §5, "Counting").
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from device_sdk import deciding, folding, granting, timekeeper
from device_sdk.cells import Cell
from device_sdk.folding import Folded
from device_sdk.holder import Holder
from device_sdk.keeper import Keeper
from device_sdk.leases import Lease
from device_sdk.ledger_store import LedgerStore
from device_sdk.ledger_transaction import Transaction
from device_sdk.meters import MeterCount
from device_sdk.own_cells import OwnCells
from device_sdk.readings import Clocks
from meterkit.clocks import NS, Instant
from meterkit.errors import DeviceError, LedgerError, MeterkitError
from meterkit.licenses import Meter
from meterkit.tuples import NamedTuple

_RETRY_NS = NS


class _OverdueError(Exception):
    """While a call waited for the ledger, the lease that it had taken units from came to its end."""


class Admitted(NamedTuple):
    """A call may run: the cell that will count it, the lease it came from, and when to look again."""

    cell: Cell
    lease: Lease
    deadline_ns: int


class Counter:
    """All meters of one device in this process. Its methods may be called from any thread.

    `suspect` says that a transaction found the ledger damaged: it is to be judged before it is handed over.
    `lock` is held over commits; a call waits for it at an edge, or where its lease is used up and nothing was
    fetched ahead.
    """

    def __init__(self, *, store: LedgerStore, holder: Holder, clocks: Clocks, cells_directory: str) -> None:
        self.store = store
        self.holder = holder
        self.clocks = clocks
        self.cells_directory = cells_directory
        self._begin()

    def _begin(self) -> None:
        """Start with nothing leased and no cells: at open, and in a child after fork()."""
        self.lock = threading.RLock()
        self.closed = self.suspect = False
        self.commit_ns = 0
        self.committed_ns = 0
        self.flushed_ns = 0
        self.pruned_ns = 0
        self.own = OwnCells(self.cells_directory)
        self._meters: dict[Meter, MeterCount] = {}
        self._connections, self._epoch = -1, ""
        self._stamp = self.holder.vault.stamp()
        self.keeper = Keeper(self)

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
        cell = cell or self.own.ready.pop((count.meter, count.digest), None)
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
        except _OverdueError:
            count.give_back(units)
            return self._admit(count, cell, units)
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
        still_ns = count.denied_until_ns - self.clocks.boot_ns()
        if 0 < still_ns <= _RETRY_NS and not self.holder.refresh():
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
        with self.write_for(count, taken=units if kept else 0) as (tx, observed):
            if kept is not None and observed.boot_ns >= kept.deadline_ns:
                raise _OverdueError
            if kept and count.lease is None:  # another ledger is in place, which did not give it
                count.give_back(units)
                kept = None
            now = observed if kept else self._finish_installing(tx, observed)
            if cell is None:
                folding.fold_left_behind(tx, self.cells_directory, now, self._folded)
            lease = kept or granting.grant(
                tx,
                self.holder,
                self.own,
                count,
                units=units,
                now=now,
                commit_ns=self.commit_ns,
                connection=self.store.connections,
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
        self.keeper.start()
        return _admitted(cell, lease, units)

    def _finish_installing(self, tx: Transaction, now: Instant) -> Instant:
        """Install a token that is stored and that no record names: whoever began it was killed, or the power
        went. As there, what was admitted under the token before is recorded before it.
        """
        token = deciding.unnamed(tx, self.holder)
        if token is None:
            return now
        folding.fold_all(tx, self.cells_directory, now, self._folded)
        deciding.install(tx, token, self.clocks, now)
        return timekeeper.observe(tx, self.clocks)

    def lease_first(self, meter: Meter, digest: str) -> None:
        """Lease for a call that is expected, and have a cell ready for it. What stands in the way is for the call
        to find.
        """
        with self.lock:
            count = self.meter(meter)
            if self.closed or count.exact or count.lease is not None:
                return
            count.digest = digest
            try:
                self.own.ready[meter, digest] = self._renew(count, None, 0, kept=None).cell
            except MeterkitError:
                self.own.unprepare()
                count.denied = None

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

    # -- transactions

    @contextmanager
    def write_for(self, count: MeterCount, *, taken: int) -> Iterator[tuple[Transaction, Instant]]:
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
        except BaseException as fault:
            self.own.put_back(retired)
            self.suspect = self.suspect or getattr(fault, "code", "") == "ledger_damaged"
            raise
        self._folded.unlink()
        self.own.free(retired)

    def _check_epoch(self, tx: Transaction) -> None:
        """Nothing is written to a ledger that has no genesis: the file was deleted under this process. Nor is a
        lease used on that another ledger gave: this one may not know the cells that count it.
        """
        if self.store.connections == self._connections:
            return
        epoch = tx.epoch()
        if not epoch:
            raise LedgerError("ledger_damaged", "it holds no record")
        if epoch != self._epoch:
            self.end_leases()
        self._connections, self._epoch = self.store.connections, epoch

    @contextmanager
    def fold_everything(self) -> Iterator[tuple[Transaction, Instant, Folded]]:
        """A write transaction that begins by folding every cell of every process on this device."""
        with self.lock, self._write() as tx:
            now = timekeeper.observe(tx, self.clocks)
            self.forget(tx)
            folding.fold_all(tx, self.cells_directory, now, self._folded)
            yield tx, self._finish_installing(tx, now), self._folded

    @contextmanager
    def fold_copy(self) -> Iterator[tuple[Transaction, Instant]]:
        """The same on a copy in memory, for a ledger that cannot be written: nothing of it is stored or freed."""
        with self.lock, self.store.copy() as tx:
            now = timekeeper.observe(tx, self.clocks)
            folding.fold_all(tx, self.cells_directory, now, Folded())
            yield tx, now

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A write transaction that may wait for other threads' and processes' ones."""
        with self.lock, self._write() as tx:
            yield tx

    def forget(self, tx: Transaction) -> bool:
        """Drop files that processes left behind before their first call, and some records that the server has
        acknowledged long ago; tells whether there may be more of these.
        """
        from device_sdk import pruning  # noqa: PLC0415 - not on the way to an answer

        folding.sweep(tx, self.cells_directory)
        genuine = self.holder.genuine
        return pruning.prune(tx, genuine.token.anchor if genuine else None)

    # -- edges and the end

    def unused_units(self, meter: Meter) -> int:
        """Units that this process holds on lease and has not used: they are free again when it ends."""
        with self.lock:
            count = self._meters.get(meter)
            return 0 if count is None else count.returned + count.unused()

    def end_leases(self) -> None:
        """Make every thread look again at its next call: something was installed, or the time was mended."""
        with self.lock:
            self._stamp = self.holder.vault.stamp()
            for count in self._meters.values():
                count.end_lease()
                count.denied = None

    def end_stale_leases(self) -> None:
        """End them if another process has installed something since: also where one meter's call, or a status, has
        seen it already, and the other meters have not.
        """
        if self.holder.vault.stamp() != self._stamp:
            self.end_leases()

    def close(self) -> None:
        """Fold what this process counted and return what it leased. Where a call is still in flight, the cell
        file stays, and stays locked: the call will be counted, and whoever comes next folds it.
        """
        self.keeper.stop()
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.end_leases()
            file, self.own.file = self.own.file, None
            if file is None:
                self._note_time()
                return
            try:
                with self.store.write() as tx:
                    in_flight = self.own.close(tx, file, self._meters, timekeeper.observe(tx, self.clocks))
            except MeterkitError:
                return
            if not in_flight:
                file.remove()

    def _note_time(self) -> None:
        """Store how much time has passed: a process that counted nothing has not, and the power may go now."""
        with suppress(MeterkitError), self._write() as tx:
            tx.only_looking = True
            timekeeper.observe(tx, self.clocks)


def _admitted(cell: Cell, lease: Lease, units: int) -> Admitted:
    cell.admit(units, lease.deadline_ns)
    return Admitted(cell, lease, lease.deadline_ns)
