"""`count="strict"`: each unit is durable before its answer is delivered."""

import shutil

import pytest
from device_models import MUL_FEED, frames
from device_paths import WAYS_AND_ASYNC
from device_site import MUL, ROWS, leased, limited, recorded, records, session, use

from device_sdk import DenialError, LedgerError
from device_sdk.keeper import tick
from meterkit import limits


@pytest.fixture
def flushed(site, monkeypatch, tmp_path):
    """The device's directory as the disk holds it: cells as at their last flush, all else as committed."""
    disk = tmp_path / "disk"
    from device_sdk import cells  # noqa: PLC0415 - only its class is replaced

    flush = cells.CellFile.flush_slot

    def keep(file, slot) -> None:
        flush(file, slot)
        shutil.rmtree(disk, ignore_errors=True)
        shutil.copytree(site.path, disk)

    monkeypatch.setattr(cells.CellFile, "flush_slot", keep)
    return disk


def test_after_a_power_loss_nothing_is_unsettled(site, flushed):
    device = site.activated(limited(MUL, 100), ROWS)
    running, rows = session(device, count="strict"), session(device, "rows", count="strict")
    use(running, 5)
    rows.run(None, frames(4))
    rows.run(None, frames(0))
    device.close()
    shutil.rmtree(site.path)
    shutil.copytree(flushed, site.path)
    site.time.reboot(10)
    after = site.open()
    assert (recorded(after), recorded(after, "rows")) == (5, 4)
    assert not any(record["unsettled"] for record in records(after, "usage"))
    assert leased(after) == 0


def test_no_unit_is_leased_beyond_the_call(site):
    device = site.activated(limited(MUL, 1_000))
    running = session(device, count="strict")
    for used in range(1, 20):
        use(running)
        assert leased(device) == used  # not folded yet: so many that its cell proves
        site.time.run_on(0.1)
        tick(device.counter)
    assert recorded(device) == 19
    assert leased(device) == 0


def test_windows_limits_and_failures_are_as_ever(site):
    device = site.activated(limited(MUL, 3))
    running = session(device, count="strict")
    use(running, 2)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        running.run(None, {"X": MUL_FEED["X"][:2]})
    site.time.run_on(limits.WINDOW_S)
    use(running)
    with pytest.raises(DenialError):
        use(running)
    recorded(device)
    assert [record["units"] for record in records(device, "usage")] == [2, 1]


def test_an_answer_that_cannot_be_made_durable_is_withheld_and_counted(site, monkeypatch):
    device = site.activated(MUL)
    running = session(device, count="strict")
    use(running)

    def fail(*_args) -> None:
        raise LedgerError("ledger_unwritable", "cells: Input/output error")

    monkeypatch.setattr(type(device.counter.own.file), "flush_slot", fail)
    with pytest.raises(LedgerError):
        use(running)
    monkeypatch.undo()
    use(running)
    assert recorded(device) == 3


@pytest.mark.parametrize("way", WAYS_AND_ASYNC)
def test_every_way_to_run_can_be_strict(site, way, flushed):
    device = site.activated(MUL)
    running = session(device, count="strict", sess_options=None)
    WAYS_AND_ASYNC[way](running, MUL_FEED)
    assert flushed.exists()
    assert recorded(device) == 1


def test_another_word_for_counting_is_refused(site):
    with pytest.raises(ValueError, match="leased or strict"):
        session(site.activated(MUL), count="Strict")
