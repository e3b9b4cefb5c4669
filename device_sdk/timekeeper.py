"""What the device knows of time, kept in its ledger: read, judged and written in one transaction."""

from __future__ import annotations

from device_sdk.ledger_transaction import Transaction
from device_sdk.readings import Clocks
from meterkit import clocks, limits, usage
from meterkit.clocks import Clock, ClockEvent, Instant
from meterkit.errors import LedgerError


def load(tx: Transaction) -> Clock:
    """The clock as it was stored last."""
    stored = tx.get_state("clock")
    try:
        return Clock(**stored) if stored else Clock()
    except TypeError:
        raise LedgerError("ledger_damaged", "state clock is not one") from None


def store(tx: Transaction, clock: Clock) -> None:
    """Store the clock, with whatever else this transaction writes."""
    tx.set_state("clock", clock._asdict())


def observe(tx: Transaction, system: Clocks) -> Instant:
    """Read the system's clocks, judge them, record what changed, and store what is known now.

    Where time only went on as it does, a transaction that is only looking stores it once a window.
    """
    before = load(tx)
    clock, now, events = clocks.observe(before, system.read())
    clock = record(tx, clock, now, events)
    if _went_on(before, clock):
        tx.note_state("clock", clock._asdict())
    else:
        store(tx, clock)
    return now


def _went_on(before: Clock, clock: Clock) -> bool:
    """Whether nothing is new but that some time has passed, and both clocks agree how much."""
    if before.floor_ns is None or clock.floor_ns is None:
        return before == clock
    since_ns = clock.boot_ns - before.boot_ns
    drift_ns = clock.floor_ns - before.floor_ns - since_ns
    same = clock._replace(floor_ns=before.floor_ns, boot_ns=before.boot_ns) == before
    return same and 0 <= since_ns < limits.WINDOW_S * clocks.NS and abs(drift_ns) < clocks.NS


def record(tx: Transaction, clock: Clock, now: Instant, events: tuple[ClockEvent, ...]) -> Clock:
    """Append what happened to the clock. Before the genesis there is nothing to append to."""
    for event in events:
        members = usage.clock_changed(from_s=event.from_s, to_s=event.to_s, reason=event.reason)
        entry = tx.append(members, time=now.effective_s, boot=now.boot)
        if event.reason == "back":
            clock = clock._replace(back_seq=entry.seq)
    return clock


def raise_signed(tx: Transaction, system: Clocks, signed_s: int) -> None:
    """Raise the floor to a time that the server signed."""
    store(tx, clocks.raise_signed(load(tx), system.read(), signed_s))


def mend(tx: Transaction, system: Clocks, floor_s: int, *, serial: int) -> None:
    """Set the floor where a token says so, downward too: once, however often that token is handed over."""
    if serial <= (tx.get_state("mended") or 0):
        return
    tx.set_state("mended", serial)
    reading = system.read()
    clock, events = clocks.mend(load(tx), reading, floor_s)
    _, now, _ = clocks.observe(clock, reading)
    store(tx, record(tx, clock, now, events))


def carry_over(tx: Transaction, seq: int) -> None:
    """In a new epoch, steps back of the old one wait for the receipt of a record of the new one."""
    store(tx, load(tx)._replace(back_seq=seq))


def certain_s(tx: Transaction) -> int:
    """The time that had certainly come when the clock was observed last; 0 before anything was signed."""
    floor_ns = load(tx).floor_ns
    return 0 if floor_ns is None else floor_ns // clocks.NS


def receipted(tx: Transaction, seq: int) -> None:
    """Forget the steps back that a receipt covers."""
    store(tx, clocks.receipted(load(tx), seq))
