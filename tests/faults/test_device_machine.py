"""Whatever happens to a device, in whatever order: what it counts is what truly happened, and no limit is passed.

Several processes use one device, under clocks that are set and power that is lost, with commits that fail and
replies that come late, twice, or never. `machine_life` plays it and knows what truly happened, `machine_checks`
says what must hold after every step. `METERKIT_TEST_EXAMPLES` sets how many lives are played.
"""

import gc
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machine_checks import Checks
from machine_life import BAD_FEEDS, FLAG, Life, terms
from machine_world import Process
from memory import in_memory
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from vendor import new_id

from meterkit.clocks import NS
from meterkit.exchange import Reply
from meterkit.licenses import Policy

EXAMPLES = os.environ.get("METERKIT_TEST_EXAMPLES")
DAY_S = 86_400
PROCESSES_MAX = 4
FAULTS_MAX = 2
LIFE_RECORDS_MIN = 6

which = st.integers(0, 3)
models = st.sampled_from(["mul", "rows"])
item_counts = st.lists(st.integers(0, 5) | st.just(40), min_size=1, max_size=6)
mul_limits = st.sampled_from([400, None, 40, 6, 0])
rows_limits = st.sampled_from([None, 300, 30])
tokens = st.fixed_dictionaries(
    {
        "policy": st.sampled_from([Policy(), Policy(), FLAG]),
        "life_s": st.sampled_from([3_600, 30 * DAY_S, DAY_S]),
        "grace_s": st.sampled_from([600, 0, 7 * DAY_S]),
    }
)
passing_s = st.sampled_from([1, 0.01, 30, 889, 890, 900, 3_600, DAY_S, 9 * DAY_S])
commit_faults = st.sampled_from(["before", "after", "at once", "killed before", "killed after"])

in_flight = precondition(lambda self: self.busy())


class DeviceMachine(RuleBasedStateMachine):
    """One device and everybody who uses it."""

    @initialize(mul_limit=mul_limits, rows_limit=rows_limits, token=tokens)
    def begin(self, mul_limit, rows_limit, token):
        self.directory = Path(tempfile.mkdtemp(dir=in_memory()))  # hundreds of commits
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "urandom", random.Random(0).randbytes)  # noqa: S311 - the same names every time
        gc.disable()  # a cell whose thread is gone is retired when it is collected: at the same step every time
        self.world = Life(self.directory, self.patch, terms(mul_limit, rows_limit), token)
        self.checks = Checks(self.world)
        self.revocations = 0

    def process(self, index: int) -> Process:
        """One of the processes; where all have ended, somebody begins one."""
        while not self.world.processes:
            self.world.open()
        return self.world.processes[index % len(self.world.processes)]

    def busy(self) -> list[Process]:
        return [each for each in [*self.world.processes, *self.world.closing] if each.tickets]

    # -- processes

    @precondition(lambda self: len(self.world.processes) < PROCESSES_MAX)
    @rule(strict=st.sampled_from([False, False, True]))
    def somebody_opens_it(self, strict):
        self.world.open(strict=strict)

    @rule(index=which, how=st.sampled_from([Life.close, Life.kill]))
    def somebody_ends(self, index, how):
        how(self.world, self.process(index))

    # -- calls

    @rule(index=which, number=st.integers(0, 1), times=st.integers(1, 25))
    def calls(self, index, number, times):
        process = self.process(index)
        for _ in range(times):
            if self.world.call(process, "mul", number, 1) is not None:
                break

    @rule(index=which, number=st.integers(0, 1), counts=item_counts)
    def calls_of_items(self, index, number, counts):
        process = self.process(index)
        for units in counts:
            if self.world.call(process, "rows", number, units) is not None:
                break

    @rule(index=which, name=models, times=st.integers(1, 3))
    def calls_in_threads(self, index, name, times):
        process = self.process(index)
        for _ in range(times):
            if self.world.call_in_thread(process, name, 1) is not None:
                break

    def call_times(self, process: Process, times: int) -> None:
        for _ in range(times):
            if not process.ended:
                self.world.call(process, "mul", 0, 1)

    @rule(index=which, edge=st.sampled_from(["window", "exp", "grace"]), fault=st.none() | commit_faults)
    def calls_over_an_edge(self, index, edge, fault):
        process = self.process(index)
        seconds = self.world.seconds_to(edge)
        if not 0 < seconds < 40 * DAY_S:
            return
        self.world.time.run_on(seconds - min(5, seconds - 1))
        self.call_times(process, 3)
        if fault is not None:
            self.a_commit_will_fail(fault)
        self.world.time.run_on(min(5, seconds - 1))
        self.call_times(process, 2)

    @precondition(lambda self: self.world.clock_right and not self.world.happened & {"faults", "tampered"})
    @rule(index=which, name=models, times=st.integers(1, 8))
    def calls_at_once(self, index, name, times):
        self.world.calls_at_once(self.process(index), name, times)

    @rule(index=which, name=models)
    def a_call_that_fails(self, index, name):
        process = self.process(index)

        def fail() -> None:
            with pytest.raises(InvalidArgument):
                process.session(name).run(None, BAD_FEEDS[name])

        self.world.act(process, fail)

    @rule(index=which, name=models)
    def a_session_is_dropped(self, index, name):
        self.process(index).forget_session(name, 1)

    @rule(index=which, name=models, units=st.integers(1, 4))
    def a_call_begins(self, index, name, units):
        self.world.start(self.process(index), name, 1 if name == "mul" else units)

    @in_flight
    @rule(index=which, ticket=which, end=st.sampled_from(["answers", "fails", "killed when counted"]))
    def a_call_ends(self, index, ticket, end):
        process = self.busy()[index % len(self.busy())]
        self.world.settle(process, ticket, answered=end != "fails", delivered=end != "killed when counted")

    @rule(
        index=which,
        other=which,
        what=st.sampled_from(["killed", "closed", "folded", "time", "batches", "token", "second call"]),
        limit=mul_limits,
    )
    def something_happens_during_a_call(self, index, other, what, limit):
        process, other = self.process(index), self.process(other)
        if process.strict:
            return
        acts = {
            "killed": lambda: self.world.kill(process),
            "closed": lambda: self.world.close(process),
            "folded": lambda: self.fold(other),
            "time": lambda: self.time_passes(900),
            "batches": lambda: (self.time_passes(900), self.world.hand_over(other)),
            "token": lambda: self.exchange(other, limit, None, taken=True),
            "second call": lambda: self.world.call(process, "mul", 0, 1),
        }
        self.world.call_while(process, acts[what])

    # -- what goes on beside

    def fold(self, process) -> None:
        code = self.world.act(process, process.device.status)
        self.check_fold(code)

    def check_fold(self, code: str | None) -> None:
        """Where a commit failed it answers all the same, from what is stored."""
        expected = self.world.struck or "tampered" in self.world.happened
        assert code is None or expected, code
        if not expected:
            self.checks.check_folded()

    @rule(index=which)
    def somebody_asks_for_the_status(self, index):
        self.fold(self.process(index))

    @rule(index=which, seconds=st.sampled_from([1, 0, 30]))
    def the_keeper_looks_after_it(self, index, seconds):
        process = self.process(index)
        self.world.time.run_on(seconds)
        self.world.look_after(process)

    @precondition(lambda self: len(self.world.faults) < FAULTS_MAX)
    @rule(fault=commit_faults)
    def a_commit_will_fail(self, fault):
        self.world.faults.append(fault)
        self.world.happened.add("faults")

    # -- the exchange

    def exchange(self, process, mul_limit, rows_limit, *, taken, **changes) -> None:
        batches = self.world.hand_over(process)
        if batches is None:
            return
        reply = self.world.answer(batches, terms(mul_limit, rows_limit), **changes)
        if taken and not process.ended:
            self.world.take(process, reply)

    @rule(index=which, mul_limit=mul_limits, rows_limit=rows_limits, token=tokens, lost=st.booleans())
    def it_syncs(self, index, mul_limit, rows_limit, token, lost):
        self.exchange(self.process(index), mul_limit, rows_limit, taken=not lost, **token)

    @rule(index=which, other=which, mul_limit=mul_limits, asked=st.booleans())
    def another_one_syncs_between_calls(self, index, other, mul_limit, asked):
        """Then the keeper notices it, whoever read of it first."""
        if len(self.world.processes) < 2:
            self.world.open()
        process, other = self.process(index), self.process(index + 1 + other % 2)
        self.call_times(process, 3)
        if not other.ended:
            self.exchange(other, mul_limit, None, taken=True)
        if asked and not process.ended:
            self.fold(process)
        for _ in range(2):
            if not process.ended:
                self.world.call(process, "mul", 0, 1)
                self.world.look_after(process)

    @rule(index=which)
    def batches_are_made(self, index):
        batches = self.world.hand_over(self.process(index))
        self.check_fold(None if batches is not None else "refused")

    @precondition(lambda self: self.world.batches)
    @rule(index=which, ended=st.booleans(), mul_limit=mul_limits)
    def batches_arrive(self, index, ended, mul_limit):
        """Also of a license that has ended: it gets receipts, and no token."""
        batches = self.world.batches[index % len(self.world.batches)]
        self.world.answer(batches, None if ended else terms(mul_limit, None))

    @precondition(lambda self: self.world.replies)
    @rule(index=which, reply=st.integers(0, 5))
    def a_reply_arrives(self, index, reply):
        self.world.take(self.process(index), self.world.replies[reply % len(self.world.replies)])

    @rule(index=which, all_of_them=st.sampled_from([False, False, True]))
    def tokens_are_revoked(self, index, all_of_them):
        self.world.happened.add("revoked")
        self.world.vendor.now = self.world.time.now_s
        self.revocations += 1
        revoked = list(self.world.tokens)[: None if all_of_them else -1]
        signed = self.world.vendor.revocations(self.revocations, tokens=revoked)
        reply = Reply(revocations=signed).to_bytes()
        self.world.take(self.process(index), self.world.keep(reply))

    @rule(index=which, mul_limit=mul_limits, token=tokens, taken=st.booleans())
    def it_gets_another_license(self, index, mul_limit, token, taken):
        self.world.vendor.license_id = new_id("lic")
        process = self.process(index)
        reply = self.world.activate(process, terms(mul_limit, None), **token)
        if reply is not None and taken:
            self.world.take(process, reply)

    @rule(index=which, taken=st.booleans())
    def the_server_mends_the_clock(self, index, taken):
        self.exchange(self.process(index), None, None, taken=taken, time_floor=self.world.time.now_s)

    # -- time and power

    @rule(seconds=passing_s)
    def time_passes(self, seconds):
        self.world.time.run_on(seconds)

    @rule(seconds=st.sampled_from([-2_000, -100, -1, 0, 0, 1, 200, 400, 2 * DAY_S]))
    def somebody_sets_the_clock(self, seconds):
        """Or sets it right."""
        self.world.clock_right = False
        self.world.time.wall_ns = self.world.time.true_ns + seconds * NS

    @rule(off_s=st.sampled_from([60, 3_600, 3 * DAY_S]), picks=st.lists(st.integers(0, 7), min_size=1, max_size=8))
    def the_power_is_lost(self, off_s, picks):
        self.world.lose_power(off_s, picks)

    @invariant()
    def everything_holds(self):
        self.checks.check()
        gc.collect(1)

    def teardown(self):
        if not hasattr(self, "patch"):
            return
        try:
            if sys.exc_info()[0] is None:  # else it is this that is to be seen
                self.checks.check_end()
        finally:
            gc.enable()
            for process in [*self.world.processes, *self.world.closing]:
                self.world.kill(process)
            self.patch.undo()
            shutil.rmtree(self.directory)


class LosingMachine(DeviceMachine):
    """The same, but once in its life a cell file is deleted, and once the ledger is damaged, deleted, or put back
    from an image.
    """

    @precondition(lambda self: "cell lost" not in self.world.happened)
    @rule(index=which)
    def a_cell_file_is_deleted(self, index):
        self.world.lose_cells(self.process(index))

    @precondition(lambda self: "tampered" not in self.world.happened)
    @rule(how=st.sampled_from(["damaged", "deleted", "restored"]), alive=st.booleans())
    def the_ledger_is_lost(self, how, alive):
        if len(self.world.view.records) < LIFE_RECORDS_MIN:
            return
        if not alive:
            for process in list(self.world.processes):
                self.world.kill(process)
        self.world.lose_ledger(how)


def lives(share: float) -> settings:
    return settings(
        max_examples=int(share * int(EXAMPLES or 150)),
        stateful_step_count=40,
        derandomize=EXAMPLES is None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


TestDevice = DeviceMachine.TestCase
TestDevice.settings = lives(0.8)
TestDeviceThatLosesFiles = LosingMachine.TestCase
TestDeviceThatLosesFiles.settings = lives(0.2)
