"""Ledgers that are changed or lost under a running process, and what of them is saved."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from device_site import MUL, Site, limited, recorded, records, session, use

from device_sdk import Device, LicensedSession, MeterkitError, keeper
from meterkit import limits

PAGE_BYTES = 4096


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    yield made
    made.close()


def ledger(site: Site) -> Path:
    return site.path / "ledger.sqlite"


def put(site: Site, image: bytes) -> None:
    """Another file in its place, as who restores a backup does."""
    restored = site.path / "restored"
    restored.write_bytes(image)
    restored.replace(ledger(site))


def of_another_device(site: Site) -> bytes:
    other = Site(site.path.with_name("other"), vendor=site.vendor)
    device = other.activated(MUL)
    use(session(device), 7)
    device.close()
    return ledger(other).read_bytes()


LOSSES = {
    "deleted": lambda site, _: ledger(site).unlink(),
    "deleted, and made again by another process": lambda site, _: [ledger(site).unlink(), site.open()],
    "empty": lambda site, _: put(site, b""),
    "emptied": lambda site, _: os.truncate(ledger(site), 0),
    "an older copy": put,
    "an older copy, written over it": lambda site, image: ledger(site).write_bytes(image),
    "another device's": lambda site, _: put(site, of_another_device(site)),
    "another device's, written over it": lambda site, _: ledger(site).write_bytes(of_another_device(site)),
}


class Users:
    """Two threads that use one session, as long as the test lasts: each has a cell of its own."""

    def __init__(self, running: LicensedSession) -> None:
        self._running = running
        self._threads = [ThreadPoolExecutor(1) for _ in range(2)]
        self.codes: set[str] = set()

    def use(self, times: int) -> int:
        """Each runs so many times, or until it is refused; how many answers were delivered."""
        return sum([turn.result() for turn in [each.submit(self._use, times) for each in self._threads]])

    def _use(self, times: int) -> int:
        for delivered in range(times):
            try:
                use(self._running)
            except MeterkitError as fault:
                self.codes.add(fault.code)
                return delivered
        return times

    def close(self) -> None:
        for each in self._threads:
            each.shutdown()


def hand_over(site: Site, device: Device) -> int:
    """Units that the server has accepted in all, when everything is handed over."""
    site.vendor.accept(device.make_batches())
    return site.vendor.units("mul")


@pytest.fixture
def users_of():
    made: list[Users] = []

    def make(device: Device) -> Users:
        made.append(Users(session(device)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("waited_s", [1, limits.WINDOW_S])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_ledger_is_lost_under_a_running_process(site, users_of, loss, waited_s):
    """What was handed over stands, nobody counts twice, and whatever runs after is counted again."""
    device = site.activated(MUL)
    users = users_of(device)
    image = ledger(site).read_bytes()
    users.use(5)
    site.sync(device)
    users.use(10)
    recorded(device)
    users.use(15)
    LOSSES[loss](site, image)
    delivered = 60 + users.use(20)
    site.time.run_on(waited_s)
    delivered += users.use(20)
    assert users.codes <= {"ledger_damaged", "ledger_unwritable", "serial_rollback"}
    assert 10 <= hand_over(site, device) <= delivered
    assert records(device)[0]["previous"]["seq"] >= 3

    users.codes.clear()
    before = hand_over(site, device)
    for _ in range(4):
        assert users.use(50) == 100
        keeper.tick(device.counter)
        site.time.run_on(1)
    assert not users.codes
    assert hand_over(site, device) == before + 400


def test_its_whole_directory_is_deleted(site, users_of):
    device = site.activated(limited(MUL, 16_000))
    users = users_of(device)
    users.use(20)
    shutil.rmtree(site.path)
    held = users.use(2_000)
    assert held <= 1_000
    assert users.use(10) == 0
    assert users.codes == {"ledger_unwritable"}
    for act in (device.status, device.make_batches):
        with pytest.raises(MeterkitError):
            act()
    device.close()


def test_what_was_leased_in_an_older_copy_is_not_billed_again(site):
    """Its cells and leases were live then, and have been folded, accepted and ended since."""
    device = site.activated(limited(MUL, 16_000))
    use(session(device), 5)
    image = ledger(site).read_bytes()
    site.sync(device)
    device.close()
    put(site, image)
    again = site.open()
    assert hand_over(site, again) == 5
    assert records(again)[0]["previous"]["seq"] > 2
    assert not any(each["flags"] for each in records(again, "usage"))
