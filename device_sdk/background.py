"""Syncing in the background: one thread that hands over what was used, now and then, and bothers nobody.

It holds its device weakly, waits as the device's clocks do, and lets no exception out. Inference does not wait for
it: nothing is locked while the network is.
"""

from __future__ import annotations

import logging  # noqa: F401 - it, too, wants to be told of forks: it must begin to before one waits in `_LOADING`
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device_sdk import denial_hook, exchanging, schedule, transport  # noqa: F401 - no fork may fall into importing it
from device_sdk.inbox import Outcome
from device_sdk.transport import Transport
from meterkit import signing
from meterkit.clocks import NS
from meterkit.errors import DeviceError, TransportError

if TYPE_CHECKING:  # the device has its background, and that only a device to look after
    from device_sdk.device import Device

LOOK_S = 10  # so often it sees what else was exchanged, that the device is gone, or that the system slept


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncAttempt:
    """What one sync came to: the outcomes of its replies, or the error; when it ended, seconds UTC by the wall
    clock; and after how many seconds the next is planned.

    An error's traceback is there for `on_sync` and gone afterwards: it would keep the device alive.
    """

    outcomes: tuple[Outcome, ...]
    error: BaseException | None
    at: int
    next_in_s: int


OnSync = Callable[[SyncAttempt], None]


class BackgroundSync:
    """What `Device.sync_in_background` gives. `last` is the last attempt, None before the first."""

    def __init__(
        self,
        device: Device,
        *,
        server: str | Transport | None,
        interval_s: int | None,
        on_sync: OnSync | None,
    ) -> None:
        if interval_s is not None and (type(interval_s) is not int or interval_s < 1):
            raise ValueError(f"interval_s is a whole number of seconds, 1 at least, not {interval_s!a}")
        self.last: SyncAttempt | None = None
        self._device = weakref.ref(device)
        self._clocks = device.counter.clocks
        self._server = server
        self._interval_s = interval_s
        self._on_sync = on_sync
        self._loaded = False
        self._failures = 0
        self._due_ns: int | None = None  # on the boot clock, which no one sets
        self._seen_at: int | None = None  # the plan that was seen last
        self._stopped = threading.Event()
        device.watch_forks(self)

    def start(self) -> None:
        """Begin. Where no thread can be had, `last` says so."""
        try:
            threading.Thread(target=self._run, name="meterkit-sync", daemon=True).start()
        except RuntimeError as fault:
            self._tell(SyncAttempt(outcomes=(), error=fault, at=self._wall_s(), next_in_s=0))

    def stop(self) -> None:
        """Begin no sync any more. One that is in flight goes on to its end; this does not wait for it."""
        self._stopped.set()

    def after_fork(self) -> None:
        """In the child, which has no such thread: the parent's may have been inside the event's lock."""
        self._stopped = threading.Event()
        self._stopped.set()

    def _run(self) -> None:
        delay_s: float | None = 0
        while delay_s is not None and not self._clocks.wait(self._stopped, delay_s):
            delay_s = self._tick_safely()

    def _tick_safely(self) -> float | None:
        """What is left to go wrong outside a sync, as where there is no memory for its outcome, is tried again."""
        try:
            return self.tick()
        except BaseException:  # noqa: BLE001 - and there is nothing left to tell it by
            return LOOK_S

    def tick(self) -> float | None:
        """Sync if it is time; gives the seconds after which to look again, None where the device is gone."""
        device = self._device()
        if device is None or device.counter.closed:
            return None
        outcomes: tuple[Outcome, ...] = ()
        error: BaseException | None = None
        due_s = 0
        try:
            left_s = self._left_s(device)
            if left_s > 0:
                return min(left_s, LOOK_S)
            outcomes, due_s = self._sync(device)
        except BaseException as fault:  # noqa: BLE001 - whatever a library raises here, the program goes on
            error = fault
        wait_s = self._plan(due_s, error)
        self._seen_at = _planned_at(device)
        self._tell(SyncAttempt(outcomes=outcomes, error=error, at=self._wall_s(), next_in_s=wait_s))
        return min(wait_s, LOOK_S)

    def _left_s(self, device: Device) -> float:
        """Seconds until it is time. What was exchanged beside this thread has made a new plan."""
        planned_at = _planned_at(device)
        if self._due_ns is None:
            due_s = device.exchanging.due_in_s(made_now=False)
            self._wait_for(schedule.first_wait_s(due_s, self._interval_s))
        elif planned_at != self._seen_at:
            due_s = device.exchanging.due_in_s(made_now=True)
            if due_s > 0:
                self._plan(due_s, None)
        self._seen_at = planned_at
        return (self._due_ns - self._clocks.boot_ns()) / NS if self._due_ns is not None else 0

    def _sync(self, device: Device) -> tuple[tuple[Outcome, ...], int]:
        """Sync; gives also in how many seconds the next is due: none if no reply or no new token came."""
        try:
            self._load()
            outcomes = tuple(device.sync(self._server))
            return outcomes, device.exchanging.due_in_s(made_now=True)
        finally:
            if device.counter.closed:  # meanwhile: then the ledger was opened once more
                device.close()

    def _load(self) -> None:
        """Import what a first sync imports, while nobody forks."""
        if self._loaded:
            return
        with _LOADING:
            signing.load()
            if self._server is None or isinstance(self._server, str):
                transport.load()
        self._loaded = True

    def _plan(self, due_s: int, error: BaseException | None) -> int:
        """Wait for what is due later; where it is still overdue, the sync has failed, whatever it came to."""
        if error is None and due_s > 0:
            self._failures = 0
            return self._wait_for(schedule.next_wait_s(due_s, self._interval_s))
        self._failures += 1
        asked_s = error.retry_after_s if isinstance(error, TransportError) else None
        return self._wait_for(schedule.retry_wait_s(self._failures, self._interval_s, retry_after_s=asked_s))

    def _wait_for(self, wait_s: int) -> int:
        self._due_ns = self._clocks.boot_ns() + wait_s * NS
        return wait_s

    def _tell(self, attempt: SyncAttempt) -> None:
        self.last = attempt
        if self._on_sync is not None:
            try:
                self._on_sync(attempt)
            except BaseException as fault:  # noqa: BLE001 - reported as the interpreter reports such
                denial_hook.report(fault)
        _forget_frames(attempt.error)

    def _wall_s(self) -> int:
        return self._clocks.wall_ns() // NS


def _planned_at(device: Device) -> int | None:
    """The instant of the plan, as a mark of it; None where it cannot be read."""
    try:
        return device.exchanging.schedule.next_sync_at
    except DeviceError:
        return None


def _forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and of those that it came from: their frames hold the device."""
    left, seen = [error], set[int]()
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            BaseException.with_traceback(each, None)
            left += [each.__cause__, each.__context__]


# A child made while a thread imports a module finds it half made, its lock held by a thread that is not there, and
# waits for it for ever. What a first sync imports, this thread imports at a moment that no program chooses.
_LOADING = threading.RLock()
os.register_at_fork(before=_LOADING.acquire, after_in_parent=_LOADING.release, after_in_child=_LOADING.release)
