"""However a program uses a session and however it ends: what was delivered is recorded, once."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from subprocess import PIPE

import device_endings
import psutil
import pytest
from device_models import MUL_FEED
from device_paths import WAYS
from device_site import (
    HOLDING,
    MUL,
    PATIENCE_S,
    in_flight,
    leased,
    limited,
    recorded,
    records,
    session,
    wait_until,
)
from vendor import PRODUCT

from device_sdk import DenialError

SCRIPT = Path(device_endings.__file__)
EXIT_CODES = {"return": 0, "sys.exit": 3, "os._exit": 3, "exception": 1, "abandoned": 0, "thread": 0}


@pytest.fixture
def start():
    """Start `device_endings.py`; whatever becomes of the test, no process stays behind."""
    started = []

    def begin(site, way, ending):
        trust = site.vendor.trust
        argv = [sys.executable, SCRIPT, site.path, trust.issuer, trust.roots[0], PRODUCT, way, ending]
        process = subprocess.Popen([str(arg) for arg in argv], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def real(site):
    """A device under the real clocks, which its processes share."""
    site.time.set_true()
    return site.activated(MUL, HOLDING, real_clocks=True)


@pytest.mark.parametrize("ending", EXIT_CODES)
def test_a_process_that_ends_without_close_is_recorded_by_the_next(site, real, start, ending):
    for way in ("run", "run_with_iobinding"):
        before = recorded(real)
        process = start(site, way, ending)
        said, complained = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == EXIT_CODES[ending], complained
        assert ("LookupError" in complained) == (ending == "exception")
        assert recorded(real) - before == json.loads(said)["delivered"] == device_endings.CALLS
    assert leased(real) == 0
    assert not records(real, "recovery")


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_in_the_midst_of_a_call_leaves_the_counts_right(site, real, start, way):
    process = start(site, way, "interrupted")
    assert json.loads(process.stdout.readline()) == {"ready": True}
    wait_until(lambda: in_flight(real))
    admitted_s = used_s(process)
    wait_until(lambda: used_s(process) > admitted_s + 0.05)  # long past the gate: the model turns round and round
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, complained
    told = json.loads(said)
    assert told["interrupted"] == (way in {"run_with_iobinding", "run_with_ortvaluevector"})
    delivered = told["delivered"] + told["interrupted"]
    assert delivered <= recorded(real, "holding") <= delivered + 1
    assert not records(real, "recovery")


def used_s(process: subprocess.Popen) -> float:
    """What its main thread has had of a processor."""
    return next(each.user_time for each in psutil.Process(process.pid).threads() if each.id == process.pid)


def test_tasks_on_threads_are_each_counted(site):
    device = site.activated(limited(MUL, 40))
    licensed = session(device)

    async def one(number: int) -> bool:
        way = WAYS[list(WAYS)[number % len(WAYS)]]
        try:
            await asyncio.to_thread(way, licensed, MUL_FEED)
        except DenialError:
            return False
        return True

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(60)))

    assert asyncio.run(all_of_them()).count(True) == recorded(device) == 40


def test_a_cancelled_task_does_not_undo_what_ran(device, licensed):
    """A thread cannot be cancelled: its call is answered to nobody, and counted."""
    entered, go_on = threading.Event(), threading.Event()

    def work() -> None:
        licensed.run(None, MUL_FEED)
        entered.set()
        go_on.wait()
        licensed.run(None, MUL_FEED)

    async def main() -> None:
        task = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.to_thread(entered.wait)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert recorded(device) == 2


def test_a_generator_that_is_never_finished_counts_what_it_gave(device, licensed):
    for way in WAYS:
        answers = device_endings.generate(licensed, way)
        for _ in range(3):
            next(answers)
    with device.counter.fold_everything() as (_, _, folded):
        assert not folded.in_flight
    assert recorded(device) == 3 * len(WAYS)


def test_two_devices_on_one_directory_count_together_on_all_ways(site):
    first = site.activated(limited(MUL, 30))
    both = session(first), session(site.open())
    delivered = [0, 0]

    def work(number: int) -> None:
        for _ in range(10):
            for way in WAYS.values():
                try:
                    way(both[number], MUL_FEED)
                except DenialError:
                    continue
                delivered[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorded(first) == sum(delivered) <= 30
    for running in both:
        for _ in range(30):
            try:
                running.run(None, MUL_FEED)
            except DenialError:
                continue
            delivered[0] += 1
    assert recorded(first) == sum(delivered) <= 30


def test_after_a_fork_both_sides_run_at_once(site):
    device = site.activated(MUL)
    licensed = session(device)
    for way in WAYS.values():
        way(licensed, MUL_FEED)
    go, ready = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.write(ready[1], b".")
            os.read(go[0], 1)
            for _ in range(50):
                for way in WAYS.values():
                    way(licensed, MUL_FEED)
            code = 0
        except BaseException:  # noqa: BLE001 - nobody else can say what it was
            traceback.print_exc()
        finally:
            os._exit(code)
    os.read(ready[0], 1)
    os.write(go[1], b".")
    for _ in range(50):
        for way in WAYS.values():
            way(licensed, MUL_FEED)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (*go, *ready):
        os.close(end)
    assert recorded(device) == (1 + 50 + 50) * len(WAYS)
    assert len({record["cell"] for record in records(device, "usage")}) == 2 * len(WAYS)
    assert not records(device, "recovery")
