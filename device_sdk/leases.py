"""Units that a process may use without asking the ledger again: taken from it durably, handed out here."""

import threading
from operator import length_hint

from device_sdk.cells import Standing
from meterkit import limits
from meterkit.clocks import NS
from meterkit.entitlements import Denied
from meterkit.errors import MeterkitError
from meterkit.licenses import Meter


class Lease:
    """Some units of one meter for one process, until the next edge.

    `take_one` hands out single units atomically, because CPython runs an iterator's step in one go; `take`
    serves calls of several units under a lock. A lease serves one of the two ways, by its meter's unit; `take`
    of one unit fits both.
    """

    __slots__ = ("_lock", "_units", "deadline_ns", "hard_ns", "standing", "started_ns", "take_one", "units")

    def __init__(self, units: int, *, standing: Standing, started_ns: int, deadline_ns: int, hard_ns: int) -> None:
        self.units = units
        self.standing = standing
        self.started_ns = started_ns
        self.deadline_ns = deadline_ns
        self.hard_ns = hard_ns
        self._units = iter(range(units))
        self._lock = threading.Lock()
        self.take_one = self._units.__next__

    def take(self, units: int) -> bool:
        """Take several units, all or none."""
        with self._lock:
            if units == 1:
                return next(self._units, None) is not None
            left = length_hint(self._units)
            if left < units:
                return False
            self._units = iter(range(left - units))
            return True

    def unused(self) -> int:
        """How many units nobody has taken yet."""
        return length_hint(self._units)

    def drain(self) -> int:
        """End the lease: whoever asks next finds it empty. Gives the number of units that were unused."""
        with self._lock:
            return len(list(self._units))


class MeterCount:
    """What this process holds for one meter: its lease, units to give back, its pace, the last denial.

    `over_limit` says that its last lease was beyond the limit, and is flagged so. `attempted` is what the last
    transaction, if it was committed, left in the ledger to use; None where it certainly was not. `sure` is False
    while a commit's outcome is unknown: whether the ledger's row of the lease holds it or not.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.lease: Lease | None = None
        self.returned = 0
        self.sure = True
        self.over_limit = False
        self.attempted: int | None = None
        self.connections = -1
        self.pace_per_s = 0.0
        self.denied: MeterkitError | None = None
        self.denied_until_ns = 0
        self.denied_units = 0
        self._lock = threading.Lock()

    def give_back(self, units: int) -> None:
        """Return the units of a call that failed; the next commit of this meter returns them for good."""
        with self._lock:
            self.returned += units

    def take_returned(self, units: int) -> None:
        """Note that so many of the units given back are back in the ledger."""
        with self._lock:
            self.returned -= units

    def end_lease(self, now_ns: int) -> int:
        """Drain the lease in hand, learn its pace, and give back what was unused of it: so many units."""
        lease, self.lease = self.lease, None
        if lease is None:
            return 0
        unused = lease.drain()
        self.pace_per_s = (lease.units - unused) * NS / max(1, now_ns - lease.started_ns)
        self.give_back(unused)
        return unused

    def resume(self, ended: Lease, unused: int, deadline_ns: int) -> Lease:
        """Take up a lease again whose end could not be written: what was unused of it serves on.

        But no more than the new one would have held: if that commit landed after all, there is no more.
        """
        units = unused if self.attempted is None else min(unused, self.attempted)
        self.take_returned(units)
        self.lease = Lease(
            units,
            standing=ended.standing,
            started_ns=ended.started_ns,
            deadline_ns=deadline_ns,
            hard_ns=ended.hard_ns,
        )
        return self.lease

    def deny(self, why: Denied | MeterkitError, units: int, until_ns: int) -> MeterkitError:
        """Remember a denial for a moment, so that asking again for as much is cheap; gives what to raise."""
        self.denied = why.error() if isinstance(why, Denied) else why
        self.denied_units = units
        self.denied_until_ns = until_ns
        return self.denied


def size(*, units: int, left_units: int | None, pace_per_s: float, commit_ns: int) -> int:
    """How many units to lease for a call of so many: about a second's recent use, or a hundred commits'.

    Within 1 to 32,768 or the call's own, and at most the larger of the call's own and a sixteenth of what is
    left (DESIGN §5): nothing at all for an empty call where little is left.
    """
    seconds = max(limits.LEASE_TARGET_NS, limits.LEASE_COMMITS * commit_ns) / 1e9
    wanted = max(1, units, min(limits.LEASE_UNITS_MAX, int(pace_per_s * seconds)))
    if left_units is not None:
        wanted = min(wanted, max(units, left_units // limits.LEASE_SHARE))
    return wanted
