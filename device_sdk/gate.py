"""Admit → run → count: the way of one call, for one session and one thread. It cannot reach the network.

The count is written after the model has answered and before the answer is returned: a failed run counts
nothing, a delivered answer is always counted, and a kill in between leaves the one call in flight ahead.
Nothing here takes a shared lock, touches SQLite or parses anything, until an edge or an empty lease sends it
to `Counter.admit`.
"""

from collections.abc import Callable
from typing import Any

from device_sdk.cells import Cell
from device_sdk.counter import Counter
from device_sdk.leases import MeterCount

Run = Callable[[Any, Any, Any], Any]
Measure = Callable[[Any], int]


_NO_ITEMS = (0).__gt__  # no lease yet holds any number of units: 0 > units is never true
_NOTHING_LEASED = iter(()).__next__


def call_gate(counter: Counter, count: MeterCount, digest: str, run: Run) -> Run:
    """Gate a run path whose unit is the call. The result belongs to the thread that made it."""
    boot_ns = counter.clocks.boot_ns
    cell: Cell | None = None
    words: Any = [0, 0]
    at = word = deadline_ns = 0
    take_one: Callable[[], Any] = _NOTHING_LEASED

    def renew() -> None:
        nonlocal cell, words, at, word, deadline_ns, take_one
        admitted = counter.admit(count, digest, cell, 1)
        cell, deadline_ns, take_one = admitted.cell, admitted.deadline_ns, admitted.lease.take_one
        words, at, word = cell.words, cell.at, cell.word

    def gated(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        nonlocal word
        # Started is said before the clock is asked: whoever sees nothing started sees no older window later.
        words[at + 1] = word + 1
        leased = boot_ns() < deadline_ns
        if leased:
            try:
                take_one()
            except StopIteration:
                leased = False
        if not leased:
            renew()
        try:
            answer = run(output_names, input_feed, run_options)
        except BaseException:
            count.give_back(1)
            words[at + 1] = word
            raise
        word += 1
        words[at] = word
        return answer

    return gated


def item_gate(counter: Counter, count: MeterCount, digest: str, run: Run, measure: Measure) -> Run:
    """Gate a run path whose unit is the item: a call is admitted with all its items, or not at all."""
    boot_ns = counter.clocks.boot_ns
    cell: Cell | None = None
    words: Any = [0, 0]
    at = word = deadline_ns = 0
    take: Callable[[int], bool] = _NO_ITEMS

    def renew(units: int) -> None:
        nonlocal cell, words, at, word, deadline_ns, take
        admitted = counter.admit(count, digest, cell, units)
        cell, deadline_ns, take = admitted.cell, admitted.deadline_ns, admitted.lease.take
        words, at, word = cell.words, cell.at, cell.word

    def gated(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        nonlocal word
        units = measure(input_feed)
        words[at + 1] = word + units
        if boot_ns() >= deadline_ns or not take(units):
            renew(units)
        try:
            answer = run(output_names, input_feed, run_options)
        except BaseException:
            count.give_back(units)
            words[at + 1] = word
            raise
        word += units
        words[at] = word
        return answer

    return gated
