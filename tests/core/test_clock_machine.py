"""Clocks under any sequence of settings, reboots and signed times: what must hold through all of it."""

from core_world import BOOT, NOW, empty_chain
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meterkit import ledger, limits, usage
from meterkit.clocks import (
    NS,
    Clock,
    ClockEvent,
    Instant,
    Reading,
    certain_ns,
    mend,
    observe,
    raise_signed,
    receipted,
)

seconds = st.integers(0, 40 * 86_400) | st.integers(0, 400)
shifts = (
    st.integers(-400, 400) | st.integers(-40 * 86_400, 40 * 86_400) | st.sampled_from([-NOW, 10 * 365 * 86_400])
)
fractions = st.integers(0, NS - 1)


class Device(RuleBasedStateMachine):
    """A device, its owner who sets its clock as he likes, and a server that signs the true time."""

    @initialize(offset=shifts)
    def begin(self, offset):
        self.true_ns = NOW * NS
        self.wall_ns = max(0, self.true_ns + offset * NS)
        self.boot_ns, self.boots = 100 * NS, 0
        self.clock = Clock()
        self.now: Instant | None = None
        self.gone_back_s = 0.0
        self.certain_before = None
        self.sync()

    def reading(self) -> Reading:
        return Reading(wall_ns=self.wall_ns, boot_ns=self.boot_ns, boot=f"{self.boots:08}{BOOT[8:]}")

    def look(self):
        before, then = self.now, self.clock
        self.clock, self.now, events = observe(self.clock, self.reading())
        self.check_events(events)
        if before is not None and not then.provisional:
            # What runs, runs on: nobody gains by setting a clock, whichever way.
            since_ns = self.boot_ns - (before.boot_ns if self.now.boot == before.boot else 0)
            assert self.now.effective_ns >= before.effective_ns + since_ns
        assert self.now.effective_ns >= certain_ns(self.clock, self.reading())
        assert self.now.effective_ns == max(self.wall_ns, certain_ns(self.clock, self.reading()))
        assert self.now.suspect == (self.clock.back_s > limits.CLOCK_BACK_MAX_S)
        assert self.clock.back_s >= then.back_s

    def check_events(self, events: tuple[ClockEvent, ...]):
        for event in events:  # whatever happens to a clock can be written into a ledger
            members = usage.clock_changed(from_s=event.from_s, to_s=event.to_s, reason=event.reason)
            ledger.append(empty_chain().position, members, time=self.now.effective_s, boot=self.now.boot)

    @rule(by=seconds, fraction=fractions)
    def time_passes(self, by, fraction):
        for name in ("true_ns", "wall_ns", "boot_ns"):
            setattr(self, name, getattr(self, name) + by * NS + fraction)
        self.look()

    @rule(shift=shifts, fraction=fractions)
    def somebody_sets_the_clock(self, shift, fraction):
        before_ns = self.wall_ns
        self.wall_ns = max(0, self.wall_ns + shift * NS + fraction)
        self.gone_back_s += max(0, before_ns - self.wall_ns) / NS
        self.look()

    @rule(off=seconds, boot=st.integers(0, 300), keeps_time=st.booleans())
    def reboot(self, off, boot, keeps_time):
        self.true_ns += (off + boot) * NS
        self.wall_ns = self.wall_ns + (off + boot) * NS if keeps_time else boot * NS
        self.boot_ns, self.boots = boot * NS, self.boots + 1
        self.look()

    @rule()
    def sync(self):
        self.clock = raise_signed(self.clock, self.reading(), self.true_ns // NS)
        self.look()

    @rule(age=seconds)
    def an_old_receipt_is_taken_again(self, age):
        self.clock = raise_signed(self.clock, self.reading(), max(0, self.true_ns // NS - age))
        self.look()

    @rule()
    def a_receipt_covers_everything(self):
        self.clock = receipted(self.clock, self.clock.back_seq)
        self.gone_back_s = 2.0  # what the dead band still holds is counted with the next step
        assert self.clock.back_s == 0

    @precondition(lambda self: self.clock.floor_ns is not None)
    @rule()
    def the_server_mends_the_clock(self):
        self.clock, events = mend(self.clock, self.reading(), self.true_ns // NS)
        self.now, self.certain_before = None, None
        self.look()
        self.check_events(events)

    @invariant()
    def certain_time_never_goes_back(self):
        certain = certain_ns(self.clock, self.reading())
        assert self.certain_before is None or certain >= self.certain_before
        self.certain_before = certain

    @invariant()
    def nobody_is_blamed_for_more_than_was_done(self):
        """Steps back that are counted are steps that were made; an unset or mended clock made none."""
        assert self.clock.back_s <= self.gone_back_s


Device.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestDevice = Device.TestCase
