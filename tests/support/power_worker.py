"""A device's life, to be traced and then replayed on a disk that loses its power.

    power_worker.py DIRECTORY TOLD LIFE [careless about]

It tells in the file TOLD, one line of JSON a write, what it is about to do, what it has acknowledged, and what its
mapped cells hold. Its clocks stand until it moves them, so that nothing in it waits. It is its own vendor, with
keys that `recorded_vendor` gives to whoever judges it later.

To see that the replay finds what it should, it can be made careless about the `ledger` (SQLite syncs nothing),
the `vault` (its files are not synced), `names` (no directory is) or the `cells` (no single cell is).
"""

import gc
import hashlib
import json
import os
import sys
import threading
from pathlib import Path

from device_damage import raw
from device_models import MUL_FEED, frames
from device_site import BOOTS, MUL, NS, ROWS, START_S, FakeClocks, Site, session
from vendor import Vendor

from device_sdk import Device, LicensedSession, cells, keeper, ledger_store, timekeeper, vault
from meterkit import limits
from meterkit.canonical import from_base64url
from meterkit.exchange import Reply, read_reply
from meterkit.keys import SigningKey

THREADS = 2
CALLS = 8
SLOTS_TOLD = 16


def recorded_vendor() -> Vendor:
    """The vendor of the recorded device, who has not heard of it yet."""
    root, online = (SigningKey(hashlib.sha256(name).digest()) for name in (b"root", b"online"))
    return Vendor(now=START_S, root=root, online=online, license_id="lic_" + "a" * 26)


def clocks_afterwards(*, battery: bool) -> FakeClocks:
    """Half a day after the recorded life began, in another boot; without a battery the wall clock starts at 0."""
    time = FakeClocks(START_S + 43_200)
    time.boot_ns, time.boot = 20 * NS, BOOTS[4]
    if not battery:
        time.wall_ns = time.boot_ns
    return time


class Life:
    """What the recorded device does, step by step."""

    def __init__(self, directory: Path, told: Path) -> None:
        self.site = Site(directory, vendor=recorded_vendor())
        self._told = os.open(told, os.O_WRONLY | os.O_CREAT, 0o600)
        self._telling = threading.Lock()
        self.files: list[cells.CellFile] = []

    def tell(self, **what) -> None:
        with self._telling:
            os.write(self._told, json.dumps(what).encode())

    def tell_cells(self) -> None:
        """What is in this process's cell files now. A store that nobody told of would be missed."""
        for file in list(self.files):
            with self._telling:
                words = file.words[: SLOTS_TOLD * cells.WORDS_PER_SLOT].tolist()
                os.write(self._told, json.dumps({"mapped": str(file.path), "words": words}).encode())

    def watch_cells(self) -> None:
        """Tell what is in a cell file before each flush of it."""
        make, flush, flush_slot = cells.CellFile._make, cells.CellFile.flush_changed, cells.CellFile.flush_slot

        def made(file, directory) -> None:
            make(file, directory)
            file.words = memoryview(file._map).cast("Q")
            self.files.append(file)

        def flushed(file) -> bool:
            self.tell_cells()
            return flush(file)

        def flushed_slot(file, slot) -> None:
            self.tell_cells()
            flush_slot(file, slot)

        cells.CellFile._make, cells.CellFile.flush_changed = made, flushed
        cells.CellFile.flush_slot = flushed_slot

    # -- steps

    def open(self) -> Device:
        device = self.site.open()
        self.tell(opened=device.id)
        return device

    def take(self, device: Device, reply: Reply) -> None:
        token = json.loads(from_base64url(reply.token.split(".")[1]))
        self.tell(licenses={token["jti"]: token["license"]["id"]})
        outcome = device.take_reply(reply.to_bytes())
        assert not outcome.refused, outcome
        self.tell(serial=device.token().serial)

    def activate(self, device: Device) -> None:
        request = device.request_activation("code_" + "a" * 26 + "." + "a" * 26)
        self.take(device, read_reply(self.site.vendor.answer_activation(request, [MUL, ROWS])))

    def take_trust(self, device: Device) -> None:
        """A reply with no token: nothing of it is for the ledger."""
        vendor = self.site.vendor
        reply = Reply(keyrings=(tuple(vendor.keyring(2)),), revocations=vendor.revocations(1))
        outcome = device.take_reply(reply.to_bytes())
        assert not outcome.refused, outcome
        self.tell(keyring=2, revocations=1)

    def sync(self, running: LicensedSession, *, ahead_s: int = 0) -> None:
        """Hand over a file, use it on, and take what comes back; the server's clock may be ahead."""
        vendor, device = self.site.vendor, running._device
        carried = self.site.path.with_name(f"{vendor.serial}.mkbatch")
        device.export_batch(carried)
        batches = carried.read_text().splitlines()
        self.tell(carried=carried.name, batches=batches)
        self.use(running, MUL_FEED, "mul", CALLS)
        vendor.now = self.site.time.now_s + ahead_s
        self.take(device, read_reply(vendor.accept(batches, [MUL, ROWS])))

    def use(self, running: LicensedSession, feed: dict, model: str, calls: int, units: int = 1) -> None:
        for _ in range(calls):
            self.tell(started=model, units=units)
            running.run(None, feed)
            self.tell_cells()
            self.tell(delivered=model, units=units)

    def use_from_threads(self, running: LicensedSession) -> None:
        users = [threading.Thread(target=self.use, args=(running, MUL_FEED, "mul", CALLS)) for _ in range(THREADS)]
        for user in users:
            user.start()
        for user in users:
            user.join()

    def flush(self, device: Device) -> None:
        """What the keeper does once a second."""
        self.site.time.run_on(1)
        keeper.tick(device.counter)
        self.tell_cells()
        self.tell(proved=True)

    def fold(self, device: Device) -> None:
        device.status()
        self.tell_cells()
        with device.counter.transaction() as tx:
            at, certain_s = tx.position(), timekeeper.certain_s(tx)
        self.tell(proved=True, certain_s=certain_s, seq=at.seq, head=at.head, epoch=at.epoch)

    def die(self, device: Device) -> None:
        """What the end of a process does to its cell file: its lock is free, and nobody closes it."""
        gc.collect()
        os.close(device.counter.own.file._handle)
        device.counter.own.file = None
        self.files.clear()


def first_life(life: Life) -> None:
    """A device is made and used, and its process ends without a word."""
    device = life.open()
    life.activate(device)
    running = session(device)
    life.use_from_threads(running)
    life.flush(device)
    life.use_from_threads(running)
    life.fold(device)
    life.site.time.run_on(limits.WINDOW_S)
    life.use(running, MUL_FEED, "mul", CALLS)
    life.flush(device)
    life.sync(running)
    life.use(running, MUL_FEED, "mul", CALLS)
    life.die(device)


def second_life(life: Life) -> None:
    """Another process finds what the first left. One of its models counts strictly. It loses its power."""
    device = life.open()
    life.fold(device)
    running, strict = session(device), session(device, "rows", count="strict")
    life.use(running, MUL_FEED, "mul", CALLS)
    life.use(strict, frames(3), "rows", CALLS // 2, units=3)
    life.flush(device)
    life.use(strict, frames(2), "rows", CALLS // 2, units=2)
    life.sync(running)
    life.take_trust(device)
    life.use_from_threads(running)
    life.use(strict, frames(5), "rows", 2, units=5)
    life.die(device)
    life.site.time.reboot(60)


def third_life(life: Life) -> None:
    """After the next boot it is settled, and the device gets another license. It is closed."""
    device = life.open()
    running = session(device)
    life.use(running, MUL_FEED, "mul", CALLS)
    life.fold(device)
    life.use(running, MUL_FEED, "mul", CALLS)
    life.site.vendor.license_id = "lic_" + "b" * 26
    life.sync(running, ahead_s=900)
    life.use_from_threads(running)
    device.close()
    life.tell(proved=True)


def long_life(life: Life) -> None:
    """Two processes in one boot, and one in the next."""
    first_life(life)
    second_life(life)
    third_life(life)


def damaged_life(life: Life) -> None:
    """The last hash in the ledger is lost while no process runs; the ledger is set aside, and another begins."""
    device = life.open()
    life.activate(device)
    running = session(device)
    life.use(running, MUL_FEED, "mul", CALLS)
    life.sync(running)
    life.fold(device)
    life.use(running, MUL_FEED, "mul", CALLS)
    life.flush(device)
    life.die(device)
    life.tell(damaged=True)
    raw(life.site, "UPDATE records SET hash = ? WHERE seq = (SELECT MAX(seq) FROM records)", "0" * 64)
    device = life.open()
    running = session(device)
    life.use(running, MUL_FEED, "mul", CALLS)
    life.fold(device)
    life.sync(running)
    device.close()
    life.tell(proved=True)


LIVES = {"long": long_life, "damaged": damaged_life}


def be_careless(about: str) -> None:
    """Leave something out that a disk needs."""
    if about == "ledger":
        ledger_store._PRAGMAS["synchronous"] = 0
    elif about == "vault":
        vault.os = _Unsynced()
    elif about == "names":
        vault.sync_directory = cells.sync_directory = lambda _directory: None
    elif about == "cells":
        cells.CellFile.flush_slot = lambda _file, _slot: None
    else:
        raise ValueError(about)


class _Unsynced:
    """The module `os`, but for fsync."""

    def __getattr__(self, name: str):
        return (lambda _handle: None) if name == "fsync" else getattr(os, name)


def main() -> None:
    directory, told, lived, *careless = sys.argv[1:]
    for about in careless:
        be_careless(about)
    life = Life(Path(directory), Path(told))
    life.watch_cells()
    LIVES[lived](life)
    os._exit(0)


if __name__ == "__main__":
    main()
