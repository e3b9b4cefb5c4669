"""The keeper: one thread that sees to a process's leases and cells, so that no call waits for a commit.

It fetches units ahead of need, writes cells to disk, gives back what nobody uses, forgets what was acknowledged
long ago, and sees when another process has installed something. It decides nothing: every edge is kept by the call
that comes to it, and where the keeper is late or its commit fails, a call does the same for itself.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from device_sdk import granting, leases, timekeeper
from meterkit import limits
from meterkit.clocks import NS
from meterkit.errors import MeterkitError

if TYPE_CHECKING:  # the counter has a keeper, and the keeper only a counter to look after
    from device_sdk.counter import Counter
    from device_sdk.meters import MeterCount
    from meterkit.licenses import Meter

    Expected = tuple[Meter, str]  # and the digest of the model

_TICK_S = 1.0
_TICK_MIN_S = 0.002
_FIRST_LEASE_S = 0.01
_LOW = 4  # a lease is low when a fourth of its size is left


class Keeper:
    """Started with a process's first session; it does not keep the counter, or the process, alive."""

    def __init__(self, counter: Counter) -> None:
        self._counter = weakref.ref(counter)
        self._wait = counter.clocks.wait
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, expected: Expected | None = None) -> None:
        """Begin, unless it has begun. Where no thread can be had, calls do for themselves what it would do; the
        next one that takes a lease tries again.

        It begins by leasing for the first call of what is expected. That is waited for where the disk is quick:
        beside ONNX Runtime, which lets no other thread compute and holds the processors, it would take longer.
        """
        if self._thread is not None:
            return
        leased = threading.Event()
        arguments = (expected, leased)
        self._thread = threading.Thread(target=self._run, args=arguments, name="meterkit-keeper", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            return
        if expected is not None:
            self._wait(leased, _FIRST_LEASE_S)

    def stop(self) -> None:
        """Look after nothing any more."""
        self._stopped.set()

    def _run(self, expected: Expected | None, leased: threading.Event) -> None:
        if expected is not None and not self._wait(self._stopped, 0):
            self._lease_first(expected)
        leased.set()
        delay_s = _TICK_S
        while not self._wait(self._stopped, delay_s):
            counter = self._counter()
            if counter is None or counter.closed:
                return
            delay_s = tick(counter)
            del counter

    def _lease_first(self, expected: Expected) -> None:
        counter = self._counter()
        if counter is not None:
            counter.lease_first(*expected)


def tick(counter: Counter) -> float:
    """Look after everything once; gives the seconds after which to look again.

    What the ledger refuses now is tried again then: it is no call's business.
    """
    delay_s = _TICK_S
    try:
        counter.end_stale_leases()
        for count in counter.meters():
            delay_s = min(delay_s, _look_after(counter, count))
        _keep_on_disk(counter)
        _forget(counter)
    except MeterkitError:
        return _TICK_S
    return delay_s


def _look_after(counter: Counter, count: MeterCount) -> float:
    """Extend a lease that is low, return one that is idle; gives the seconds until it may be low."""
    now_ns = counter.clocks.boot_ns()
    lease = count.lease
    if lease is None or now_ns >= lease.deadline_ns:
        return _TICK_S
    used = count.measure(now_ns)
    unused = count.unused()
    wanted = leases.held(left_units=None, pace_per_s=count.pace_per_s, commit_ns=counter.commit_ns)
    if lease.scarce:
        if not used and unused:
            _return_lease(counter, count)
    elif not used and (unused > wanted or count.is_untouched()):
        _return_lease(counter, count)
    elif unused * _LOW <= wanted:
        _extend_lease(counter, count)
        unused = count.unused()
    if not count.pace_per_s:
        return _TICK_S
    return max(_TICK_MIN_S, (unused - wanted / _LOW) / count.pace_per_s)


def _extend_lease(counter: Counter, count: MeterCount) -> None:
    """Fetch units ahead of need, so that no call waits for a commit."""
    with counter.lock:
        if counter.closed or count.exact or count.lease is None or count.denied is not None:
            return
        with counter.write_for(count, taken=0) as (tx, now):
            units = granting.extend(
                tx,
                counter.holder,
                counter.own,
                count,
                now=now,
                commit_ns=counter.commit_ns,
                connection=counter.store.connections,
            )
        count.add_ahead(units)


def _return_lease(counter: Counter, count: MeterCount) -> None:
    """Give unused units back to the ledger: nobody seems to need them here."""
    with counter.lock:
        if counter.closed or count.lease is None:
            return
        count.end_lease()
        with counter.write_for(count, taken=0):
            pass


def _forget(counter: Counter) -> None:
    """Once a window, see whether there are files and records to be forgotten; in small steps, a tick each."""
    if 0 <= counter.clocks.boot_ns() - counter.pruned_ns < limits.WINDOW_S * NS:
        return
    with counter.transaction() as tx:
        tx.only_looking = True
        if not counter.forget(tx):
            counter.pruned_ns = counter.clocks.boot_ns()


def _keep_on_disk(counter: Counter) -> None:
    """Flush cells that changed, at most once a second, and with them what is known of the time."""
    now_ns = counter.clocks.boot_ns()
    if 0 <= now_ns - counter.flushed_ns < limits.CELL_FLUSH_NS:  # below 0, the boot clock itself went back
        return
    if counter.flush() and not 0 <= now_ns - counter.committed_ns < NS:
        with counter.transaction() as tx:
            timekeeper.observe(tx, counter.clocks)
