"""One directory, several users: devices, processes, and what fork() makes of them."""

import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from device_processes import Worker
from device_site import MUL, PATIENCE_S, leased, let_go, limited, recorded, records, session, use
from vendor import PRODUCT
from vendor import code as activation_code

from device_sdk import DenialError, LedgerError
from device_sdk import folding as folding_module
from device_sdk.cells import CellFile
from meterkit import limits

WINDOW_S = limits.WINDOW_S
TURNS = 100
FOLDING = Path(__file__).parents[1] / "support" / "device_folding.py"


# -- one directory, several users


def test_processes_that_write_without_a_pause_take_turns(site):
    """SQLite's own waiting lets the one that has just written go first again, for seconds."""
    site.time.set_true()
    device = site.activated(MUL, real_clocks=True)
    trust = site.vendor.trust
    argv = [sys.executable, FOLDING, site.path, trust.issuer, trust.roots[0], PRODUCT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writing = [subprocess.Popen([str(arg) for arg in argv], **pipes) for _ in range(3)]
    for process in writing:
        assert process.stdout.readline() == "ready\n"
    seen = []
    for _ in range(TURNS + 1):
        with device.counter.transaction() as tx:
            seen.append([tx.get_state(f"written {process.pid}") for process in writing])
            tx.set_state("seen", len(seen))
    for process in writing:
        process.stdin.close()
        process.stdout.close()
    ended = [process.wait(PATIENCE_S) for process in writing]
    turns = [after - before for before, after in zip(seen[0], seen[-1], strict=True)]
    assert ended == [0] * 3
    assert max(turns) < 10 * min(TURNS, *turns)


def test_processes_too_short_for_an_edge_leave_few_files_behind(site):
    """Each ends after one call without closing its device, beside one that lives on."""
    device, kept, gone = site.activated(MUL), limits.CELL_FILES_MAX, []
    living = session(device)
    use(living)
    for number in range(2 * kept):
        short = site.open()
        gone.append(session(short))  # kept: its cells would be retired with it
        use(gone[-1])
        let_go(short.counter.own.file._handle)
        left = number % (kept - 1) + 1
        assert len(list(Path(device.vault.cells).iterdir())) == 1 + left <= kept
    use(living)
    assert {each["units"] for each in records(device, "usage")} == {1}
    assert recorded(device) == 2 * kept + 2


def test_two_devices_on_one_directory_share_ledger_and_limit(site):
    first, second = site.activated(limited(MUL, 10)), site.open()
    one, two = session(first), session(second)
    delivered = 0
    for running in (one, two) * 20:
        try:
            use(running)
        except DenialError:
            continue
        delivered += 1
    site.time.run_on(WINDOW_S)
    for running in (one, two):
        try:
            use(running, 10)
        except DenialError:
            continue
    assert delivered <= 10
    assert recorded(first) == recorded(second) == 10
    assert first.id == second.id


def test_several_processes_never_pass_one_limit(site):
    site.time.set_true()
    device = site.activated(limited(MUL, 5_000), real_clocks=True)
    workers = [Worker(site, 2) for _ in range(3)]
    ended = [worker.end() for worker in workers]
    assert [worker.returncode for worker in ended] == [0] * 3
    assert {said for worker in ended for said in worker.said} == {"ready", "limit_reached"}
    assert sum(worker.delivered for worker in ended) == recorded(device) <= 5_000
    last = Worker(site, 1).end()
    assert recorded(device) == 5_000 == sum(worker.delivered for worker in [*ended, last])
    assert not records(device, "recovery")


def test_a_process_gets_its_file_while_others_sweep(site):
    """Until it is locked, its file looks like that of a process which is gone."""
    device = site.activated(MUL)
    directory = device.counter.cells_directory
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            with device.counter.transaction() as tx:
                for _ in range(100):
                    folding_module.sweep(tx, directory)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(3_000):
            made = CellFile(directory)
            assert Path(made.path).exists()
            made.remove()
    finally:
        done.set()
        sweeper.join()


# -- fork


def run_in_child(work) -> int:
    """Fork, run something in the child, and give its exit code."""
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)  # or a child that waits for ever would be waited for as long
        code = 99
        try:
            code = work()
        except BaseException:  # noqa: BLE001 - nobody else can say what it was
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_counts_in_cells_of_its_own(site):
    device = site.activated(MUL)
    running = session(device)
    use(running, 5)

    def child() -> int:
        use(running, 7)
        device.close()
        return 0

    assert run_in_child(child) == 0
    use(running, 2)
    assert recorded(device) == 14
    assert len({record["cell"] for record in records(device, "usage")}) == 2
    assert not records(device, "recovery")


def test_a_child_that_is_killed_loses_nothing_and_frees_nothing_of_its_parent(site):
    device = site.activated(limited(MUL, 50_000))
    running = session(device)
    use(running, 5)

    def child() -> int:
        use(running, 7)
        os.kill(os.getpid(), 9)
        return 0

    assert run_in_child(child) == -9
    use(running, 2)
    other = site.open()
    assert recorded(other) == 14
    use(running, 3)
    assert recorded(other) == 17
    assert not records(device, "recovery")


def test_a_child_of_a_busy_parent_can_write_the_ledger(site):
    """A fork in the midst of another thread's transaction would leave the child SQLite's locks for ever."""
    device = site.activated(MUL)
    running = session(device)
    use(running)
    ended = threading.Event()
    counted = [0] * 2

    def busy(number: int) -> None:
        while not ended.is_set():
            use(running)
            counted[number] += 1
            device.status()
            ended.wait(0.02)

    users = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
    for user in users:
        user.start()

    def child() -> int:
        use(running, 2)
        device.close()
        return 0

    codes = [run_in_child(child) for _ in range(6)]
    ended.set()
    for user in users:
        user.join()
    assert codes == [0] * 6
    assert recorded(device) == 1 + sum(counted) + 12
    assert not records(device, "recovery")


def test_the_childs_end_leaves_the_parents_locks(site):
    """The parent's cell file must not look as if its owner was gone once the child has ended."""
    device = site.activated(limited(MUL, 16_000))
    running = session(device)
    use(running, 3)
    assert run_in_child(lambda: 0) == 0
    other = site.open()
    assert recorded(other) == 3
    assert leased(other) > 0
    use(running, 2)
    assert recorded(other) == 5


def test_a_child_does_not_keep_its_dead_parents_lock(site):
    device = site.activated(limited(MUL, 16_000))
    use(session(device), 3)
    assert leased(device) > 0
    (running, runs), (waiting, end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(runs, b".")  # fork() returns in the child only when it has let go of what it inherited
        os.read(waiting, 1)
        os._exit(0)
    try:
        os.read(running, 1)
        let_go(device.counter.own.file._handle)
        other = site.open()
        assert recorded(other) == 3
        assert leased(other) == 0
    finally:
        os.write(end, b".")
        os.waitpid(child, 0)
        for pipe in (running, runs, waiting, end):
            os.close(pipe)


def test_folding_leaves_no_file_open(site, monkeypatch):
    device, other = site.activated(MUL), site.open()
    running = session(device)
    use(running, 2)
    other.status()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        use(running)
        other.status()
    with monkeypatch.context() as patch:
        patch.setattr(folding_module, "fold_cell", fails)
        for _ in range(5):
            with pytest.raises(LedgerError):
                other.status()
    other.status()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # SQLite keeps its journal open


def fails(*_args) -> None:
    raise LedgerError("ledger_unwritable")


def test_requests_and_usage_do_not_disturb_each_other(site):
    """One connection serves all threads: every way to it must wait its turn."""
    device = site.activated(MUL)
    running = session(device)
    faults: list[BaseException] = []
    code = activation_code()

    def ask() -> None:
        try:
            for _ in range(15):
                device.request_activation(code)
                device.status()
        except BaseException as fault:  # noqa: BLE001 - shown below
            faults.append(fault)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for _ in range(25):
        use(running)
        device.make_batches()
    for asker in askers:
        asker.join()
    assert not faults
    assert recorded(device) == 25
