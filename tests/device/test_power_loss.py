"""What a power loss, or a lost cell file, leaves: billed is what cells prove, used up is what was leased."""

import os
from pathlib import Path

import pytest
from device_site import MUL, ROWS, leased, let_go, limited, recorded, records, session, use

from device_sdk import DenialError, Device


def die(device: Device) -> None:
    """What the end of a process does to its cell file: its lock is free."""
    let_go(device.counter.own.file._handle)


def flags_and_units(device: Device) -> list[tuple[tuple[str, ...], int, int]]:
    return [(tuple(each["flags"]), each["units"], each["unsettled"]) for each in records(device, "usage")]


@pytest.fixture
def died(site):
    """A device that used three units and held more on lease when its power was lost."""
    device = site.activated(limited(MUL, 1_600))
    running = session(device)
    use(running, 3)
    device.status()
    use(running, 2)
    held = leased(device)
    assert held > 10
    die(device)
    yield device, held
    del running  # only now may its cell be retired


def test_after_a_power_loss_cells_prove_and_the_rest_of_the_lease_is_unsettled(site, died):
    _, held = died
    site.time.reboot(60)
    after = site.open()
    assert recorded(after) == 5
    rest = held - 2
    assert flags_and_units(after)[1:] == [(("recovered",), 2, 0), (("recovered",), 0, rest)]
    assert [each["code"] for each in records(after, "recovery")] == ["power_lost"]
    assert leased(after) == 0
    assert not list((site.path / "cells").iterdir())
    assert after.status().models[0].left_units == 1_600 - 5 - rest


@pytest.mark.usefixtures("died")
def test_it_is_settled_once(site):
    site.time.reboot(60)
    after, beside = site.open(), site.open()
    total = recorded(after)
    before = records(after)
    assert recorded(beside) == recorded(after) == total
    assert records(after) == before


def test_a_cell_that_went_stale_proves_less(site, died):
    """Its last pages were not on the disk yet: back to the count at the mark, or before it."""
    device, held = died
    path = Path(device.counter.own.file.path)
    path.write_bytes(b"\x00" * path.stat().st_size)
    site.time.reboot(60)
    after = site.open()
    assert recorded(after) == 3
    assert flags_and_units(after)[1:] == [(("recovered",), 0, held)]


def test_a_cell_file_that_is_gone_proves_nothing(site, died):
    device, held = died
    Path(device.counter.own.file.path).unlink()
    site.time.reboot(60)
    after = site.open()
    assert recorded(after) == 3
    assert sum(each["unsettled"] for each in records(after, "usage")) == held


def test_a_torn_cell_file_proves_nothing_and_breaks_nothing(site, died):
    device, held = died
    path = Path(device.counter.own.file.path)
    path.write_bytes(os.urandom(path.stat().st_size))
    site.time.reboot(60)
    after = site.open()
    recorded(after)
    used = sum(each["units"] + each["unsettled"] for each in records(after, "usage"))
    assert used == 3 + held
    assert len(site.vendor.accept(after.make_batches())) > 0


def test_in_the_same_boot_a_missing_cell_counts_its_leases_rest_as_used(site, died):
    device, held = died
    Path(device.counter.own.file.path).unlink()
    after = site.open()
    assert recorded(after) == 3 + held
    assert flags_and_units(after)[-1] == (("cell_lost",), held, 0)
    assert [each["code"] for each in records(after, "recovery")] == ["cell_lost"]
    site.vendor.accept(after.make_batches())
    assert site.vendor.units("mul") == 3 + held


@pytest.mark.parametrize("count", [0, 2**39])
def test_in_the_same_boot_an_impossible_cell_does_too(site, died, count):
    device, held = died
    path = Path(device.counter.own.file.path)
    words = device.counter.own.file.words
    slots = range(0, 64, 8)
    for at in slots:
        words[at] = words[at + 1] = words[at] & ~(2**40 - 1) | count
    assert path.exists()
    after = site.open()
    assert recorded(after) == 3 + held


@pytest.mark.usefixtures("died")
def test_in_the_same_boot_unused_units_of_a_process_that_ended_are_free_again(site):
    after = site.open()
    assert recorded(after) == 5
    assert leased(after) == 0
    assert not records(after, "recovery")
    assert after.status().models[0].left_units == 1_595


def test_unsettled_units_use_up_the_limit(site):
    device = site.activated(limited(MUL, 160), ROWS)
    before = session(device)
    use(before, 2)
    held = leased(device)
    die(device)
    site.time.reboot(60)
    after = site.open()
    running = session(after)
    left = 160 - held
    use(running, left)
    with pytest.raises(DenialError) as caught:
        use(running)
    assert caught.value.code == "limit_reached"
