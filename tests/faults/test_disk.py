"""Faults of the disk under a real process, at every moment of a device's life.

The host program goes on, is told why it may not run, and needs no restart; every answer is recorded once.
"""

import pytest
from device_damage import flip, set_body
from device_site import MUL, limited, recorded, records
from disk_faults import (
    Disk,
    KernelDisk,
    failing,
    full,
    locked,
    moved_away,
    no_descriptors,
    read_only,
    small_files,
)
from vendor import code as activation_code

from meterkit.errors import CODES

LIMIT = 1_000_000
FAULTS = {
    "full": full,
    "read-only": read_only,
    "not there": moved_away,
    "locked by a process that was stopped": locked,
    "no descriptor left": no_descriptors,
    "no file may grow": small_files,
    "nothing can be synced": failing("fdatasync"),
    "nothing can be written": failing("pwrite64"),
    "no journal can be ended": failing("ftruncate"),
    "read-only where it was open": failing("pwrite64,ftruncate,fdatasync", "EROFS"),
}
# Where the ledger cannot even be read; the last leaves a journal that only who may write can undo.
UNREADABLE = {"not there", "no descriptor left", "no journal can be ended"}
EXPORTING = FAULTS.keys() - UNREADABLE - {"no file may grow"}  # the file that is exported to is one as well
ALLOWED = {None, "ledger_unwritable", "directory_unusable", "platform_unsupported"}  # no boot id: no descriptor
USUAL = ("full", "read-only", "nothing can be synced", "no journal can be ended")


def faults(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fault", names)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path)
    yield made
    made.close()


@pytest.fixture
def licensed(disk):
    """A disk whose device is activated; the vendor's clock is the real one."""
    disk.site.activated(limited(MUL, LIMIT), real_clocks=True).close()
    return disk


def check_end(disk: Disk, *, units: int, in_flight: int = 0, recoveries: tuple[str, ...] = ()) -> None:
    """Every host has ended well; what they delivered is in the ledger, and holds to a server's eyes."""
    for host in disk.hosts:
        code, stderr = host.end()
        assert (code, stderr) in ((0, ""), (-9, ""))
    device = disk.site.open(real_clocks=True)
    counted = recorded(device)
    assert units <= counted <= units + in_flight
    assert tuple(each["code"] for each in records(device, "recovery")) == recoveries
    assert not any(each["flags"] or each["unsettled"] for each in records(device, "usage"))
    disk.site.vendor.accept(device.make_batches())
    assert disk.site.vendor.units("mul") == counted


@faults(*FAULTS)
def test_in_use(licensed, tmp_path, fault):
    """What is leased is used up; then it is refused, whatever the token says, until the fault has ended."""
    disk, host = licensed, licensed.start()
    assert host.tell("open")["code"] is None
    assert host.tell("use", 20) == {"code": None, "delivered": 20}
    with FAULTS[fault](disk, host):
        refused = host.tell("use", LIMIT)
        assert refused["code"] == "ledger_unwritable"
        assert host.tell("use", 1) == {"code": "ledger_unwritable", "delivered": 0}
        told = host.tell("status")
        if fault in UNREADABLE:
            assert told["code"] == "ledger_unwritable"
        else:
            status = told["status"]
            assert (status["state"], status["code"]) == ("ok", None)
            assert status["ledger_code"] == "ledger_unwritable"
            assert status["models"][0]["left_units"] == LIMIT - host.delivered
        exported = host.tell("export", tmp_path / "out.mkbatch")
        assert (exported["code"] is None) == (fault in EXPORTING), exported
    if fault in EXPORTING:
        disk.site.vendor.accept((tmp_path / "out.mkbatch").read_text().split())
    assert host.tell("use", 3) == {"code": None, "delivered": 3}
    assert host.tell("status")["status"]["ledger_code"] is None
    assert host.tell("close")["code"] is None
    check_end(disk, units=host.delivered)


def test_the_kernel_makes_it_read_only_for_an_error(tmp_path):
    """Nothing can be written until it is repaired, not even live counts to the disk; and nobody dies of it."""
    disk = KernelDisk(tmp_path)
    try:
        disk.site.activated(limited(MUL, LIMIT), real_clocks=True).close()
        host = disk.start()
        host.tell("open")
        host.tell("use", 20)
        disk.fail()
        assert host.tell("use", LIMIT)["code"] == "ledger_unwritable"
        status = host.tell("status")["status"]
        assert (status["state"], status["ledger_code"]) == ("ok", "ledger_unwritable")
        assert status["models"][0]["left_units"] == LIMIT - host.delivered
        assert host.tell("export", tmp_path / "out.mkbatch")["code"] is None
        assert host.tell("close")["code"] is None
        assert host.end() == (0, "")
    finally:
        disk.close()


@faults(*USUAL)
def test_and_the_process_is_killed(licensed, fault):
    disk, host = licensed, licensed.start()
    host.tell("open")
    host.tell("use", 20)
    with FAULTS[fault](disk, host):
        assert host.tell("use", LIMIT)["code"] == "ledger_unwritable"
        host.kill()
    check_end(disk, units=host.delivered)


@faults(*USUAL, "locked by a process that was stopped", "no descriptor left")
def test_at_open(licensed, fault):
    """It opens, or says why not, and then does in the same process."""
    disk, host = licensed, licensed.start()
    with FAULTS[fault](disk, host):
        opened = host.tell("open")
        assert opened["code"] in ALLOWED
        if opened["code"] is None:
            assert host.tell("use", 1) == {"code": "ledger_unwritable", "delivered": 0}
            assert host.tell("status")["status"]["models"][0]["left_units"] == LIMIT
    if opened["code"] is not None:
        assert host.tell("open")["code"] is None
    assert host.tell("use", 3) == {"code": None, "delivered": 3}
    host.tell("close")
    check_end(disk, units=3)


@faults(*USUAL)
def test_at_the_first_open_of_all(disk, fault):
    """Keys, directory and ledger are made then; what could be made stays, and the rest follows."""
    disk.site.path.mkdir(mode=0o700)
    host = disk.start()
    with FAULTS[fault](disk, host):
        assert host.tell("open")["code"] in ALLOWED - {None}
    assert host.tell("open")["code"] is None
    request = host.tell("request", activation_code())["request"]
    (disk.root / "reply").write_bytes(disk.site.vendor.answer_activation(request, [MUL]))
    assert host.tell("take", disk.root / "reply")["refused"] == []
    assert host.tell("use", 3) == {"code": None, "delivered": 3}
    host.tell("close")
    check_end(disk, units=3)


@faults(*USUAL)
def test_while_a_reply_is_taken(licensed, tmp_path, fault):
    """What cannot be stored is refused, and says so; the same reply is taken later."""
    disk, host = licensed, licensed.start()
    host.tell("open")
    host.tell("use", 20)
    host.tell("export", tmp_path / "out.mkbatch")
    batches = (tmp_path / "out.mkbatch").read_text().split()
    disk.site.vendor.now = disk.site.time.now_s + 1
    (tmp_path / "reply").write_bytes(disk.site.vendor.accept(batches, [limited(MUL, LIMIT // 2)]))
    with FAULTS[fault](disk, host):
        taken = host.tell("take", tmp_path / "reply")
        codes = set(taken["refused"]) if taken["code"] is None else {taken["code"]}
        assert codes
        assert {CODES[each].family for each in codes} <= {"ledger", "device", "input"}
        assert host.tell("use", LIMIT)["code"] == "ledger_unwritable"
    assert host.tell("take", tmp_path / "reply") == {"code": None, "refused": []}
    assert host.tell("use", 3) == {"code": None, "delivered": 3}
    assert host.tell("status")["status"]["models"][0]["limit_units"] == LIMIT // 2
    host.tell("close")
    check_end(disk, units=host.delivered)


@faults(*USUAL, "read-only where it was open")
def test_while_a_damaged_ledger_is_set_aside(licensed, tmp_path, fault):
    """The good part is handed over before, if it can be read, and after; nothing of it is signed otherwise."""
    disk, host = licensed, licensed.start()
    host.tell("open")
    for _ in range(3):
        host.tell("use", 4)
        host.tell("status")
    host.tell("use", 4)
    set_body(disk.site, 4, flip)
    with FAULTS[fault](disk, host):
        exported = host.tell("export", tmp_path / "out.mkbatch")
        assert exported["code"] in ALLOWED
    if exported["code"] is None:
        disk.site.vendor.accept((tmp_path / "out.mkbatch").read_text().split())
        assert disk.site.vendor.units("mul") == 4
    assert host.tell("export", tmp_path / "after.mkbatch")["code"] is None
    disk.site.vendor.now = disk.site.time.now_s + 1
    batches = (tmp_path / "after.mkbatch").read_text().split()
    (tmp_path / "reply").write_bytes(disk.site.vendor.accept(batches, [limited(MUL, LIMIT)]))
    assert host.tell("take", tmp_path / "reply")["refused"] == []
    assert host.tell("use", 3) == {"code": None, "delivered": 3}
    host.tell("close")
    assert host.end() == (0, "")
    device = disk.site.open(real_clocks=True)
    assert records(device)[0]["lost"] == {"from": 4, "to": 5}
    disk.site.vendor.accept(device.make_batches())
    assert disk.site.vendor.units("mul") == host.delivered - 8
    assert len(list(disk.site.path.glob("ledger-*.sqlite"))) == 1
