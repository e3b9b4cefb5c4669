"""Admit → run → count: the way of one call, for one session and one thread. It cannot reach the network.

The count is written after the model has answered and before the answer is returned: a failed run counts
nothing, a delivered answer is always counted, and a kill in between leaves the one call in flight ahead.
Nothing here takes a shared lock, touches SQLite or parses anything, until an edge or an empty lease sends it
to `Counter.admit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from device_sdk.cells import HALF, Cell
from device_sdk.counter import Counter
from device_sdk.leases import NO_SHARE, NOTHING, Lease, Take
from device_sdk.meters import MeterCount

Run = Callable[[Any, Any, Any], Any]
Measure = Callable[[Any], int]

_SHARE_OF_LEASE = 8  # a thread sets aside at most this fraction of a lease for calls of one size


def call_gate(counter: Counter, count: MeterCount, digest: str, run: Run) -> Run:
    """Gate a run path whose unit is the call. The result belongs to the thread that made it."""
    boot_ns = counter.clocks.boot_ns
    cell: Cell | None = None
    halves: Any = [0, 0]
    at = started = half = deadline_ns = 0
    take_one: Take = NOTHING

    def renew() -> int:
        nonlocal cell, halves, at, started, half, deadline_ns, take_one
        admitted = counter.admit(count, digest, cell, 1)
        cell, deadline_ns, take_one = admitted.cell, admitted.deadline_ns, admitted.lease.take_one
        halves, at, started, half = cell.halves, 2 * cell.at, 2 * cell.at + 2, cell.word & HALF
        return half + 1

    def gated(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        nonlocal half
        # Started is said before the clock is asked: whoever sees nothing started sees no older window later.
        halves[started] = after = half + 1
        try:
            if boot_ns() >= deadline_ns:
                after = renew()
            else:
                take_one()
        except StopIteration:
            after = renew()
        try:
            answer = run(output_names, input_feed, run_options)
        except BaseException:
            count.give_back(1)
            halves[started] = half
            raise
        halves[at] = half = after
        return answer

    return gated


def item_gate(counter: Counter, count: MeterCount, digest: str, run: Run, measure: Measure) -> Run:
    """Gate a run path whose unit is the item: a call is admitted with all its items, or not at all."""
    boot_ns = counter.clocks.boot_ns
    cell: Cell | None = None
    lease: Lease | None = None
    words: Any = [0, 0]
    at = started = word = deadline_ns = 0
    share, share_units, take = NO_SHARE, 0, NO_SHARE.take

    def fetch_share(units: int) -> bool:
        """Set aside calls of this size from the lease in hand, more each time, and take the first of them."""
        nonlocal share, share_units, take
        if lease is None or not units or boot_ns() >= deadline_ns:
            return False
        calls = 1
        if units == share_units:
            calls = max(1, min(2 * share.calls, lease.units // (_SHARE_OF_LEASE * units)))
        else:
            lease.put_back(share)
        share = lease.share(units, calls)
        share_units, take = units, share.take
        return share.take_first()

    def renew(units: int) -> int:
        nonlocal cell, lease, words, at, started, word, deadline_ns
        if not fetch_share(units):
            admitted = counter.admit(count, digest, cell, units)
            cell, lease, deadline_ns = admitted.cell, admitted.lease, admitted.deadline_ns
            words, at, started, word = cell.words, cell.at, cell.at + 1, cell.word
        return word + units

    def gated(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        nonlocal word
        units = measure(input_feed)
        words[started] = after = word + units
        try:
            if units != share_units or boot_ns() >= deadline_ns:
                after = renew(units)
            else:
                take()
        except StopIteration:
            after = renew(units)
        try:
            answer = run(output_names, input_feed, run_options)
        except BaseException:
            count.give_back(units)
            words[started] = word
            raise
        words[at] = word = after
        return answer

    return gated


def strict_gate(counter: Counter, count: MeterCount, digest: str, run: Run, measure: Measure) -> Run:
    """Gate a run path so that each unit is durable before its answer is delivered.

    Each call takes a commit before it, for a lease of just its units, and a flush of its cell after it: a power
    loss leaves nothing unsettled but calls in flight. Where the flush fails, the call is counted, and its answer
    withheld (`ledger_unwritable`).
    """
    count.exact = True
    cell: Cell | None = None

    def gated(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        nonlocal cell
        units = measure(input_feed)
        cell = counter.admit(count, digest, cell, units).cell
        try:
            answer = run(output_names, input_feed, run_options)
        except BaseException:
            count.give_back(units)
            cell.start(0)
            raise
        cell.count(units)
        counter.flush_cell(cell)
        return answer

    return gated
