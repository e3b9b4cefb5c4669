"""What one process holds of one meter: its lease, what is fetched ahead of it, its pace, the last denial."""

from __future__ import annotations

import threading

from device_sdk.leases import Lease
from meterkit import limits
from meterkit.clocks import NS
from meterkit.entitlements import Denied
from meterkit.errors import MeterkitError
from meterkit.licenses import Meter


class MeterCount:
    """The units of one meter in this process's hands. Its lock is held for moments only, never over a commit.

    `lease` hands out units; `ahead` are units leased durably too, which serve on when it is used up; `returned`
    are units to go back to the ledger with the next commit.

    `exact` leases no unit but those of the call at hand. `over_limit` says that the last lease was beyond the
    limit, and is flagged so. `attempted` is what the last transaction, if it was committed, left in the ledger to
    use; None where it certainly was not. `sure` is False while a commit's outcome is unknown: whether the ledger's
    row of the lease holds it or not.
    """

    def __init__(self, meter: Meter, now_ns: int) -> None:
        self.meter = meter
        self.lock = threading.Lock()
        self.digest = ""
        self.lease: Lease | None = None
        self.ahead = 0
        self.returned = 0
        self.exact = False
        self.sure = True
        self.connections = -1
        self.over_limit = False
        self.attempted: int | None = None
        self.denied: MeterkitError | None = None
        self.denied_until_ns = 0
        self.denied_units = 0
        self.pace_per_s = 0.0
        self._leased = self._measured_used = 0
        self._measured_ns = now_ns

    # -- taking units

    def take(self, units: int, now_ns: int) -> Lease | None:
        """Take units of the lease in hand, and of what was fetched ahead of it: all or none.

        Gives the lease that they are of; None where it does not hold them, or has come to its deadline.
        """
        with self.lock:
            lease = self.lease
            if lease is None or now_ns >= lease.deadline_ns:
                return None
            if not lease.take(units):
                if not self.ahead:
                    return None
                lease = self._go_on_ahead(lease, units)
                if not lease.take(units):
                    return None
            return lease

    def _go_on_ahead(self, used_up: Lease, units: int) -> Lease:
        unused = used_up.drain() + self.ahead
        self.lease = used_up.followed_by(min(unused, max(units, limits.LEASE_UNITS_MAX)))
        self.ahead = unused - self.lease.units
        return self.lease

    def give_back(self, units: int) -> None:
        """Return the units of a call that failed; the next commit of this meter returns them for good."""
        with self.lock:
            self.returned += units

    def unused(self) -> int:
        """How many units are leased, and taken by nobody."""
        with self.lock:
            return self._unused()

    def _unused(self) -> int:
        return self.ahead + (self.lease.unused() if self.lease else 0)

    def is_untouched(self) -> bool:
        """Whether no unit that was leased here was ever used: what was leased ahead of a call that never came."""
        with self.lock:
            return self._leased == self._unused()

    # -- what comes from the ledger and goes back to it

    def start_lease(self, lease: Lease, units: int) -> None:
        """Serve from a lease that was just committed, of which so many units are taken already."""
        with self.lock:
            self.lease = lease
            self._leased += lease.units
            lease.take(units)

    def add_ahead(self, units: int) -> None:
        """Have units, just committed, follow the lease in hand."""
        with self.lock:
            self.ahead += units
            self._leased += units

    def end_lease(self) -> int:
        """Drain what is in hand, and give back what was unused of it: so many units."""
        with self.lock:
            lease, self.lease = self.lease, None
            unused, self.ahead = self.ahead, 0
            if lease is not None:
                unused += lease.drain()
            self._leased -= unused
            self.returned += unused
            return unused

    def take_returned(self, units: int) -> None:
        """Note that so many of the units given back are back in the ledger."""
        with self.lock:
            self.returned -= units

    def resume(self, ended: Lease, unused: int, deadline_ns: int) -> Lease:
        """Take up a lease again whose end could not be written: what was unused of it serves on.

        But no more than the new one would have held: if that commit landed after all, there is no more.
        """
        units = unused if self.attempted is None else min(unused, self.attempted)
        self.take_returned(units)
        resumed = ended.followed_by(units, deadline_ns=deadline_ns)
        self.start_lease(resumed, 0)
        return resumed

    # -- pace

    def measure(self, now_ns: int) -> int:
        """Learn the pace since it was measured last; gives the units used since then."""
        with self.lock:
            elapsed_ns = max(1, now_ns - self._measured_ns)
            used = self._leased - self._unused()
            since, self._measured_used, self._measured_ns = used - self._measured_used, used, now_ns
            self.pace_per_s = since * NS / elapsed_ns
            return since

    # -- denials

    def deny(self, why: Denied | MeterkitError, units: int, until_ns: int) -> MeterkitError:
        """Remember a denial for a moment, so that asking again for as much is cheap; gives what to raise."""
        self.denied = why.error() if isinstance(why, Denied) else why
        self.denied_units = units
        self.denied_until_ns = until_ns
        return self.denied
