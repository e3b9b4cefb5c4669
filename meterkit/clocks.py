"""Judging instants: what time it certainly is, what the wall clock adds, and whether it was set back.

*Certain time* is the floor and what the boot clock (which counts suspend) has run since. *Effective time* is
the later of certain time and the wall clock. All of DESIGN §5, "The clock"; nothing here reads a clock.
"""

from __future__ import annotations

from meterkit import limits
from meterkit.tuples import NamedTuple

NS = 1_000_000_000
_DEAD_BAND_NS = 2 * NS  # rounding and NTP's small steps are no steps back
_END_NS = (limits.CELL_WINDOW_MAX + 1) * limits.WINDOW_S * NS - 1  # in 2448: no cell and no record can name later


class Reading(NamedTuple):
    """What the device's clocks show at one moment: wall and boot clock in nanoseconds, and the boot's id."""

    wall_ns: int
    boot_ns: int
    boot: str


class Clock(NamedTuple):
    """What is known of time, to be stored with every lease and fold.

    `floor_ns` was certain when the boot clock of `boot` stood at `boot_ns`; None before anything was signed.
    `behind_ns` is how far the wall clock was seen behind certain time; `back_s` sums its steps back, until a
    receipt covers the ledger record `back_seq`. `signed_s` is the newest signed time seen.
    """

    floor_ns: int | None = None
    boot: str = ""
    boot_ns: int = 0
    behind_ns: int = 0
    back_s: int = 0
    back_seq: int = 0
    signed_s: int = 0
    provisional: bool = False
    unset: bool = False


class Instant(NamedTuple):
    """The effective time of one moment, and how far it can be trusted."""

    effective_ns: int
    boot_ns: int
    boot: str
    provisional: bool = False
    suspect: bool = False

    @property
    def effective_s(self) -> int:
        """Whole seconds UTC."""
        return self.effective_ns // NS

    @property
    def window(self) -> int:
        """The 900-second window that the moment lies in."""
        return self.effective_s // limits.WINDOW_S

    def boot_ns_at(self, second: int) -> int:
        """Where the boot clock will stand at a later second, if nothing intervenes."""
        return self.boot_ns + second * NS - self.effective_ns


class ClockEvent(NamedTuple):
    """Something that the ledger must tell of the clock: it was set back or forward, unset, or mended."""

    reason: str
    from_s: int
    to_s: int


Observation = tuple[Clock, Instant, tuple[ClockEvent, ...]]


def certain_ns(clock: Clock, reading: Reading) -> int | None:
    """The time that has certainly come, or None before anything was signed."""
    if clock.floor_ns is None:
        return None
    since_ns = reading.boot_ns - clock.boot_ns if reading.boot == clock.boot else reading.boot_ns
    return min(clock.floor_ns + max(0, since_ns), _END_NS)


def _bounded(reading: Reading) -> Reading:
    """A wall clock that shows what cannot be written down shows the nearest that can."""
    return reading._replace(wall_ns=max(0, min(reading.wall_ns, _END_NS)))


def observe(clock: Clock, reading: Reading) -> Observation:
    """Judge one reading: the clock as known from now on, the instant, and what is to be recorded."""
    reading = _bounded(reading)
    certain = certain_ns(clock, reading)
    if certain is None:
        seen = clock._replace(boot=reading.boot, boot_ns=reading.boot_ns)
        return seen, _instant(reading, reading.wall_ns, seen), ()
    new_boot = reading.boot != clock.boot
    based = clock._replace(floor_ns=certain, boot=reading.boot, boot_ns=reading.boot_ns)
    if new_boot:
        based = based._replace(unset=False)
    if reading.wall_ns < certain:
        seen, events = _behind(based, reading, certain, new_boot=new_boot)
        return seen, _instant(reading, certain, seen), events
    seen, events = _ahead(based, reading, certain, new_boot=new_boot)
    return seen, _instant(reading, reading.wall_ns, seen), events


def _instant(reading: Reading, effective_ns: int, clock: Clock) -> Instant:
    return Instant(
        effective_ns=effective_ns,
        boot_ns=reading.boot_ns,
        boot=reading.boot,
        provisional=clock.provisional,
        suspect=clock.back_s > limits.CLOCK_BACK_MAX_S,
    )


def _behind(
    clock: Clock, reading: Reading, certain: int, *, new_boot: bool
) -> tuple[Clock, tuple[ClockEvent, ...]]:
    """The wall clock is behind certain time: unset since boot, undoing a provisional jump, or set back."""
    events: tuple[ClockEvent, ...] = ()
    behind_ns = certain - reading.wall_ns
    from_s, to_s = certain // NS, reading.wall_ns // NS
    if new_boot and to_s < clock.signed_s:
        event = ClockEvent(reason="unset", from_s=from_s, to_s=to_s)
        return clock._replace(unset=True, provisional=False, behind_ns=behind_ns), (event,)
    if clock.unset:
        return clock._replace(behind_ns=behind_ns), events
    if clock.provisional:
        events = (ClockEvent(reason="mended", from_s=from_s, to_s=to_s),)
        clock = clock._replace(provisional=False)
    step_ns = behind_ns - clock.behind_ns
    if step_ns >= _DEAD_BAND_NS:
        event = ClockEvent(reason="back", from_s=from_s, to_s=to_s)
        step_s = step_ns // NS  # the fraction stays to be counted with the next step
        stepped = clock._replace(behind_ns=clock.behind_ns + step_s * NS, back_s=clock.back_s + step_s)
        return stepped, (*events, event)
    return clock._replace(behind_ns=min(behind_ns, clock.behind_ns)), events


def _ahead(
    clock: Clock, reading: Reading, certain: int, *, new_boot: bool
) -> tuple[Clock, tuple[ClockEvent, ...]]:
    """The wall clock is at or ahead of certain time: it raises the floor, or is provisional."""
    ahead_ns = reading.wall_ns - certain
    trusted_s = limits.CLOCK_AGREE_S
    if new_boot and not clock.provisional:
        trusted_s = limits.CLOCK_JUMP_OFF_MAX_S
    from_s, to_s = certain // NS, reading.wall_ns // NS
    settled = clock._replace(behind_ns=0, unset=False)
    if clock.unset:  # a clock that was set at last: no jump, but only as certain as a boot's
        trusted_s = limits.CLOCK_JUMP_OFF_MAX_S
    if ahead_ns <= trusted_s * NS:
        raised = settled._replace(floor_ns=reading.wall_ns, provisional=False)
        if clock.provisional:
            return raised, (ClockEvent(reason="mended", from_s=from_s, to_s=to_s),)
        return raised, ()
    if clock.provisional:
        return settled, ()
    event = ClockEvent(reason="forward", from_s=from_s, to_s=to_s)
    return settled._replace(provisional=True), (event,)


def raise_signed(clock: Clock, reading: Reading, signed_s: int) -> Clock:
    """Raise the floor to a time that the server has signed; it never lowers it, and is no step back.

    At the very first signed time there is nothing to measure a jump from: a wall clock up to a day ahead
    is believed.
    """
    reading = _bounded(reading)
    certain = certain_ns(clock, reading)
    floor_ns = signed_s * NS
    if certain is None:
        if 0 <= reading.wall_ns - floor_ns <= limits.CLOCK_JUMP_OFF_MAX_S * NS:
            floor_ns = reading.wall_ns
    else:
        floor_ns = max(certain, floor_ns)
    behind_ns = max(0, floor_ns - reading.wall_ns)
    if certain is not None and reading.boot == clock.boot:
        # Forgive only what the raise itself did: a step back that nobody has observed yet is still to be counted.
        behind_ns = min(behind_ns, clock.behind_ns + floor_ns - certain)
    return clock._replace(
        floor_ns=floor_ns,
        boot=reading.boot,
        boot_ns=reading.boot_ns,
        behind_ns=behind_ns,
        signed_s=max(clock.signed_s, signed_s),
    )


def mend(clock: Clock, reading: Reading, floor_s: int) -> tuple[Clock, tuple[ClockEvent, ...]]:
    """Set the floor to a token's `time_floor`, downward too; the caller sees to it that it happens once."""
    reading = _bounded(reading)
    certain = certain_ns(clock, reading)
    mended = clock._replace(
        floor_ns=floor_s * NS,
        boot=reading.boot,
        boot_ns=reading.boot_ns,
        behind_ns=max(0, floor_s * NS - reading.wall_ns),
        signed_s=floor_s,
        provisional=False,
    )
    from_s = floor_s if certain is None else certain // NS
    return mended, (ClockEvent(reason="mended", from_s=from_s, to_s=floor_s),)


def receipted(clock: Clock, seq: int) -> Clock:
    """Forget steps back whose record a receipt covers: the server has been told."""
    if clock.back_s and seq >= clock.back_seq:
        return clock._replace(back_s=0)
    return clock
