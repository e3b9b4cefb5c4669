"""Exposure is written off by a named decision, as a figure, and comes back when the ledger does."""

import pytest
from exchanging import exposed, limit_of, refused, stored_batches
from fleet import MODEL, START_S, FakeDevice

from licensing_server.devices import decisions
from licensing_server.pages import Page
from meterkit.licenses import Policy
from meterkit.positions import Position


@pytest.fixture
def license_id(fleet):
    return fleet.grant(token_units_max=400, pool_units=1_000)


@pytest.fixture
def lost(fleet, license_id):
    """A device that used 100 of its 400 and was then never heard of again."""
    device = fleet.device(license_id)
    device.use(100)
    device.sync()
    device.install()
    return device


def write_off(fleet, device, why="fell into the sea", who="Ada"):
    return decisions.write_off(fleet.server, device.id, epoch=device.epoch, why=why, who=who)


def test_forgetting_a_ledger_brings_no_fresh_pool(fleet, license_id):
    device = fleet.device(license_id)
    given = [limit_of(device)]
    for _ in range(4):
        device.reset()
        device.activate(fleet.code(license_id))
        given.append(limit_of(device))
    assert given == [400, 400, 200, 0, 0]


def test_neither_does_a_ledger_that_never_was(fleet, license_id):
    device = fleet.device()
    given = []
    for at in range(4):
        epoch = "ep_" + "abcd"[at] * 26
        device.activate(fleet.code(license_id), position=Position(epoch=epoch, seq=9, head="1" * 64))
        given.append(limit_of(device))
    assert given == [400, 400, 200, 0]


def test_what_is_written_off_can_be_given_to_others(fleet, license_id, lost):
    assert exposed(fleet, license_id) == 400
    decided = write_off(fleet, lost)
    assert exposed(fleet, license_id) == 0
    assert [limit_of(fleet.device(license_id)) for _ in range(3)] == [400, 400, 100]
    assert decided["exposures"] == [
        {
            "epoch": lost.epoch,
            "license": license_id,
            "model": MODEL,
            "unit": "call",
            "units": 400,
            "unbounded": False,
        }
    ]
    assert (decided["who"], decided["why"], decided["created_at"]) == ("Ada", "fell into the sea", START_S)
    assert fleet.units(license_id) == 100  # a figure, no usage and no money


def test_only_that_life_of_that_device_is_written_off(fleet, license_id, lost):
    other = fleet.device(license_id)
    old = lost.epoch
    lost.reset()
    lost.activate(fleet.code(license_id))
    assert exposed(fleet, license_id) == 400 + 400 + limit_of(lost)
    decisions.write_off(fleet.server, lost.id, epoch=old, why="x", who="y")
    assert exposed(fleet, license_id) == limit_of(other) + limit_of(lost)


def test_it_is_undone_when_the_ledgers_usage_comes_after_all(fleet, license_id, lost):
    decided = write_off(fleet, lost)
    others = [fleet.device(license_id) for _ in range(2)]
    lost.use(250)
    fleet.clock.advance(86_400)
    text = lost.batch()
    reply = fleet.exchange(text)
    assert fleet.units(license_id) == 350
    (row,) = decisions.page_write_offs(fleet.server, lost.id, Page())["items"]
    assert (row["id"], row["reversed_at"]) == (decided["id"], fleet.clock.now)
    assert row["reversed_by"] == max(batch.acceptance for batch in stored_batches(fleet))
    # 350 are accepted, 800 exposed by the others: more than there is, and the pool gives nothing more.
    assert limit_of_text(lost, reply.token) == 0
    assert exposed(fleet, license_id) == 800 + 150
    fleet.clock.advance(1)
    fleet.exchange(text)
    (again,) = decisions.page_write_offs(fleet.server, lost.id, Page())["items"]
    assert again == row
    assert len(others) == 2


def test_what_was_accepted_before_does_not_undo_it_when_it_is_sent_again(fleet, lost):
    write_off(fleet, lost)
    fleet.exchange(lost.batch(1, 3))
    (row,) = decisions.page_write_offs(fleet.server, lost.id, Page())["items"]
    assert row["reversed_at"] is None


def test_a_token_given_after_it_is_exposed_anew(fleet, license_id, lost):
    held = lost.serial
    write_off(fleet, lost)
    lost.activate(fleet.code(license_id), position=lost.at(3))
    assert lost.serial > held  # not the same token again, whose exposure is written off
    assert exposed(fleet, license_id) == limit_of(lost) == 400


def test_expiry_frees_nothing_and_needs_a_write_off(fleet):
    license_id = fleet.grant(token_units_max=900, pool_units=1_000, token_life_s=3_600, grace_s=0)
    device = fleet.device(license_id)
    fleet.clock.advance(300 * 86_400)
    assert limit_of(fleet.device(license_id)) == 100
    write_off(fleet, device)
    assert limit_of(fleet.device(license_id)) == 900


def test_what_is_unbounded_is_written_off_too(fleet):
    license_id = fleet.grant(token_units_max=50, policy=Policy(limit="flag"))
    device = fleet.device(license_id)
    assert write_off(fleet, device)["exposures"][0]["unbounded"] is True
    (item,) = decisions.show_exposures(fleet.server, device.id)["items"]
    assert (item["units"], item["unbounded"]) == (0, False)


def test_there_must_be_something_to_write_off(fleet, lost):
    write_off(fleet, lost)
    assert refused(write_off, fleet, lost) == "state_conflict"
    stranger = FakeDevice.make(fleet)
    assert refused(write_off, fleet, stranger) == "not_found"
    lost.reset()
    assert refused(write_off, fleet, lost) == "state_conflict"


def test_it_is_asked_over_http_once_and_by_whom_is_kept(api, fleet, license_id, lost):
    path = f"/v1/devices/{lost.id}/write-offs"
    body = {"epoch": lost.epoch, "why": "stolen"}
    assert api.get(f"/v1/devices/{lost.id}/exposures")["items"][0]["units"] == 400
    made = api.post(path, body, **{"idempotency-key": "one"})
    assert made["who"].startswith("key_")
    assert api.post(path, body, **{"idempotency-key": "one"}) == made
    assert api.post(path, body, expect=409)["code"] == "state_conflict"
    assert api.post(path, {"epoch": "x", "why": "stolen"}, expect=422)["code"] == "malformed_members"
    assert api.post(path, {"epoch": lost.epoch}, expect=422)["code"] == "malformed_members"
    assert api.get(path)["items"] == [made]
    assert exposed(fleet, license_id) == 0


def limit_of_text(device, text):
    return device.open_token(text).terms(MODEL).limit
