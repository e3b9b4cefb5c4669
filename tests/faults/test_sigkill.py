"""SIGKILL at random moments: no delivered answer goes uncounted, and none is counted twice.

Two processes of four threads each run a real model in one directory, while others fold their cells. Every answer
is noted after `run()` returned, so what is noted was delivered. `METERKIT_TEST_KILLS` sets how many are killed.
"""

import itertools
import json
import os
import random
import threading
import time
from collections import defaultdict
from typing import Self

import pytest
from device_processes import Worker
from device_site import MUL, Site, limited, recorded, records

from meterkit.exchange import open_batch

KILLS = int(os.environ.get("METERKIT_TEST_KILLS", "50"))
LIMITED_KILLS = max(2, KILLS // 5)
THREADS = 4
ANSWERS = (0, 0, 200, 1_000)
SEED = 20_261_122


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    made.time.set_true()
    yield made
    made.close()


class Folder(threading.Thread):
    """Somebody else on the device, who folds whatever cells there are, again and again."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._device = site.open(real_clocks=True)
        self._ended = threading.Event()
        self.folds = 0
        self.faults: list[BaseException] = []

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                if self.folds % 2:
                    self._device.make_batches()
                else:
                    self._device.status()
                self.folds += 1
                self._ended.wait(0.01)
        except BaseException as fault:  # noqa: BLE001 - shown by the test, not by a thread's end
            self.faults.append(fault)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def kill_by_two(site: Site, kills: int, chance: random.Random) -> list[Worker]:
    """Keep two workers up; kill the older one after some answers and a random time, until so many are killed."""
    killed: list[Worker] = []
    running = [Worker(site, THREADS)]
    while len(killed) < kills:
        running.append(Worker(site, THREADS))
        if chance.random() < 0.9:  # the others are killed while they open the directory, or before
            running[0].wait_ready()
            running[0].wait_delivered(chance.choice(ANSWERS))
        time.sleep(chance.uniform(0, 0.3) ** 2 * 3)
        oldest = running.pop(0)
        oldest.kill()
        killed.append(oldest)
    for worker in running:
        worker.kill()
        killed.append(worker)
    return killed


def chain_of(site: Site, device) -> list[dict]:
    """Hand everything over as to a server, which follows every record, and give the records back."""
    batches = device.make_batches()
    site.vendor.accept(batches)
    bodies = [body for text in batches for body in open_batch(text, lambda kid: site.vendor.keys[kid])[1].bodies]
    return [json.loads(body) for body in bodies]


def check_cells(usage: list[dict]) -> None:
    """Each cell's records continue each other: nothing in it was folded twice, nothing left out."""
    by_cell = defaultdict(list)
    for record in usage:
        by_cell[record["cell"]].append(record)
    for found in by_cell.values():
        for before, after in itertools.pairwise(found):
            assert after["from"] == before["to"]
        assert sum(record["units"] for record in found) == found[-1]["to"] - found[0]["from"]


def summary(killed: list[Worker], delivered: int, counted: int) -> None:
    """What `make torture` shows."""
    units = f"{delivered} units delivered, {counted} counted, {counted - delivered} ahead"
    print(f"\n{len(killed)} processes of {THREADS} threads killed: {units}")


def test_nothing_delivered_is_lost_and_nothing_is_counted_twice(site):
    chance = random.Random(SEED)  # noqa: S311 - the same moments every time
    device = site.activated(MUL, real_clocks=True)
    with Folder(site) as first, Folder(site) as second:
        killed = kill_by_two(site, KILLS - LIMITED_KILLS, chance)
    assert not first.faults + second.faults
    assert min(first.folds, second.folds) > 5

    delivered = sum(worker.delivered for worker in killed)
    counted = recorded(device)
    assert delivered <= counted <= delivered + THREADS * len(killed)
    assert delivered > 100 * len(killed)
    summary(killed, delivered, counted)

    found = chain_of(site, device)
    usage = [record for record in found if record["kind"] == "usage"]
    assert {record["kind"] for record in found} == {"genesis", "token", "usage"}
    assert sum(record["units"] for record in usage) == counted == site.vendor.units("mul")
    assert not any(record["unsettled"] or record["flags"] for record in usage)
    check_cells(usage)
    with device.counter.fold_everything():
        pass  # what was killed before its first call is swept
    assert not list((site.path / "cells").iterdir())
    with device.counter.transaction() as tx:
        assert tx.rows("SELECT * FROM cells") == tx.rows("SELECT * FROM leases") == []


def test_a_limit_is_reached_but_not_passed_however_many_are_killed(site):
    chance = random.Random(SEED + 1)  # noqa: S311 - as above
    limit = 40_000
    device = site.activated(limited(MUL, limit), real_clocks=True)
    with Folder(site) as folder:
        killed = kill_by_two(site, LIMITED_KILLS, chance)
        assert recorded(device) <= limit
        last = [Worker(site, THREADS), Worker(site, THREADS)]
        ended = [worker.end() for worker in last]
    assert not folder.faults
    assert {said for worker in ended for said in worker.said} == {"ready", "limit_reached"}

    delivered = sum(worker.delivered for worker in killed + ended)
    counted = recorded(device)
    # A process that found nothing left may stop before another one gives its last lease back.
    assert delivered <= counted <= min(limit, delivered + THREADS * len(killed))
    summary(killed, delivered, counted)
    final = Worker(site, 1).end()
    assert final.said == ["ready", "limit_reached"]
    assert recorded(device) == limit
    usage = [record for record in chain_of(site, device) if record["kind"] == "usage"]
    assert sum(record["units"] for record in usage) == limit
    assert not any(record["unsettled"] or record["flags"] for record in usage)
    check_cells(usage)
    assert len(records(device, "usage")) == len(usage)
