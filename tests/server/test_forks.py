"""Clones and resets: proved, kept, counted, and shown to a person."""

import pytest
from exchanging import refused, stored_batches, used_device
from fleet import MODEL

from meterkit.ledger import Total

METER = (MODEL, "call")


@pytest.fixture
def license_id(fleet):
    return fleet.grant()


@pytest.fixture
def device(fleet, license_id):
    return used_device(fleet, license_id)


def test_a_clone_is_proved_and_both_branches_are_kept(fleet, device, license_id):
    device.sync()
    clone = device.clone()
    parted = device.position
    device.use(100)
    clone.use(1_000)
    device.sync()
    reply = clone.sync()
    assert clone.open_receipt(reply.receipts[0]).position == clone.position
    assert clone.open_receipt(reply.receipts[0]).totals == {METER: Total(units=1_021)}
    assert fleet.units(license_id) == 21 + 100 + 1_000
    (fork,) = fleet.exceptions("fork")
    assert fork["evidence"]["fork_at"] == parted.to_claims()
    assert fork["evidence"]["heads"] == [device.position.to_claims(), clone.position.to_claims()]
    assert reply.token is not None  # its license only flags
    device.use(1)
    clone.use(1)
    for each in (device, clone, device, clone):
        text = each.batch()
        assert each.open_receipt(fleet.exchange(text).receipts[0]).position == each.position
    assert len(fleet.exceptions("fork")) == 1
    assert fleet.units(license_id) == 21 + 101 + 1_001


def test_a_fork_inside_an_accepted_batch_is_found_and_its_prefix_counted_once(fleet, device, license_id):
    clone = device.clone()
    clone.entries = clone.entries[:5]
    clone.count = 6
    clone.use(50)
    clone.use(60)
    device.sync()
    fleet.exchange(clone.batch(4))
    assert fleet.units(license_id) == 21 + 110
    (fork,) = fleet.exceptions("fork")
    assert fork["evidence"]["fork_at"] == device.at(5).to_claims()
    receipt = fleet.exchange(clone.batch(6)).receipts[0]
    assert clone.open_receipt(receipt).totals == {METER: Total(units=6 + 110)}
    parents = [(row.acceptance, row.parent, row.first_new) for row in stored_batches(fleet)]
    assert parents == [(1, None, 1), (2, 1, 6)]


def test_a_fork_of_a_fork_and_from_the_first_record_on(fleet, device, license_id):
    device.sync()
    other = device.clone()
    other.entries, other.count, other.receipt = [], 0, None
    fleet.clock.advance(1)
    other.install()
    other.use(7)
    fleet.exchange(other.batch())
    third = other.clone()
    third.use(8)
    other.use(9)
    fleet.exchange(third.batch(1))
    fleet.exchange(other.batch(2))
    assert len(fleet.exceptions("fork")) == 2
    assert fleet.units(license_id) == 21 + 7 + 8 + 9


def test_behind_a_hole_on_an_unknown_branch_the_device_goes_on_from_its_own_receipt(fleet, device):
    device.sync()
    held = device.receipt
    clone = device.clone()
    device.use(1)
    device.use(1)
    device.sync()
    clone.use(5)
    clone.use(5)
    reply = fleet.exchange(clone.batch(10, 10))  # its record 9 never came
    assert reply.receipts == (held,)
    assert reply.token is None
    clone.receipt = None
    reply = fleet.exchange(clone.batch(10, 10))
    assert clone.open_receipt(reply.receipts[0]).position.seq == 0
    fleet.exchange(clone.batch(1))
    assert len(fleet.exceptions("fork")) == 1


def test_a_held_device_gets_receipts_only_until_a_person_resolves_it(api, fleet):
    license_id = fleet.grant(fork_policy="hold")
    device = fleet.device(license_id)
    clone = device.clone()
    device.use(1)
    clone.use(2)
    device.sync()
    assert clone.sync().token is None
    device.use(1)
    reply = device.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert refused(device.activate, fleet.code(license_id)) == "state_conflict"
    assert api.get(f"/v1/devices/{device.id}")["held"] is True
    (fork,) = api.get("/v1/exceptions", device=device.id, state="open")["items"]
    resolved = api.post(f"/v1/exceptions/{fork['id']}/resolve", {"how": "image restored"}, expect=200)
    assert (resolved["state"], resolved["resolution"]) == ("resolved", "image restored")
    assert resolved["resolved_by"].startswith("key_")
    again = api.post(f"/v1/exceptions/{fork['id']}/resolve", {"how": "x"}, expect=409)
    assert again["code"] == "state_conflict"
    device.use(1)
    assert device.sync().token is not None
    assert fleet.units(license_id) == 5


def test_a_license_may_say_that_a_fork_suspends_it(api, fleet):
    license_id = fleet.grant(fork_policy="suspend")
    device, bystander = fleet.device(license_id), fleet.device(license_id)
    clone = device.clone()
    device.use(1)
    clone.use(2)
    device.sync()
    clone.sync()
    assert api.get(f"/v1/licenses/{license_id}")["state"] == "suspended"
    bystander.use(1)
    assert bystander.sync().token is None
    api.post(f"/v1/licenses/{license_id}/resume", expect=200)
    bystander.use(1)
    assert bystander.sync().token is not None


def test_a_new_epoch_is_a_reset_and_counts_on(fleet, device, license_id):
    device.sync()
    old = device.position
    device.reset(lost=(9, 12))
    device.install()
    device.use(5)
    reply = device.sync()
    receipt = device.open_receipt(reply.receipts[0])
    assert receipt.totals == {METER: Total(units=5)}
    assert fleet.units(license_id) == 26
    (reset,) = fleet.exceptions("reset")
    assert reset["evidence"]["previous"] == old.to_claims()
    assert reset["evidence"]["lost"] == {"from": 9, "to": 12}
    assert (reset["epoch"], reset["state"]) == (device.epoch, "open")
    fleet.exchange(device.batch(1))
    assert len(fleet.exceptions()) == 1


def test_two_epochs_in_one_request_each_get_a_receipt(fleet, device, license_id):
    before = device.batch()
    device.reset()
    device.install()
    device.use(5)
    reply = fleet.exchange(before, device.batch(1))
    assert len(reply.receipts) == 2
    assert device.open_token(reply.token).anchor == device.position
    assert fleet.units(license_id) == 26
