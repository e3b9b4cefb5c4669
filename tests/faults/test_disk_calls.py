"""System calls that fail, once or for good, at each place in turn: whether a commit stands is then unknown."""

from pathlib import Path

import pytest
from device_site import MUL, limited, recorded, records
from disk_faults import Disk, Host, injected

from device_sdk import Device

LIMIT = 1_000_000
PLACES = range(1, 9)
CALLS = ("fdatasync", "pwrite64", "ftruncate", "pread64")


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path)
    made.site.activated(limited(MUL, LIMIT), real_clocks=True).close()
    yield made
    made.close()


def use_and_tell(host: Host, into: Path) -> list[str]:
    """Use, fold and hand over; gives the codes that it was refused with."""
    acts = (("use", 5), ("edge",), ("use", 5), ("status",), ("edge",), ("use", 5), ("export", into), ("use", 5))
    told = [host.tell(*act) for act in acts]
    return [each[name] for each in told for name in each if name.endswith("code") and each[name]]


@pytest.mark.parametrize("until", ["", "+"], ids=["once", "for good"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_fails(disk, tmp_path, call, until):
    """Whatever became of a commit, the next transaction goes on from what the ledger says then."""
    host = disk.start()
    host.tell("open")
    host.tell("use", 5)
    refused = []
    for place in PLACES:
        with injected(host, f"{call}:error=EIO:when={place}{until}"):
            refused += use_and_tell(host, tmp_path / "out.mkbatch")
        assert host.tell("use", 3) == {"code": None, "delivered": 3}
    assert len(refused) >= 4
    assert set(refused) <= {"ledger_unwritable", "ledger_damaged", "directory_unusable"}
    host.tell("close")
    assert host.end() == (0, "")
    device = disk.site.open(real_clocks=True)
    assert recorded(device) == host.delivered
    check_records(disk, device)


def check_records(disk: Disk, device: Device) -> None:
    assert not records(device, "recovery")
    assert not any(each["flags"] or each["unsettled"] for each in records(device, "usage"))
    counted = recorded(device)
    disk.site.vendor.accept(device.make_batches())
    assert disk.site.vendor.units("mul") == counted


def kill_in_a_commit(disk: Disk) -> int:
    """Kill a host whose commit is on the disk but for its end: SQLite undoes it. How many answers it delivered."""
    host = disk.start()
    host.tell("open")
    host.tell("use", 5)
    with injected(host, "ftruncate:error=EIO"):
        assert host.tell("use", LIMIT)["code"] == "ledger_unwritable"
        host.kill()
    assert (disk.site.path / "ledger.sqlite-journal").stat().st_size
    return host.delivered


def test_it_is_killed_in_the_midst_of_a_commit(disk):
    delivered = kill_in_a_commit(disk) + kill_in_a_commit(disk)
    device = disk.site.open(real_clocks=True)
    assert recorded(device) == delivered
    check_records(disk, device)


def test_and_its_journal_is_deleted(disk):
    """The commit stands after all: whole, and counted once."""
    delivered = kill_in_a_commit(disk)
    (disk.site.path / "ledger.sqlite-journal").unlink()
    device = disk.site.open(real_clocks=True)
    assert recorded(device) == delivered
    check_records(disk, device)
