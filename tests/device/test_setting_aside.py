"""Setting a ledger aside: what the next one says, what moves over, and who else is at it."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from device_damage import flip, raw, set_body
from device_site import MUL, NS, PATIENCE_S, ROWS, Site, leased, limited, recorded, records, session, use
from vendor import PRODUCT

from device_sdk import Device
from device_sdk import setting_aside as aside_module
from device_sdk.ledger_store import LedgerStore
from meterkit import limits
from meterkit.exchange import open_batch

OPEN_ONCE = """
import sys
from device_sdk import Device, Trust
trust = Trust(issuer=sys.argv[2], roots=(sys.argv[3],))
sys.stdin.readline()
device = Device.open(sys.argv[1], trust=trust, product=sys.argv[4])
with device.counter.transaction() as tx:
    print(device.id, tx.position().epoch, tx.position().seq)
"""


@pytest.mark.usefixtures("used")
def test_the_new_genesis_names_the_old_position_and_what_is_lost(site):
    old = [json.loads(body) for (body,) in raw(site, "SELECT body FROM records ORDER BY seq")]
    hashes = [hash_ for (hash_,) in raw(site, "SELECT hash FROM records ORDER BY seq")]
    set_body(site, 4, flip)
    device = site.open()
    device.make_batches()
    genesis, token, *rest = sorted(records(device), key=lambda each: each["kind"] == "recovery")
    assert genesis["previous"] == {"epoch": old[0]["epoch"], "seq": 3, "head": hashes[2]}
    assert genesis["lost"] == {"from": 4, "to": 5}
    assert genesis["epoch"] != old[0]["epoch"]
    assert token["jti"] == old[1]["jti"]
    assert [each["code"] for each in rest] == ["ledger_set_aside"]


@pytest.mark.usefixtures("used")
def test_the_good_part_is_handed_over_until_it_is_receipted(site):
    set_body(site, 5, flip)
    device = site.open()
    first, second = (open_batch(text, lambda kid: site.vendor.keys[kid])[1] for text in device.make_batches())
    assert (first.seq_from, first.seq_to) == (1, 4)
    assert first.through == 0
    assert second.epoch != first.epoch
    site.vendor.now = site.time.now_s
    old, new = device.make_batches()
    device.take_reply(site.vendor.accept([old]))
    assert site.vendor.units("mul") == 7
    assert [path.name for path in site.path.glob("*-*.sqlite")] == [f"receipted-{first.epoch}.sqlite"]
    (left,) = device.make_batches()
    assert open_batch(left, lambda kid: site.vendor.keys[kid])[1].epoch == second.epoch
    assert len(new) == len(left) or new != old


def test_live_cells_move_to_the_new_ledger(site):
    """What they count after the damage, and had counted before it without a fold, is recorded once."""
    device, other = site.activated(MUL, ROWS), site.open()
    running, elsewhere = session(device), session(other)
    use(running, 3)
    recorded(device)
    use(running, 4)
    use(elsewhere, 2)
    device._store.drop()
    other._store.drop()
    set_body(site, 3, flip)
    device.make_batches()
    assert recorded(device) == 6
    use(running, 5)
    use(elsewhere, 1)
    assert recorded(other) == 12
    assert not [each for each in records(device, "recovery") if each["code"] != "ledger_set_aside"]
    token = records(device, "token")[0]
    assert {each["token"] for each in records(device, "usage")} == {token["jti"]}
    site.vendor.accept(device.make_batches())
    device.close()
    other.close()
    assert leased(site.open()) == 0


@pytest.mark.usefixtures("used")
def test_an_anchor_that_is_not_in_the_ledger_means_it_was_restored(site):
    """The server has accepted more than this ledger holds: no second record is signed with the same seq."""
    shutil.copy(site.path / "ledger.sqlite", site.path.parent / "image")
    device = site.open()
    use(session(device), 4)
    site.sync(device, MUL)
    epoch = records(device)[0]["epoch"]
    device.close()
    shutil.copy(site.path.parent / "image", site.path / "ledger.sqlite")
    again = site.open()
    genesis = records(again)[0]
    assert genesis["epoch"] != epoch
    assert genesis["previous"]["epoch"] == epoch
    assert genesis["previous"]["seq"] > 5  # what the image holds
    assert genesis["lost"] is None


@pytest.mark.usefixtures("used")
def test_nor_is_one_signed_where_the_token_came_while_it_ran(site):
    image = (site.path / "ledger.sqlite").read_bytes()
    device = site.open()
    use(session(device), 4)
    batches = device.make_batches()
    epoch = records(device)[0]["epoch"]
    reply = site.vendor.accept(batches, [MUL])
    device.close()
    (site.path / "ledger.sqlite").write_bytes(image)
    again = site.open()
    again.take_reply(reply)
    after = [open_batch(text, lambda kid: site.vendor.keys[kid])[1] for text in again.make_batches()]
    assert after[-1].epoch != epoch


@pytest.mark.usefixtures("used")
def test_processes_that_find_the_damage_at_once_set_it_aside_once(site):
    site.time.set_true()
    set_body(site, 5, flip)
    trust = site.vendor.trust
    script = OPEN_ONCE.replace("with device", "device.make_batches()\nwith device")
    argv = [sys.executable, "-c", script, site.path, trust.issuer, trust.roots[0], PRODUCT]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0].split() for process in started]
    assert [process.returncode for process in started] == [0] * 6
    assert len({epoch for _, epoch, _ in told}) == 1
    assert len(list(site.path.glob("ledger-*.sqlite"))) == 1


class Killed(BaseException):
    """What a test raises where a process would be killed."""


STEPS = ("write", "_keep", "replace", "sync_directory")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_while_it_is_set_aside_leaves_the_old_ledger_or_the_new_one(site, monkeypatch, step, when):
    device = site.activated(limited(MUL, 1_600))
    running = session(device)
    use(running, 3)
    recorded(device)
    use(running, 4)
    device._store.drop()
    set_body(site, 3, flip)
    with monkeypatch.context() as patch:
        kill_at(patch, step, when)
        with pytest.raises(Killed):
            device.make_batches()
    device.make_batches()
    assert recorded(device) == 4
    assert len(list(site.path.glob("ledger-*.sqlite"))) == 1
    assert not (site.path / ".ledger-next.sqlite").exists()
    genesis = records(device)[0]
    assert genesis["lost"] == {"from": 3, "to": 3}


def kill_at(patch, step: str, when: str) -> None:
    owner, name = {
        "write": (LedgerStore, "drop"),
        "_keep": (aside_module, "_keep"),
        "replace": (os, "replace"),
        "sync_directory": (aside_module, "sync_directory"),
    }[step]
    real = getattr(owner, name)

    def killed(*args, **kwargs):
        if step in ("write", "replace") and ".ledger-next" not in str(getattr(args[0], "path", args[0])):
            return real(*args, **kwargs)
        if when == "after":
            real(*args, **kwargs)
        raise Killed

    patch.setattr(owner, name, killed)


@pytest.mark.usefixtures("used")
def test_a_writer_that_waited_while_the_ledger_was_set_aside_writes_to_the_new_one(site, monkeypatch):
    """It had opened the old file: what it wrote there would be lost, and counted again in the new one."""
    first, second = site.open(), site.open()
    with second.counter.transaction() as tx:
        before = tx.epoch()
    set_body(site, 5, flip)
    replacing = threading.Event()
    keep = aside_module._keep

    def slow(vault, name) -> None:
        replacing.set()
        writer.join(0.3)  # by now it waits for the old file's lock, which is held here
        keep(vault, name)

    epochs: list[str] = []

    def late() -> None:
        assert replacing.wait(PATIENCE_S)
        with second.counter.transaction() as tx:
            epochs.append(tx.epoch())

    monkeypatch.setattr(aside_module, "_keep", slow)
    writer = threading.Thread(target=late)
    writer.start()
    first.make_batches()
    writer.join()
    assert epochs == [records(first)[0]["epoch"]]
    assert epochs != [before]


@pytest.mark.usefixtures("used")
def test_a_writer_that_had_just_connected_looks_again(site, monkeypatch):
    first, second = site.open(), site.open()
    set_body(site, 5, flip)
    reached, go = threading.Event(), threading.Event()
    begin = LedgerStore._connect

    def slow(store):
        made = begin(store)
        if threading.current_thread().name == "late":
            reached.set()
            assert go.wait(PATIENCE_S)
        return made

    monkeypatch.setattr(LedgerStore, "_connect", slow)
    second._store.drop()
    epochs: list[str] = []

    def late() -> None:
        with second.counter.transaction() as tx:
            epochs.append(tx.epoch())

    writer = threading.Thread(target=late, name="late")
    writer.start()
    assert reached.wait(PATIENCE_S)
    first.make_batches()
    go.set()
    writer.join()
    assert epochs == [records(first)[0]["epoch"]]


@pytest.mark.usefixtures("used")
def test_what_a_ledger_that_was_set_aside_told_of_the_clock_goes_on(site):
    device = site.open()
    site.time.set_wall(-2_000)
    device.status()
    assert device.status().clock_suspect
    device.close()
    set_body(site, 4, flip)
    again = site.open()
    again.make_batches()
    assert again.status().clock_suspect
    site.sync(again)
    assert not again.status().clock_suspect


def test_two_devices_keep_the_time_of_their_own(site, tmp_path):
    other = Site(tmp_path / "other")
    first, second = site.activated(MUL), other.activated(MUL)
    site.time.run_on(500)
    assert isinstance(first, Device)
    assert first.status().time - second.status().time == 500 * NS // NS
    other.close()


def test_the_position_before_is_the_epoch_before_whatever_was_receipted_further_back(site):
    device = site.activated(MUL)
    running = session(device)
    for _ in range(10):
        use(running)
        site.time.run_on(limits.WINDOW_S)
    site.sync(device)
    epochs = []
    for _ in range(2):
        epochs.append(records(device)[0]["epoch"])
        device._store.drop()
        ((last,),) = raw(site, "SELECT MAX(seq) FROM records")
        set_body(site, last, flip)
        device.make_batches()
        site.activate(device, MUL)
    genesis = records(device)[0]
    assert genesis["previous"]["epoch"] == epochs[1]
    assert genesis["previous"]["seq"] < 10
