"""The counting of one process on one device: leases taken, cells folded, edges kept.

What happens here costs a durable commit, and happens about once a second at most; the gate does the rest
without coming here (DESIGN §5, "Counting").
"""

import secrets
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from device_sdk import deciding, folding, leases, timekeeper
from device_sdk.cells import Cell, CellFile, Retired, Standing
from device_sdk.folding import CellRow, Folded
from device_sdk.holder import Holder
from device_sdk.leases import Lease, MeterCount
from device_sdk.ledger_store import LedgerStore, Transaction
from device_sdk.readings import Clocks
from meterkit import ids, limits
from meterkit.clocks import NS, Instant
from meterkit.entitlements import Allowed, Denied
from meterkit.errors import DeviceError, LedgerError, MeterkitError
from meterkit.licenses import Meter

_RETRY_NS = NS


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call may run: the cell that will count it, the lease it came from, and when to look again."""

    cell: Cell
    lease: Lease
    deadline_ns: int


class Counter:
    """All meters of one device in this process. Its methods may be called from any thread."""

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
        self._meters: dict[Meter, MeterCount] = {}
        self._file: CellFile | None = None
        self._spare: int | None = None
        self._retired: deque[Retired] = deque()
        self._connections = -1
        self._commit_ns = 0
        self._flushed_ns = 0

    def after_fork(self) -> None:
        """In the child: leave the parent its cells, locks and connection, and start anew."""
        if self._file is not None:
            self._file.disown()
        self.store.leak()
        self._begin()

    def meter(self, meter: Meter) -> MeterCount:
        """The counts of one meter, shared by all sessions and threads of this process."""
        with self.lock:
            return self._meters.setdefault(meter, MeterCount(meter))

    def admit(self, count: MeterCount, digest: str, cell: Cell | None, units: int) -> Admitted:
        """Admit one call, off the fast path: at a thread's first call, at an edge, or when a lease is used up.

        The cell that it gives says already that the call is in flight; while a call waits here, none does.

        Raises:
            DenialError: the license does not allow it.
            TrustError: the stored token does not hold any more.
            LedgerError: the ledger cannot be written, and the lease in hand does not cover the call.
        """
        if cell is not None:
            cell.start(0)
        with self.lock:
            self._check_denied(count, units)
            if cell is not None:
                cell.start(units)
            now_ns = self.clocks.boot_ns()
            lease = count.lease
            taken = lease is not None and now_ns < lease.deadline_ns and lease.take(units)
            if lease is not None and taken and cell is not None and cell.standing == lease.standing:
                return _admitted(cell, lease, units)
            if cell is not None:
                cell.start(0)
            unused = 0 if taken else count.end_lease(now_ns)
            try:
                return self._renew(count, digest, cell, units, kept=lease if taken else None)
            except MeterkitError as fault:
                if self._file is not None and self._spare is not None:
                    self._file.unprepare(self._spare)
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
        deadline_ns = min(lease.hard_ns, now_ns + _RETRY_NS)
        resumed = count.resume(lease, unused, deadline_ns)
        return _admitted(cell, resumed, units) if resumed.take(units) else None

    def _renew(
        self, count: MeterCount, digest: str, cell: Cell | None, units: int, *, kept: Lease | None
    ) -> Admitted:
        """Fold, decide, lease and set up the thread's cell in one durable transaction."""
        file, spare = self._place()
        returned = count.returned
        started_ns = self.clocks.boot_ns()
        sure, count.sure = count.sure, False  # until it is known how this ends
        count.attempted = None
        with self._write() as tx:
            now = timekeeper.observe(tx, self.clocks)
            sure = sure and count.connections == self.store.connections
            self._release(tx, count, returned, units if kept else 0, now, sure=sure)
            lease = kept or self._lease(tx, (count, digest), file, units, now)
            if isinstance(lease, Lease):
                row = self._renew_cell(tx, (count.meter, digest), cell, lease.standing, now)
            count.attempted = lease.units if isinstance(lease, Lease) else 0
        self._commit_ns = self.clocks.boot_ns() - started_ns
        count.take_returned(returned)
        if isinstance(lease, Lease) and kept is None:
            count.lease = lease
            lease.take(units)
        count.sure, count.connections = True, self.store.connections
        if not isinstance(lease, Lease):
            raise count.deny(lease, units, now.boot_ns + _RETRY_NS)
        if row is not None:
            self._spare = None
            cell = Cell(row.cell, spare, file, self._retired, standing=lease.standing)
        elif cell is None:
            raise RuntimeError("a lease without a cell")
        elif cell.standing != lease.standing:
            cell.restate(lease.standing)
        return _admitted(cell, lease, units)

    def _release(
        self, tx: Transaction, count: MeterCount, returned: int, taken: int, now: Instant, *, sure: bool
    ) -> None:
        """Give back to the ledger what failed calls and ended leases left, which is noted after the commit.

        Where it is not known what the ledger says of the lease, it is told anew: what memory and cells hold, read
        in the order in which a unit moves (unused, started, given back), so that none is missed.
        """
        file, _ = self._place()
        if sure:
            folding.change_lease(tx, file.name, count.meter, -returned, now.boot)
            return
        unused = count.lease.unused() if count.lease else 0
        unfolded = folding.unfolded(tx, file, count.meter)
        since = count.returned - returned
        folding.set_lease(tx, file.name, count.meter, unused + unfolded + since + taken, now.boot)

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        """A write transaction in which retired cells are folded; slots and files are freed after its commit."""
        retired = [self._retired.popleft() for _ in range(len(self._retired))]
        self._folded = Folded()
        try:
            with self.store.write() as tx:
                self._check_epoch(tx)
                for each in retired:
                    self._finish(tx, each)
                yield tx
        except BaseException:
            self._retired.extendleft(reversed(retired))
            raise
        self._folded.unlink()
        if self._file is not None:
            for each in retired:
                self._file.free_slot(each.slot)

    def _check_epoch(self, tx: Transaction) -> None:
        """Nothing is written to a ledger that has no genesis: the file was deleted under this process."""
        if self.store.connections != self._connections and not tx.epoch():
            raise LedgerError("ledger_damaged", "it holds no record")
        self._connections = self.store.connections

    def _finish(self, tx: Transaction, retired: Retired) -> None:
        row = folding.get_cell(tx, retired.cell)
        if row is not None and self._file is not None:
            now = timekeeper.observe(tx, self.clocks)
            folding.fold_cell(tx, row, self._file.read(retired.slot), now)
            folding.remove_cell(tx, retired.cell)

    def _place(self) -> tuple[CellFile, int]:
        """This process's cell file, and the slot in it that the next new cell will take."""
        if self._file is None:
            self._file = CellFile(self.cells_directory)
        if self._spare is None:
            self._spare = self._file.take_slot()
        now_ns = self.clocks.boot_ns()
        if now_ns - self._flushed_ns >= limits.CELL_FLUSH_NS:
            self._flushed_ns = now_ns
            self._file.flush()
        return self._file, self._spare

    def _lease(
        self, tx: Transaction, counted: tuple[MeterCount, str], file: CellFile, units: int, now: Instant
    ) -> Lease | Denied | MeterkitError:
        """Decide at this edge, and take a lease if the call is allowed."""
        count, digest = counted
        try:
            token = self.holder.current_token()
            deciding.name_token(tx, token, now)
        except LedgerError:
            raise
        except MeterkitError as fault:
            return fault
        decision = deciding.decide(tx, token, (count.meter, digest), units, now)
        over = not isinstance(decision, Allowed) or "over_limit" in decision.flags
        if over and not count.over_limit:
            # Units that a process took and did not use are free again once it is gone.
            folding.fold_all(tx, self.cells_directory, now, self._folded)
            decision = deciding.decide(tx, token, (count.meter, digest), units, now)
        if isinstance(decision, Denied):
            return decision
        count.over_limit = "over_limit" in decision.flags
        leased = leases.size(
            units=units,
            left_units=decision.left_units,
            pace_per_s=count.pace_per_s,
            commit_ns=self._commit_ns,
        )
        folding.change_lease(tx, file.name, count.meter, leased, now.boot)
        standing = Standing(window=now.window, token=token.jti, flags=decision.flags, provisional=now.provisional)
        return deciding.make_lease(leased, standing, token, now)

    def _renew_cell(
        self,
        tx: Transaction,
        counted: tuple[Meter, str],
        cell: Cell | None,
        standing: Standing,
        now: Instant,
    ) -> CellRow | None:
        """Past an edge, fold the thread's cell and state what its next record will say.

        Gives the row of a new cell where the thread has none yet, the token is another, or the slot is worn, else
        None.
        """
        (model, unit), digest = counted
        file, spare = self._place()
        worn = cell is not None and file.is_worn(cell.slot)
        if cell is not None and cell.standing == standing and not worn:
            return None
        row = folding.get_cell(tx, cell.id) if cell is not None else None
        if cell is not None and row is not None:
            folding.fold_cell(tx, row, file.read(cell.slot), now)
            if row.token == standing.token and not worn:
                folding.update_standing(tx, cell.id, standing.flags, provisional=standing.provisional)
                return None
        fresh = CellRow(
            cell=ids.make("cel", secrets.token_bytes(16)),
            file=file.name,
            slot=spare,
            token=standing.token,
            model=model,
            unit=unit,
            digest=digest,
            flags=standing.flags,
            provisional=standing.provisional,
            boot=now.boot,
            mark=file.count_at(spare),
        )
        folding.insert_cell(tx, fresh)
        file.prepare(spare, standing.window)
        return fresh

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

    def unused_units(self, meter: Meter) -> int:
        """Units that this process holds on lease and has not used: they are free again when it ends."""
        with self.lock:
            count = self._meters.get(meter)
            if count is None:
                return 0
            return count.returned + (count.lease.unused() if count.lease else 0)

    def end_leases(self) -> None:
        """Make every thread look again at its next call: something was installed, or the time was mended."""
        with self.lock:
            now_ns = self.clocks.boot_ns()
            for count in self._meters.values():
                count.end_lease(now_ns)
                count.denied = None

    def close(self) -> None:
        """Fold what this process counted and return what it leased. Where a call is still in flight, the cell
        file stays, and stays locked: the call will be counted, and whoever comes next folds it.
        """
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.end_leases()
            file, self._file = self._file, None
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
