"""A device under any sequence of clock settings, reboots, calls, folds and syncs: what must hold all through it.

`tests/core/test_clock_machine.py` does so for the clock's rules; here it is about what a device then admits, what
its records and batches say, and what the vendor accepts.
"""

import os
import tempfile
from pathlib import Path

from device_life import DAY_S, HOUR_S, WINDOW_S, YEAR_S, Life
from device_site import MUL, NS, Site, records
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meterkit.exchange import open_batch

EXAMPLES = os.environ.get("METERKIT_TEST_EXAMPLES")  # so many other lives, instead of always the same
LIFE_S, GRACE_S = 4 * DAY_S, DAY_S
AHEAD_S = 290  # the most that a clock here is ahead without being ahead by days
OFFSETS_S = (0, 1, -1, -100, -200, AHEAD_S, -DAY_S, 2 * DAY_S, 10 * YEAR_S)

spans = st.sampled_from([1, 60, WINDOW_S, HOUR_S, 7 * HOUR_S, DAY_S, 3 * DAY_S])


class ClockedDevice(RuleBasedStateMachine):
    """A device, its owner who sets its clock as he likes, and a vendor who knows the time."""

    @initialize()
    def begin(self):
        self.directory = tempfile.TemporaryDirectory()
        self.site = Site(Path(self.directory.name) / "device")
        self.life = Life(self.site, MUL, life_s=LIFE_S, grace_s=GRACE_S)
        self.beside = self.site.open()
        self.time = self.life.time
        self.honest = True
        self.least_s = self.issued_s = self.time.now_s  # `least_s`: signed, and what it has run since
        self.vouched_s = self.checked = self.recorded = 0

    def teardown(self):
        if hasattr(self, "site"):
            self.life.hand_over()
            self.site.close()
            self.directory.cleanup()

    @rule(by=spans)
    def time_passes(self, by):
        self.time.run_on(by)
        self.least_s += by

    @rule(offset=st.sampled_from(OFFSETS_S))
    def somebody_sets_the_clock(self, offset):
        self.time.wall_ns = self.time.true_ns + offset * NS
        self.honest = self.honest and offset == 0
        self.time_passes(1)

    @rule(off=spans.filter(lambda span: span >= 60), battery=st.booleans())
    def reboot(self, off, battery):
        self.beside.close()
        self.life.reboot(off, wall_s=None if battery else 30)
        self.beside = self.site.open()
        self.least_s += self.time.boot_ns // NS

    @rule(times=st.integers(1, 3))
    def use(self, times):
        ends_s = self.issued_s + LIFE_S + GRACE_S
        code = self.life.use(times)
        if self.least_s >= ends_s:
            assert code is not None
        if self.honest and self.time.now_s + AHEAD_S < ends_s:
            assert code is None
        if code is not None:
            self.time_passes(1)  # so long is a denial remembered

    @rule(beside=st.booleans())
    def somebody_folds(self, beside):
        device = self.beside if beside else self.life.device
        (text,) = device.make_batches()
        through = open_batch(text, lambda _: device.keys.sign.verify_key)[1].through
        assert through <= self.time.now_s + AHEAD_S
        self.vouched_s = max(self.vouched_s, through)
        self.checked = self.check_records()

    @rule(renew=st.booleans())
    def sync(self, renew):
        models = [MUL] if renew else []
        self.life.hand_over(*models, **({"life_s": LIFE_S, "grace_s": GRACE_S} if renew else {}))
        now_s = self.time.now_s
        self.least_s = max(self.least_s, now_s)
        self.issued_s = now_s if renew else self.issued_s
        self.honest = self.honest or self.time.wall_ns == self.time.true_ns
        self.time_passes(1)

    def check_records(self) -> int:
        """Judge the records that are new; gives how many there are now."""
        found = records(self.life.device)
        for record in found[self.checked :]:
            if record["kind"] != "usage":
                continue
            start_s = record["window"] * WINDOW_S
            assert start_s >= self.vouched_before
            assert record["provisional"] or start_s <= self.time.now_s + AHEAD_S
            assert set(record["flags"]) <= {"grace"}
            self.recorded += record["units"]
        return len(found)

    @invariant()
    def what_is_recorded_was_used_and_no_batch_had_vouched_for_its_window(self):
        if hasattr(self, "site"):
            self.vouched_before = self.vouched_s
            self.checked = self.check_records()
            assert self.recorded <= len(self.life.used)


ClockedDevice.TestCase.settings = settings(
    max_examples=int(EXAMPLES or 30), stateful_step_count=30, derandomize=EXAMPLES is None
)
TestClockedDevice = ClockedDevice.TestCase
