"""A stick full of files from devices that never meet a network: answered one by one, as over HTTP."""

import errno
import json
import os
from pathlib import Path

import pytest
from exchanging import stored_batches, stored_records, used_device

from licensing_server.usage import sticks
from meterkit import limits
from meterkit.exchange import read_reply


@pytest.fixture
def fleet(embedded_fleet_of_today):
    """Commands read the system's clock: so does this fleet."""
    return embedded_fleet_of_today


@pytest.fixture
def license_id(fleet):
    return fleet.grant()


@pytest.fixture
def stick(tmp_path):
    path = tmp_path / "stick"
    path.mkdir()
    return path


@pytest.fixture
def exchange(fleet):
    """Run the command on some files; give what it says of each, by name."""

    def run(*paths, expect=0):
        result = fleet.invoke("--json", "exchange", *paths)
        assert result.exit_code == expect, (result.output, result.exception)
        items = json.loads(result.stdout)["items"] if result.stdout else []
        return {Path(item["file"]).name: item for item in items}

    return run


def reply_of(path):
    return read_reply(path.with_suffix(".mkreply").read_bytes())


def files_in(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_whole_stick_is_answered_file_by_file(fleet, license_id, stick, exchange):
    devices = [used_device(fleet, license_id) for _ in range(3)]
    new = fleet.device()
    (stick / "site" / "hall").mkdir(parents=True)
    (stick / "zz.mkact").write_text(new.request(fleet.code(license_id)))
    for at, device in enumerate(devices):
        path = stick / ("site/hall" if at else "") / f"{at}.mkbatch"
        path.write_text("\n".join([device.batch(1, 4), device.batch(5)]) + "\n")
    new.begin()
    (stick / "aa.mkbatch").write_text(new.batch())  # it is known only by a file whose name comes later
    (stick / "readme.txt").write_text("not ours")
    (stick / "._0.mkbatch").write_text("what another system leaves on a stick")
    said = exchange(stick)
    assert {name: item["result"] for name, item in said.items()} == dict.fromkeys(
        ["zz.mkact", "aa.mkbatch", "0.mkbatch", "1.mkbatch", "2.mkbatch"], "accepted"
    )
    assert fleet.units(license_id) == 3 * 21
    for at, device in enumerate(devices):
        (receipt,) = reply_of(stick / ("site/hall" if at else "") / f"{at}.mkbatch").receipts
        assert device.open_receipt(receipt).position == device.position
    assert new.open_token(reply_of(stick / "zz.mkact").token).license_id == license_id
    assert not [path for path in stick.rglob(".*") if path.name != "._0.mkbatch"]


def test_a_refused_file_says_why_and_takes_nothing_with_it(fleet, license_id, stick, exchange):
    good, bad = used_device(fleet, license_id), used_device(fleet, license_id)
    (stick / "b.mkbatch").write_text(good.batch())
    (stick / "a.mkbatch").write_text(bad.batch(head="1" * 64))
    (stick / "c.mkbatch").write_bytes(b"\xff\xfe")
    (stick / "d.mkbatch").write_bytes(b"")
    (stick / "e.mkact").write_text(fleet.device().request(fleet.code(license_id), product="drone"))
    said = exchange(stick, expect=1)
    assert {name: item["result"] for name, item in said.items()} == {
        "a.mkbatch": "chain_broken",
        "b.mkbatch": "accepted",
        "c.mkbatch": "not_text",
        "d.mkbatch": "malformed_envelope",
        "e.mkact": "audience_wrong",
    }
    assert said["a.mkbatch"]["why"].startswith("The ledger's hash chain does not hold.")
    assert said["b.mkbatch"]["why"] is None
    problem = json.loads((stick / "a.mkreply").read_bytes())
    assert (problem["status"], problem["code"]) == (422, "chain_broken")
    assert fleet.units(license_id) == 21
    assert [row.device for row in stored_batches(fleet)] == [good.id]


def test_what_is_refused_inside_a_file_is_said_though_the_rest_was_taken(fleet, license_id, stick, exchange):
    device, other = used_device(fleet, license_id), used_device(fleet, license_id)
    path = stick / "a.mkbatch"
    path.write_text("\n".join([device.batch(1, 4), other.batch(), device.batch(5)]))
    said = exchange(path, expect=1)["a.mkbatch"]
    assert said["result"] == "subject_wrong"
    assert said["why"].startswith("In part: ")
    assert device.open_receipt(reply_of(path).receipts[0]).position == device.position
    assert fleet.units(license_id) == 21


def test_the_same_stick_again_changes_nothing(fleet, license_id, stick, exchange):
    device, asking = used_device(fleet, license_id), fleet.device()
    (stick / "a.mkbatch").write_text(device.batch())
    (stick / "b.mkact").write_text(asking.request(fleet.code(license_id)))
    (stick / "c.mkbatch").write_text("x.y.z")
    exchange(stick, expect=1)
    before, records = files_in(stick), stored_records(fleet)
    exchange(stick, stick / "a.mkbatch", expect=1)
    after = files_in(stick)
    assert reply_of(stick / "a.mkbatch").receipts == read_reply(before[stick / "a.mkreply"]).receipts
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} <= {stick / "b.mkreply"}
    assert (stored_records(fleet), len(stored_batches(fleet))) == (records, 1)


def test_a_file_that_was_cut_off_or_edited_is_judged_like_any_other(fleet, license_id, stick, exchange):
    device = used_device(fleet, license_id)
    text = "\n".join([device.batch(1, 4), device.batch(5)])
    (stick / "cut.mkbatch").write_text(text[:-40])
    assert exchange(stick, expect=1)["cut.mkbatch"]["why"].startswith("In part: ")
    assert device.open_receipt(reply_of(stick / "cut.mkbatch").receipts[0]).position == device.at(4)
    (stick / "cut.mkbatch").write_text(text)
    exchange(stick)
    assert fleet.units(license_id) == 21


def test_a_file_larger_than_allowed_is_not_read_to_its_end(stick, exchange):
    with (stick / "big.mkbatch").open("wb") as file:
        file.truncate(limits.FILE_BYTES_MAX + 1)
    assert exchange(stick, expect=1)["big.mkbatch"]["result"] == "too_large"


def test_links_and_pipes_on_a_stick_are_left_alone(stick, tmp_path, exchange):
    (tmp_path / "elsewhere.mkbatch").write_text("x.y.z")
    (stick / "link.mkbatch").symlink_to(tmp_path / "elsewhere.mkbatch")
    os.mkfifo(stick / "pipe.mkbatch")
    exchange(stick, expect=2)
    assert not list(stick.glob("*.mkreply"))


def test_a_stick_that_cannot_be_written_is_said_to_be_one(fleet, license_id, stick, exchange, monkeypatch):
    device = used_device(fleet, license_id)
    (stick / "a.mkbatch").write_text(device.batch())

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(sticks.os, "fsync", full)
        exchange(stick, expect=1)
    assert {path.name for path in stick.iterdir()} == {"a.mkbatch"}
    exchange(stick)
    assert device.open_receipt(reply_of(stick / "a.mkbatch").receipts[0]).position == device.position


def test_more_branches_in_a_file_than_a_reply_holds_receipts_are_receipted_in_turn(fleet, license_id):
    device = fleet.device(license_id)
    device.use(1)
    texts = []
    for _ in range(limits.EXCHANGE_BATCHES_MAX + 4):
        texts.append(device.batch(1))
        device.reset()
        device.install()
        device.use(1)
    reply = fleet.exchange(*texts)
    assert len(reply.receipts) == limits.EXCHANGE_BATCHES_MAX
    assert fleet.units(license_id) == len(texts)
    assert len(fleet.exchange(*texts[:4]).receipts) == 4
