"""Power loss at every moment of a device's life: what it had acknowledged is there afterwards, and nothing else.

A real process lives that life under `strace`. Its system calls are then replayed on a model of a disk, which
keeps what was synced and any part of the rest, and a new boot starts on what is left.
`METERKIT_TEST_POWER_STATES` sets about how many states of each life are tried, then after every system call.
"""

import itertools
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import power_replay
import power_worker
import pytest
from memory import in_memory
from power_check import Promises, check
from power_disk import Disk, everything
from power_trace import STRACE, Event, Reader, Told, record

from meterkit.errors import MeterkitError

STATES = int(os.environ.get("METERKIT_TEST_POWER_STATES", "0"))
SEED = 20_270_309


@pytest.fixture(scope="module", autouse=True)
def _tracing() -> None:
    if STRACE is None and "METERKIT_TEST_NO_SKIP" not in os.environ:
        pytest.skip("strace is not installed")
    assert STRACE is not None, "strace is not installed"


def live(into: Path, life: str, *careless: str) -> list[Event]:
    """Have a device live one of its lives in `into`/disk, and give what happened."""
    disk, told = into / "disk", into / "told"
    disk.mkdir()
    argv = [sys.executable, power_worker.__file__, disk / "device", told, life, *careless]
    return list(Reader(disk, told).read(record(argv, into / "trace")))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A directory, and the events that made it what it is."""
    into = tmp_path_factory.mktemp("recorded")
    return into, live(into, "long")


@pytest.fixture
def scratch():
    """Where each state is laid out for the device to be started on: what a disk keeps is in the state."""
    made = tempfile.mkdtemp(dir=in_memory())
    yield Path(made) / "state"
    shutil.rmtree(made)


def crashes(events: list[Event]):
    chance = random.Random(SEED)  # noqa: S311 - the same choices every time
    subsets = max(1, STATES // len(events))
    return power_replay.crashes(events, chance, subsets=subsets, every=STATES > 0)


def check_all(found, scratch: Path) -> int:
    """Check states until one does not hold; gives how many did."""
    checked = 0
    for crash in found:
        try:
            # One of the four ways to begin again, by turns.
            battery, use_first = crash.at % 4 < 2, crash.at % 2 == 1
            check(crash.tree, crash.promises, scratch, battery=battery, use_first=use_first)
        except BaseException as fault:
            fault.add_note(str(crash))
            raise
        checked += 1
    return checked


def test_the_replay_ends_with_the_files_that_the_process_left(recorded):
    """Every change of every file is in the trace, and the model of the disk does with it what the system did."""
    into, events = recorded
    disk = Disk()
    for event in events:
        if not isinstance(event, Told):
            disk.do(event)
    root = into / "disk"
    left = {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in root.rglob("*")}
    assert disk.after_power_loss(everything) == left
    assert len(left) > 8


def test_the_recorded_life_is_a_full_one(recorded):
    _, events = recorded
    promises = Promises()
    for event in events:
        if isinstance(event, Told):
            promises.take(event)
    assert promises.delivered["mul"] > 50
    assert promises.delivered["rows"] > 20
    assert promises.proved == promises.delivered
    assert len(promises.batches) > 1


def test_nothing_acknowledged_is_lost_and_nothing_is_billed_that_no_cell_proves(recorded, scratch):
    _, events = recorded
    assert check_all(crashes(events), scratch) > 300


def test_nothing_is_lost_when_a_damaged_ledger_is_set_aside(tmp_path, scratch):
    events = live(tmp_path, "damaged")
    assert (tmp_path / "disk" / "device" / "ledger.sqlite").exists()
    assert list((tmp_path / "disk" / "device").glob("ledger-*.sqlite"))
    assert check_all(crashes(events), scratch) > 200


@pytest.mark.parametrize("about", ["ledger", "vault", "names", "cells"])
def test_the_replay_finds_what_a_careless_device_would_lose(about, tmp_path, scratch):
    found = crashes(live(tmp_path, "long", about))
    if about == "cells":  # they matter where a unit is durable before its answer
        found = itertools.dropwhile(lambda crash: not crash.promises.delivered["rows"], found)
    with pytest.raises((AssertionError, MeterkitError, sqlite3.DatabaseError)) as caught:
        check_all(found, scratch)
    assert "power lost" in caught.value.__notes__[0]
