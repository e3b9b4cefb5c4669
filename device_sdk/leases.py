"""Units that a process may use without asking the ledger again: taken from it durably, handed out here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from operator import length_hint
from typing import Any

from device_sdk.cells import Standing
from meterkit import limits

Take = Callable[[], Any]
NOTHING: Take = iter(()).__next__


class Lease:
    """Some units of one meter for one process, until the next edge.

    CPython runs an iterator's step in one go, so a step of a shared iterator hands something out once and to one
    thread, without a lock. `take_one` is the step of all units that nobody has taken. For calls of several units
    a thread fetches a `Share`: an iterator of *calls* of one size, from which it then takes without a lock too.
    All of it can be drained at any time, by any thread: whoever asks next finds nothing.

    `scarce` says that what is left of a limit, and not the pace, bounded its size.
    """

    __slots__ = (
        "_lock", "_shares", "_units", "deadline_ns", "hard_ns", "scarce", "standing", "take_one", "units",
    )  # fmt: skip

    def __init__(
        self, units: int, *, standing: Standing, deadline_ns: int, hard_ns: int, scarce: bool = False
    ) -> None:
        self.units = units
        self.standing = standing
        self.deadline_ns = deadline_ns
        self.hard_ns = hard_ns
        self.scarce = scarce
        self._units = iter(range(units))
        self._shares: list[Share] = []
        self._lock = threading.Lock()
        self.take_one: Take = self._units.__next__

    def take(self, units: int) -> bool:
        """Take several units, all or none."""
        with self._lock:
            return self._take(units)

    def _take(self, units: int) -> bool:
        if units == 1:
            return next(self._units, None) is not None
        left = length_hint(self._units)
        if left < units:
            return False
        self._units = iter(range(left - units))
        self.take_one = self._units.__next__
        return True

    def share(self, units: int, calls: int) -> Share:
        """Set aside up to so many calls of so many units for one thread: as many as there are units for."""
        with self._lock:
            self._shares = [share for share in self._shares if share.unused()]
            calls = min(calls, length_hint(self._units) // units) if units else 0
            self._take(calls * units)
            made = Share(units, calls)
            self._shares.append(made)
            return made

    def put_back(self, share: Share) -> None:
        """Take back what a thread has not used of its share: its calls have another size now.

        A share of a lease that was drained has nothing left to put back.
        """
        with self._lock:
            units = length_hint(self._units) + share.drain()
            self._units = iter(range(units))
            self.take_one = self._units.__next__

    def unused(self) -> int:
        """How many units nobody has taken yet."""
        with self._lock:
            return length_hint(self._units) + sum(share.unused() for share in self._shares)

    def followed_by(self, units: int, *, deadline_ns: int | None = None) -> Lease:
        """A lease of so many units that goes on where this one ends: the same standing, the same edges."""
        return Lease(
            units,
            standing=self.standing,
            deadline_ns=self.deadline_ns if deadline_ns is None else deadline_ns,
            hard_ns=self.hard_ns,
            scarce=self.scarce,
        )

    def drain(self) -> int:
        """End the lease: whoever asks next finds it empty. Gives the number of units that were unused."""
        with self._lock:
            return len(list(self._units)) + sum(share.drain() for share in self._shares)


class Share:
    """Some calls of one size, set aside from a lease for one thread."""

    __slots__ = ("_calls", "calls", "take", "units")

    def __init__(self, units: int, calls: int) -> None:
        self.units = units
        self.calls = calls
        self._calls = iter(range(calls))
        self.take: Take = self._calls.__next__

    def take_first(self) -> bool:
        """Take one call of it, if there is any."""
        return next(self._calls, None) is not None

    def unused(self) -> int:
        """How many units of it nobody has taken yet."""
        return length_hint(self._calls) * self.units

    def drain(self) -> int:
        """End it; gives the number of units that were unused."""
        return len(list(self._calls)) * self.units


NO_SHARE = Share(0, 0)


def size(*, units: int, left_units: int | None, pace_per_s: float, commit_ns: int) -> int:
    """How many units to lease for a call of so many: about a second's recent use, or a hundred commits'.

    Within 1 to 32,768 or the call's own, and at most the larger of the call's own and a sixteenth of what is
    left (DESIGN §5): nothing at all for an empty call where little is left.
    """
    lasting_ns = max(limits.LEASE_TARGET_NS, limits.LEASE_COMMITS * commit_ns)
    wanted = max(1, units, min(limits.LEASE_UNITS_MAX, _used_in(lasting_ns, pace_per_s)))
    return wanted if left_units is None else min(wanted, max(units, share_of(left_units)))


def held(*, left_units: int | None, pace_per_s: float, commit_ns: int) -> int:
    """How many units a process should hold, fetched ahead of need: about a second's recent use, or two hundred
    commits', in as many leases as that takes.

    So commits take less than a hundredth of the time, also where they begin with a fourth of it left. The bounds
    are sixteen leases, and a sixteenth of what is left; below 1 is none.
    """
    lasting_ns = max(limits.LEASE_TARGET_NS, limits.HELD_COMMITS * commit_ns)
    wanted = max(1, min(limits.HELD_LEASES_MAX * limits.LEASE_UNITS_MAX, _used_in(lasting_ns, pace_per_s)))
    return wanted if left_units is None else min(wanted, share_of(left_units))


def _used_in(time_ns: int, pace_per_s: float) -> int:
    return int(pace_per_s * time_ns / 1e9)


def share_of(left_units: int) -> int:
    """The most that one lease may take of what is left of a limit, beyond a call's own units."""
    return left_units // limits.LEASE_SHARE
