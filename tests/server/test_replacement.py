"""A broken device is replaced by its vendor's own programs, within a limit; what it used still counts."""

import pytest
from exchanging import exposed, limit_of, refused
from fleet import claims_of

from licensing_server.devices import decisions
from licensing_server.devices import service as devices
from licensing_server.licenses import service as licenses
from licensing_server.pages import Page
from licensing_server.usage import deciding
from licensing_server.usage.deciding import Resolution
from meterkit import envelopes, limits

LATER_S = limits.REPLACEMENT_PERIOD_S


@pytest.fixture
def license_id(fleet):
    return fleet.grant(devices_max=2)


@pytest.fixture
def pair(fleet, license_id):
    return [fleet.device(license_id), fleet.device(license_id)]


def replace(fleet, device, why="it does not start", who="Ada"):
    return decisions.replace_device(fleet.server, device.id, why=why, who=who)


def activate(fleet, code):
    device = fleet.device()
    device.activate(code)
    device.install()
    return device


def test_a_new_device_takes_the_place_of_the_old_one(fleet, license_id, pair):
    old, other = pair
    third = fleet.device()
    assert refused(third.activate, fleet.code(license_id)) == "code_used_up"
    made = replace(fleet, old)
    new = activate(fleet, made["code"]["code"])
    assert new.token.license_id == license_id
    assert devices.show(fleet.server, old.id)["state"] == "replaced"
    other.use(1)
    assert other.sync().token is not None
    assert refused(third.activate, fleet.code(license_id)) == "code_used_up"  # one place was freed, not two


def test_what_the_old_device_used_is_still_taken_and_billed(fleet, license_id, pair):
    old, _ = pair
    old.use(30)
    replace(fleet, old)
    fleet.clock.advance(90 * 86_400)
    old.use(12)
    text = old.batch()
    reply = fleet.exchange(text)
    assert old.open_receipt(reply.receipts[0]).position == old.position
    assert reply.token is None
    assert fleet.units(license_id) == 42
    assert old.id in claims_of(envelopes.REVOCATIONS, reply.revocations or last_list(fleet))["devices"]
    assert refused(old.activate, fleet.code(license_id)) == "device_revoked"
    assert fleet.exchange(text).receipts == reply.receipts
    assert fleet.units(license_id) == 42


def last_list(fleet):
    with devices.read(fleet.server) as connection:
        return devices.revocation_store.newest(connection)[1]


def test_what_the_old_device_may_still_use_stays_out_of_the_pool(fleet):
    license_id = fleet.grant(devices_max=1, token_units_max=600, pool_units=1_000)
    old = fleet.device(license_id)
    new = activate(fleet, replace(fleet, old)["code"]["code"])
    assert limit_of(new) == 400
    decisions.write_off(fleet.server, old.id, epoch=old.epoch, why="seen in pieces", who="Ada")
    assert exposed(fleet, license_id) == 400


def test_a_license_has_a_tenth_of_its_places_and_at_least_one_in_a_period(fleet, license_id, pair):
    old, other = pair
    new = activate(fleet, replace(fleet, old)["code"]["code"])
    assert refused(replace, fleet, other) == "replacements_used_up"
    assert refused(replace, fleet, new) == "replacements_used_up"
    fleet.clock.advance(LATER_S - 1)
    assert refused(replace, fleet, other) == "replacements_used_up"
    fleet.clock.advance(1)
    replace(fleet, other)
    assert len(decisions.page_replacements(fleet.server, license_id, Page())["items"]) == 2
    wide = fleet.grant(devices_max=30)
    many = [fleet.device(wide) for _ in range(4)]
    for each in many[:3]:
        replace(fleet, each)
    assert refused(replace, fleet, many[3]) == "replacements_used_up"
    assert devices.show(fleet.server, many[3].id)["state"] == "active"


def test_only_a_device_in_force_can_be_replaced(fleet, pair):
    old, other = pair
    replace(fleet, old)
    assert refused(replace, fleet, old) == "state_conflict"
    assert refused(replace, fleet, fleet.device()) == "not_found"
    devices.revoke(fleet.server, "device", other.id)
    assert refused(replace, fleet, other) == "state_conflict"
    assert devices.revoke(fleet.server, "device", old.id)["kind"] == "device"
    assert devices.show(fleet.server, old.id)["state"] == "replaced"  # its place stays free
    suspended = fleet.grant()
    device = fleet.device(suspended)
    licenses.change_state(fleet.server, suspended, "suspended")
    assert refused(replace, fleet, device) == "license_inactive"


def test_a_device_that_is_held_does_not_get_away_by_being_replaced(fleet):
    device = fleet.device(fleet.grant(fork_policy="hold"))
    clone = device.clone()
    device.use(1)
    clone.use(2)
    device.sync()
    clone.sync()
    assert refused(replace, fleet, device) == "state_conflict"
    (fork,) = fleet.exceptions("fork")
    deciding.resolve(fleet.server, fork["id"], Resolution(how="seen"), who="Ada")
    replace(fleet, device)


def test_it_is_asked_over_http_once_and_kept_by_whom_and_why(api, fleet, license_id, pair):
    path = f"/v1/devices/{pair[0].id}/replacement"
    body = {"why": "screen broken"}
    made = api.post(path, body, **{"idempotency-key": "one"})
    assert api.post(path, body, **{"idempotency-key": "one"}) == made
    assert api.post(path, body, expect=409)["code"] == "state_conflict"
    assert api.post(path, {}, expect=422)["code"] == "malformed_members"
    spent = api.post(f"/v1/devices/{pair[1].id}/replacement", body, expect=403)
    assert spent["code"] == "replacements_used_up"
    assert made["code"]["expires_at"] == fleet.clock.now + limits.REPLACEMENT_CODE_LIFE_S
    (kept,) = api.get(f"/v1/licenses/{license_id}/replacements")["items"]
    assert kept == {**made, "code": made["code"]["id"]}
    assert kept["who"].startswith("key_")
    assert (kept["why"], kept["created_at"]) == ("screen broken", fleet.clock.now)


def test_a_device_moves_to_another_license_at_its_token_record_not_at_a_time(fleet):
    first, second = fleet.grant(devices_max=1), fleet.grant(devices_max=1)
    device = fleet.device(first)
    device.use(10)
    before = device.token
    device.activate(fleet.code(second))
    fleet.clock.advance(3 * 86_400)
    at = fleet.clock.now
    device.use(5, at=at, token=before.jti, license_id=first)  # the new token is signed, and not yet installed
    device.install()
    device.use(7, at=at - 2 * 86_400)  # under the new one, by a clock that went back
    device.use(2, at=at, token=before.jti)  # admitted under the old token, and folded after the new one's record
    cut = [entry.claims["kind"] for entry in device.entries].index("token", 2)
    fleet.exchange(device.batch(1, cut, license_id=first), device.batch(cut + 1))
    assert (fleet.units(first), fleet.units(second)) == (15, 9)
    assert fleet.exceptions() == []


def test_its_old_place_and_pool_are_free_once_the_new_token_is_recorded(fleet):
    first = fleet.grant(devices_max=1, token_units_max=600, pool_units=1_000)
    second = fleet.grant()
    device, heir = fleet.device(first), fleet.device()
    device.use(100)
    device.activate(fleet.code(second))
    assert refused(heir.activate, fleet.code(first)) == "code_used_up"
    fleet.exchange(device.batch(1, license_id=first))
    assert exposed(fleet, first) == 500
    assert refused(heir.activate, fleet.code(first)) == "code_used_up"  # its old token still runs
    device.install()
    fleet.exchange(device.batch(4))
    assert exposed(fleet, first) == 0
    heir.activate(fleet.code(first))
    assert limit_of(heir) == 600
