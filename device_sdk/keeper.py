"""The keeper: one thread that sees to a process's leases and cells, so that no call waits for a commit.

It fetches units ahead of need, writes cells to disk, gives back what nobody uses, and sees when another process
has installed something. It decides nothing: every edge is kept by the call that comes to it, and where the keeper
is late or its commit fails, a call does the same for itself.
"""

import threading
import weakref
from typing import TYPE_CHECKING

from device_sdk import leases
from meterkit import limits
from meterkit.clocks import NS
from meterkit.errors import MeterkitError

if TYPE_CHECKING:  # the counter has a keeper, and the keeper only a counter to look after
    from device_sdk.counter import Counter
    from device_sdk.meters import MeterCount

_TICK_S = 1.0
_TICK_MIN_S = 0.002
_LOW = 4  # a lease is low when a fourth of its size is left


class Keeper:
    """Started with a process's first lease; it does not keep the counter, or the process, alive."""

    def __init__(self, counter: "Counter") -> None:
        self._counter = weakref.ref(counter)
        self._wait = counter.clocks.wait
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="meterkit-keeper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look after nothing any more."""
        self._stopped.set()

    def _run(self) -> None:
        delay_s = _TICK_S
        while not self._wait(self._stopped, delay_s):
            counter = self._counter()
            if counter is None or counter.closed:
                return
            delay_s = tick(counter)
            del counter


def tick(counter: "Counter") -> float:
    """Look after everything once; gives the seconds after which to look again.

    What the ledger refuses now is tried again then: it is no call's business.
    """
    delay_s = _TICK_S
    try:
        if counter.holder.is_stale():
            counter.end_leases()
        for count in counter.meters():
            delay_s = min(delay_s, _look_after(counter, count))
        _keep_on_disk(counter)
    except MeterkitError:
        return _TICK_S
    return delay_s


def _look_after(counter: "Counter", count: "MeterCount") -> float:
    """Extend a lease that is low, return one that is idle; gives the seconds until it may be low."""
    now_ns = counter.clocks.boot_ns()
    lease = count.lease
    if lease is None or now_ns >= lease.deadline_ns:
        return _TICK_S
    used = count.measure(now_ns)
    unused = count.unused()
    wanted = leases.size(units=1, left_units=None, pace_per_s=count.pace_per_s, commit_ns=counter.commit_ns)
    if lease.scarce:
        if not used and unused:
            counter.return_lease(count)
    elif not used and unused > wanted:
        counter.return_lease(count)
    elif unused * _LOW <= wanted:
        counter.extend_lease(count)
        unused = count.unused()
    if not count.pace_per_s:
        return _TICK_S
    return max(_TICK_MIN_S, (unused - wanted / _LOW) / count.pace_per_s)


def _keep_on_disk(counter: "Counter") -> None:
    """Flush cells that changed, at most once a second, and with them what is known of the time."""
    now_ns = counter.clocks.boot_ns()
    if now_ns - counter.flushed_ns < limits.CELL_FLUSH_NS:
        return
    if counter.flush() and now_ns - counter.committed_ns >= NS:
        counter.keep_time()
