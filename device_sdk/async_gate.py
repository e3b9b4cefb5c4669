"""Admit → run → count for calls that answer on another thread: one locked cell for all of a session's.

ONNX Runtime calls back on threads of its own, each time with fresh thread-locals, so that a cell a thread, as the
other gates have, cannot be. What is counted here is in flight from its admission until its callback.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from device_sdk.cells import Cell
from device_sdk.counter import Counter
from device_sdk.meters import MeterCount
from meterkit.errors import LedgerError

Callback = Callable[[Any, Any, str], Any]


class _SharedCell:
    """A cell, and the units of all calls in flight that it will count."""

    __slots__ = ("cell", "in_flight")

    def __init__(self, cell: Cell, in_flight: int) -> None:
        self.cell = cell
        self.in_flight = in_flight

    def start(self, units: int) -> None:
        self.in_flight += units
        self.cell.start(self.in_flight)


class Ticket:
    """One call in flight: its units, and the cell that will count them."""

    __slots__ = ("is_open", "shared", "units")

    def __init__(self, shared: _SharedCell, units: int) -> None:
        self.shared = shared
        self.units = units
        self.is_open = True


class AsyncGate:
    """The gate of one session's `run_async`. It may be used from any thread, and takes its lock for moments, but
    for those at which a call must wait for a commit.
    """

    def __init__(self, counter: Counter, count: MeterCount, digest: str) -> None:
        self._counter = counter
        self._count = count
        self._digest = digest
        self._lock = threading.Lock()
        self._shared: _SharedCell | None = None

    def admit(self, units: int) -> Ticket:
        """Admit one call; raises what `Counter.admit` raises."""
        with self._lock:
            shared = self._shared
            if shared is None or not self._take(shared, units):
                shared = self._shared = self._renew(shared, units)
            return Ticket(shared, units)

    def _take(self, shared: _SharedCell, units: int) -> bool:
        shared.start(units)  # before the clock is asked, as in the other gates
        lease = self._count.take(units, self._counter.clocks.boot_ns())
        if lease is not None and lease.standing == shared.cell.standing:
            shared.cell.admit(shared.in_flight, lease.deadline_ns)
            return True
        if lease is not None:
            self._count.give_back(units)
        shared.start(-units)
        return False

    def _renew(self, shared: _SharedCell | None, units: int) -> _SharedCell:
        """Calls in flight keep the cell that they were admitted into, and with it their window."""
        cell = shared.cell if shared is not None and not shared.in_flight else None
        admitted = self._counter.admit(self._count, self._digest, cell, units)
        return _SharedCell(admitted.cell, units)

    def settle(self, ticket: Ticket, *, answered: bool) -> None:
        """Count a call whose answer is about to be delivered, or give back what a failed one took.

        Raises:
            LedgerError: `ledger_unwritable` where the meter counts strictly and the count cannot be made durable;
                it is counted all the same.
        """
        with self._lock:
            if not ticket.is_open:
                return
            ticket.is_open = False
            shared = ticket.shared
            if answered:
                shared.cell.count(ticket.units)
            else:
                self._count.give_back(ticket.units)
            shared.start(-ticket.units)
        if answered and self._count.exact:
            self._counter.flush_cell(shared.cell)

    def settling(self, ticket: Ticket, callback: Callback) -> Callback:
        """The callback to give to ONNX Runtime: it settles the call, then hands over what came."""

        def settled(results: Any, user_data: Any, err: str) -> None:
            try:
                self.settle(ticket, answered=not err)
            except LedgerError as fault:
                results, err = [], str(fault)
            callback(results, user_data, err)

        return settled
