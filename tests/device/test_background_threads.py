"""Syncing in the background as it runs by itself: real threads and processes, a server that keeps one waiting."""

import contextlib
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from device_site import LOOPING, MUL, PATIENCE_S, leased, recorded, records, session, use, wait_until
from http_answers import REPLY, hangs_up, made
from vendor import PRODUCT

from meterkit import limits

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "background_device.py"


class Hanging:
    """An answer that drips until it is let go: no limit of a single operation ends the wait for it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, handler, _body) -> None:
        self.asked.set()
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
            while not self.let_go.wait(0.1):
                handler.wfile.write(b"x")


@pytest.fixture
def hanging(server):
    """The server hangs, until the test ends."""
    answer = Hanging()
    server.answers = [answer]
    yield answer
    answer.let_go.set()


@pytest.fixture
def real(site):
    """A device under the system's own clocks, with usage."""
    site.time.set_true()
    device = site.activated(MUL, LOOPING, real_clocks=True)
    use(session(device), 3)
    return device


def sync_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "meterkit-sync"}


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = sync_threads()
    yield
    for thread in sync_threads() - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


# -- threads


def test_it_syncs_by_itself_again_and_again(site, real, server):
    server.answers = [made(REPLY, lambda body: site.vendor.accept(body.decode().split(), [MUL]))]
    told = []
    background = real.sync_in_background(interval_s=1, server=server.url, on_sync=told.append)
    wait_until(lambda: len(told) >= 2)
    background.stop()
    assert [attempt.error for attempt in told[:2]] == [None, None]
    assert site.vendor.units("mul") == 3


def test_inference_goes_on_while_the_server_hangs(site, server, hanging):
    """Through the locks that a sync takes, too: at edges, for leases, where something is installed, at the end."""
    device = site.activated(MUL, LOOPING)
    running = session(device)
    use(running, 3)
    background = device.sync_in_background(interval_s=1, server=server.url)

    def look_twice() -> None:
        for _ in range(2):
            background.tick()
            site.time.run_on(1)

    def work() -> None:
        for _ in range(5):
            use(running, 500)
            site.time.run_on(limits.WINDOW_S)
        site.sync(site.open(), MUL, LOOPING)
        use(running, 500)
        done.append(device.status().state)
        done.append(recorded(device))
        device.close()

    done = []
    syncing = threading.Thread(target=look_twice, name="meterkit-sync")
    syncing.start()
    assert hanging.asked.wait(PATIENCE_S)
    working = threading.Thread(target=work)
    working.start()
    working.join(PATIENCE_S)
    assert done == ["ok", 3_003]
    assert not working.is_alive()
    assert syncing.is_alive()
    assert not hanging.let_go.is_set()


@pytest.mark.parametrize("end", ["stop", "close"])
def test_it_ends_when_it_is_told_to(real, server, end):
    server.answers = [hangs_up]
    before = sync_threads()
    background = real.sync_in_background(interval_s=600, server=server.url)
    (thread,) = sync_threads() - before
    background.stop() if end == "stop" else real.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert thread.daemon


def test_it_ends_when_its_device_is_let_go(site, monkeypatch):
    monkeypatch.setattr("device_sdk.background.LOOK_S", 0.05)
    site.time.set_true()
    before = sync_threads()
    site.activated(MUL, real_clocks=True).sync_in_background(interval_s=600)
    (thread,) = sync_threads() - before
    alive = weakref.ref(site.opened.pop())
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert alive() is None


def test_syncs_at_once_hand_over_each_unit_once(site, real, server):
    """From threads of one process and from another process's device on the directory."""
    lock = threading.Lock()

    def accept(body) -> bytes:
        with lock:
            return site.vendor.accept(body.decode().split(), [MUL])

    server.answers = [made(REPLY, accept)]
    other = site.open(real_clocks=True)
    running = [session(real), session(other)]
    faults = []

    def keep_syncing(device) -> None:
        for _ in range(15):
            try:
                device.sync(server.url)
            except Exception as fault:  # noqa: BLE001 - whatever it is, there must be none
                faults.append(fault)

    syncing = [threading.Thread(target=keep_syncing, args=(device,)) for device in (real, real, other)]
    for thread in syncing:
        thread.start()
    used = 3
    while any(thread.is_alive() for thread in syncing):
        for each in running:
            use(each, 5)
            used += 5
    for thread in syncing:
        thread.join()
    assert faults == []
    real.sync(server.url)
    assert recorded(real) == used
    real.sync(server.url)
    assert site.vendor.units("mul") == used
    assert not records(real, "recovery")
    for device in (real, other):
        device.close()
    assert leased(site.open(real_clocks=True)) == 0


def test_a_plan_made_beside_it_undoes_no_address(site, device):
    """As where a device is activated at another server while a sync with the one before ends."""
    other = site.open()
    ended = threading.Event()

    def keep_planning() -> None:
        while not ended.is_set():
            with other.counter.lock:
                other.exchanging.schedule.next_after(None, token=None)

    planning = threading.Thread(target=keep_planning)
    planning.start()
    try:
        for number in range(100):
            with device.counter.lock:
                device.exchanging.schedule.remember(server=f"https://{number}.example")
            time.sleep(0.002)
            assert device.exchanging.schedule.server == f"https://{number}.example"
    finally:
        ended.set()
        planning.join()


# -- processes


@pytest.fixture
def begin(site, real):
    """Begins a process on the directory of a device with three units of usage; what still runs is killed."""
    real.close()
    trust = site.vendor.trust
    begun = []

    def start(url: str, way: str) -> subprocess.Popen:
        argv = [sys.executable, SCRIPT, site.path, trust.issuer, trust.roots[0], PRODUCT, url, way]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen([str(arg) for arg in argv], stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


ENDINGS = {"return": 0, "sys.exit": 3, "os._exit": 3, "exception": 1, "closed": 0, "stopped": 0}


@pytest.mark.parametrize("way", ENDINGS)
def test_a_process_ends_at_once_and_silently_while_a_sync_is_in_flight(site, begin, server, hanging, way):
    process = begin(server.url, way)
    assert process.stdout.readline() == "ready\n"
    assert hanging.asked.wait(PATIENCE_S)
    _, said = process.communicate("go\n", timeout=PATIENCE_S)
    assert not hanging.let_go.is_set()
    assert process.returncode == ENDINGS[way]
    assert said == "" or (way == "exception" and said.splitlines()[-1] == "LookupError: the host's own")
    assert recorded(site.open(real_clocks=True)) == 3


def test_a_process_that_ends_as_soon_as_it_began_is_silent(begin, server):
    server.answers = [hangs_up]
    processes = [begin(server.url, "at once") for _ in range(4)]
    ended = [(process.communicate(timeout=PATIENCE_S), process.returncode) for process in processes]
    assert ended == [(("", ""), 0)] * 4


def test_after_a_fork_the_child_has_none_and_may_begin_its_own(begin, server):
    hanging = Hanging()
    server.answers = [hanging, hangs_up]
    process = begin(server.url, "fork")
    assert process.stdout.readline() == "ready\n"
    assert hanging.asked.wait(PATIENCE_S)
    said = process.communicate("go\n", timeout=PATIENCE_S)
    hanging.let_go.set()
    assert said == ("error server_unreachable\nchild 0\n", "")
    assert process.returncode == 0


def test_a_fork_does_not_fall_into_an_import(begin, server):
    """The child would wait for ever for a module that a thread of the parent was importing."""
    server.answers = [hangs_up]
    process = begin(server.url, "fork in an import")
    said = process.communicate(timeout=2 * PATIENCE_S)
    assert said == ("error server_unreachable\nchild 0\n", "")
