"""Every page of a ledger that goes bad: what is recorded before the damage is handed over, and never less."""

import copy
import itertools
import os
import random
import re
import shutil
import sqlite3
from pathlib import Path

import pytest
from device_damage import overwrite
from device_site import MUL, Site, recorded, records, session, use

from device_sdk import DenialError, LedgerError
from meterkit import limits

PAGE_BYTES = 4096
WINDOWS = 30
LIVE = 7


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A device that used one unit in its first window, two in its second, and so on; each is a record. Then its
    power was cut, when some more were counted and not recorded.
    """
    site = Site(tmp_path_factory.mktemp("pages") / "device")
    device = site.activated(MUL)
    running = session(device)
    for window in range(WINDOWS):
        use(running, window + 1)
        recorded(device)
        site.time.run_on(limits.WINDOW_S)
    use(running, LIVE)
    yield site
    site.close()


@pytest.fixture
def site(kept, tmp_path):
    """The same, to be damaged."""
    shutil.copytree(kept.path, tmp_path / "device")
    made = Site(tmp_path / "device", time=kept.time, vendor=copy.deepcopy(kept.vendor))
    yield made
    made.close()


def ledger(site: Site) -> Path:
    return site.path / "ledger.sqlite"


def pages(site: Site) -> list[bytes]:
    image = ledger(site).read_bytes()
    return [image[at : at + PAGE_BYTES] for at in range(0, len(image), PAGE_BYTES)]


def root_pages(site: Site) -> set[int]:
    """The pages without which no record is found: the first, and the root of the records' table."""
    connection = sqlite3.connect(ledger(site))
    ((root,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'records'").fetchall()
    connection.close()
    return {0, root - 1}


# The units that the first usage records hold, by how many: records 1 and 2 are the genesis and the token.
UNITS = [0, *itertools.accumulate(range(1, WINDOWS + 1))]


def units_before(page: bytes) -> int:
    """The units recorded before the first record on a page; all of them where there is none on it."""
    found = [int(seq) for seq in re.findall(rb'"seq":(\d+)', page)]
    return UNITS[max(0, min(found) - 3)] if found else UNITS[-1]


def zeroed(site: Site, number: int) -> None:
    overwrite(site, number * PAGE_BYTES, bytes(PAGE_BYTES))


def random_page(site: Site, number: int) -> None:
    overwrite(site, number * PAGE_BYTES, os.urandom(PAGE_BYTES))


def bit(offset: int):
    """One bit of a page is another: in its head, in what tells its rows' places, in the midst, at its end."""

    def flipped(site: Site, number: int) -> None:
        page = pages(site)[number]
        overwrite(site, number * PAGE_BYTES + offset, bytes([page[offset] ^ 1]))

    return flipped


DAMAGES = {
    "zeroed": zeroed,
    "random": random_page,
    "a bit of its head": bit(0),
    "a bit of its count of rows": bit(4),
    "a bit of a row's place": bit(9),
    "a bit in its midst": bit(2048),
    "a bit at its end": bit(4000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_recorded_before_a_bad_page_is_handed_over(kept, tmp_path, damage):
    """A page of an index, of cells or leases, or of what is known of time costs nothing that was recorded."""
    for number, page in enumerate(pages(kept)):
        site = Site(tmp_path / str(number), time=kept.time, vendor=copy.deepcopy(kept.vendor))
        shutil.copytree(kept.path, site.path)
        DAMAGES[damage](site, number)
        device = site.open()
        site.vendor.accept(device.make_batches())
        accepted = site.vendor.units("mul")
        genesis, *rest = records(device)
        codes = [each["code"] for each in rest if each["kind"] == "recovery"]
        least = 0 if number in root_pages(kept) else units_before(page)
        assert least <= accepted, number
        assert accepted <= UNITS[-1] + LIVE or "cell_lost" in codes, number
        if accepted < UNITS[-1]:
            assert genesis["previous"]["seq"] >= 1
            assert "ledger_set_aside" in codes
        site.close()


@pytest.mark.parametrize("kept_pages", [1, 5, 10])
def test_a_ledger_cut_short_ends_its_epoch(site, kept_pages):
    os.truncate(ledger(site), kept_pages * PAGE_BYTES)
    device = site.open()
    site.vendor.accept(device.make_batches())
    assert records(device)[0]["previous"]["seq"] == 1
    assert [each["code"] for each in records(device, "recovery")] == ["ledger_set_aside"]
    assert len(list(site.path.glob("ledger-*.sqlite"))) == 1


def go_on(site: Site) -> None:
    """Hand over, activate and use the device; what its ledger refuses is set aside by the next batches."""
    device = site.open()
    for _ in range(2):
        try:
            site.vendor.accept(device.make_batches())
            site.activate(device, MUL)
            use(session(device), 2)
        except (LedgerError, AssertionError):  # the latter where the token is refused for the ledger's sake
            continue
        break
    before = site.vendor.units("mul")
    site.sync(device, MUL)
    assert site.vendor.units("mul") == before + 2


@pytest.mark.parametrize("seed", range(40))
def test_whatever_bit_is_another_the_device_goes_on(site, seed):
    """Of the header's bits, some say that a newer version wrote it; a clock may be ahead, and look set back."""
    chance = random.Random(seed)  # noqa: S311 - the same bits every time
    image = ledger(site).read_bytes()
    at = chance.choice([at for at in range(100, len(image)) if image[at]])
    overwrite(site, at, bytes([image[at] ^ 1 << chance.randrange(8)]))
    try:
        go_on(site)
    except DenialError as denial:
        assert denial.code == "clock_rolled_back"  # noqa: PT017 - only this one, of some bits only
