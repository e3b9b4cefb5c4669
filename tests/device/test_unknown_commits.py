"""A commit that fails may have happened all the same: nothing is lost by it, and nothing counted twice."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from device_models import MUL_FEED, frames
from device_site import MUL, ROWS, leased, limited, recorded, records, session, use
from failing_commits import fail_commits
from vendor import PRODUCT

from device_sdk import DenialError, Device, LedgerError
from device_sdk import folding as folding_module
from meterkit import limits

SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def faults(monkeypatch):
    """What is appended here befalls the next transaction of any device."""
    return fail_commits(monkeypatch)


def check_lease(device: Device) -> None:
    """The ledger's row of a lease covers, and no more than covers, what memory and cells hold."""
    counter = device.counter
    file = counter.own.file
    with counter.transaction() as tx:
        for meter, count in counter._meters.items():
            if file is None or not count.sure or count.connections != counter.store.connections:
                continue
            held = count.unused() + count.returned + folding_module.unfolded(tx, file, meter)
            assert folding_module.leased(tx, file.name, meter) == held, meter


def bad_feed(model: str) -> dict:
    return {"X": np.ones((2, 2), np.float32)} if model == "mul" else {**frames(3), "scale": np.ones(3, np.float32)}


class Walk:
    """Two devices on one directory, and what happens to them, at random: one method an act."""

    ACTS = ("use", "use", "use", "use", "fail", "edge", "second", "fold", "token", "fault")

    def __init__(self, site, faults: list[str], seed: int) -> None:
        self.site = site
        self.faults = faults
        self.chance = random.Random(seed)  # noqa: S311 - the same walk every time
        self.models = (limited(MUL, 400), ROWS)
        self.devices = (site.activated(*self.models), site.open())
        self.users = [(device, name, session(device, name)) for device in self.devices for name in ("mul", "rows")]
        self.delivered = {"mul": 0, "rows": 0}
        self.codes: list[str] = []

    def step(self) -> None:
        device, name, running = self.chance.choice(self.users)
        try:
            getattr(self, self.chance.choice(self.ACTS))(device, name, running)
        except (LedgerError, DenialError) as fault:
            self.codes.append(fault.code)
        if not self.faults:
            check_lease(device)

    def use(self, _device, name, running) -> None:
        units = 1 if name == "mul" else self.chance.randrange(5)
        running.run(None, MUL_FEED if name == "mul" else frames(units))
        self.delivered[name] += units

    def fail(self, _device, name, running) -> None:
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
            running.run(None, bad_feed(name))

    def edge(self, *_) -> None:
        self.site.time.run_on(limits.WINDOW_S)

    def second(self, *_) -> None:
        self.site.time.run_on(1)

    def fold(self, device, *_) -> None:
        device.status()

    def token(self, device, *_) -> None:
        if self.chance.random() < 0.3:
            self.site.sync(device, *self.models)

    def fault(self, *_) -> None:
        self.faults.append(self.chance.choice(("before", "after", "at once")))


@pytest.mark.parametrize("seed", range(8))
def test_whatever_fails_every_delivered_unit_is_recorded_once(site, faults, seed):
    walk = Walk(site, faults, seed)
    for _ in range(250):
        walk.step()
    faults.clear()
    assert walk.codes.count("ledger_unwritable") > 3
    assert set(walk.codes) <= {"ledger_unwritable", "limit_reached"}
    first, second = walk.devices
    assert {name: recorded(first, name) for name in walk.delivered} == walk.delivered
    assert not records(first, "recovery")
    assert not any(record["flags"] for record in records(first, "usage"))
    first.close()
    second.close()
    assert leased(site.open()) == 0


def test_a_commit_that_landed_after_all_leaves_no_second_cell_in_a_slot(site, faults):
    """The row of the cell that nobody wrote would be folded as well as its successor's."""
    device = site.activated(MUL)
    running = session(device)
    faults.append("after")
    with pytest.raises(LedgerError) as caught:
        use(running)
    assert caught.value.code == "ledger_unwritable"
    use(running, 5)
    assert recorded(device) == 5
    other = site.open()
    assert recorded(other) == 5


def test_the_cell_counts_on_in_its_window_while_only_the_fold_at_its_edge_fails(site, faults):
    device = site.activated(limited(MUL, 1_600))
    running = session(device)
    use(running, 3)
    window = site.time.now_s // limits.WINDOW_S
    site.time.run_on(limits.WINDOW_S)
    for _ in range(3):
        faults.append("at once")
        use(running)
        site.time.run_on(1)
    assert not faults
    use(running, 2)
    recorded(device)
    found = [(record["window"], record["units"]) for record in records(device, "usage")]
    assert found == [(window, 6), (window + 1, 2)]


def test_a_new_batch_meanwhile_does_not_claim_the_window_is_complete(site, faults):
    device, other = site.activated(limited(MUL, 1_600)), site.open()
    running = session(device)
    use(running, 3)
    window = site.time.now_s // limits.WINDOW_S
    site.time.run_on(limits.WINDOW_S)
    faults.append("at once")
    use(running)
    with other.counter.fold_everything() as (_, now, folded):
        assert (now.window, folded.open_window) == (window + 1, window)


def test_what_a_commit_may_have_given_back_is_not_used_on(site, faults):
    """It failed at COMMIT: the unused units may be in the ledger again, and others may take them."""
    device, other = site.activated(limited(MUL, 160)), site.open()
    running, elsewhere = session(device), session(other)
    use(running, 2)
    assert device.counter.meter(MUL.meter).lease.unused() > 3
    site.time.run_on(limits.WINDOW_S)
    faults.append("after")
    delivered = 2
    for each in (running, running, elsewhere, running, elsewhere):
        try:
            use(each)
        except LedgerError:
            continue
        delivered += 1
    assert delivered > 3
    assert recorded(other) == delivered
    assert not records(other, "recovery")


def test_past_its_lease_a_ledger_that_cannot_be_written_denies(site, faults):
    device = site.activated(limited(MUL, 160))
    running = session(device)
    use(running, 2)
    in_hand = device.counter.meter(MUL.meter).lease.unused()
    assert in_hand > 0
    faults.extend(["at once"] * 500)
    use(running, in_hand)
    with pytest.raises(LedgerError) as caught:
        use(running)
    assert caught.value.code == "ledger_unwritable"
    faults.clear()
    assert recorded(device) == 2 + in_hand


def test_at_an_edge_of_the_token_no_resumed_lease_helps(site, faults):
    device = site.activated(MUL, life_s=3_600, grace_s=600)
    running = session(device)
    use(running, 3)
    site.time.run_on(3_600)
    faults.append("before")
    with pytest.raises(LedgerError):
        use(running)
    assert recorded(device) == 3


UNDER_A_FILE_LIMIT = """
import json, resource, sys, threading
sys.path.insert(0, sys.argv[1])
import device_models
from device_site import quiet_options
from device_sdk import Device, LedgerError, LicensedSession, Trust

device = Device.open(sys.argv[2], trust=Trust(issuer=sys.argv[3], roots=(sys.argv[4],)), product=sys.argv[5])
running = LicensedSession(device_models.mul(), quiet_options(), device=device, model="mul")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
failed, delivered = [], [0, 0]

def use(number):
    for _ in range(300):
        try:
            running.run(None, device_models.MUL_FEED)
        except LedgerError as fault:
            failed.append(fault.code)
            return
        delivered[number] += 1

for pages in range(1, 24):
    resource.setrlimit(resource.RLIMIT_FSIZE, (pages * 4096 - 100, hard))
    for act in (device.status, device.make_batches):
        try:
            act()
        except LedgerError as fault:
            failed.append(fault.code)
    for _ in range(2):
        users = [threading.Thread(target=use, args=(number,)) for number in range(2)]
        [user.start() for user in users]
        [user.join() for user in users]
        device.counter.end_leases()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    use(0)
device.close()
print(json.dumps([sum(delivered), sorted(set(failed)), len(failed)]))
"""


def test_a_disk_that_takes_no_more_and_then_does(site):
    """A real one, by the process's limit on file sizes: writes fail in the midst of a statement, or at COMMIT."""
    site.time.set_true()
    device = site.activated(MUL, real_clocks=True)
    trust = site.vendor.trust
    argv = [sys.executable, "-c", UNDER_A_FILE_LIMIT, SUPPORT, site.path, trust.issuer, trust.roots[0], PRODUCT]
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    delivered, codes, failed = json.loads(done.stdout)
    assert codes == ["ledger_unwritable"]
    assert failed > 10
    assert recorded(device) == delivered > 1_000
    assert not records(device, "recovery")
    assert not any(record["flags"] or record["unsettled"] for record in records(device, "usage"))
    site.vendor.accept(device.make_batches())
    assert site.vendor.units("mul") == delivered
    assert leased(device) == 0


def interrupted(device: Device) -> None:
    with device.counter.transaction() as tx:
        tx.set_state("half", 1)
        raise KeyboardInterrupt


def test_an_exception_from_a_signal_leaves_no_transaction_open(site):
    """Whatever ends a transaction, the next one begins: of this process, or of another."""
    device, other = site.activated(MUL), site.open()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            interrupted(device)
        with other.counter.transaction() as tx:
            assert tx.get_state("half") is None
    use(session(device), 2)
    assert recorded(other) == 2
