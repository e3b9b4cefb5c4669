"""What usage becomes: attributed to a license and an instant, or set aside."""

import pytest
from exchanging import stored_records, used_device
from fleet import MODEL, START_S

from licensing_server.usage import service as usage
from meterkit import limits
from meterkit.ledger import Total
from meterkit.usage import clock_changed

METER = (MODEL, "call")


@pytest.fixture
def license_id(fleet):
    return fleet.grant()


@pytest.fixture
def device(fleet, license_id):
    return used_device(fleet, license_id)


def test_usage_under_an_unknown_token_is_kept_receipted_and_set_aside(fleet, device, license_id):
    device.install(jti="tok_" + "a" * 26, serial=device.serial + 7)
    device.use(40)
    reply = device.sync()
    assert device.open_receipt(reply.receipts[0]).totals == {METER: Total(units=61)}
    assert fleet.units(license_id) == 21
    (item,) = usage.sum_usage(fleet.server, license_id=license_id)["items"]
    assert (item["units"], item["quarantined"], item["records"]) == (21, 40, 7)
    (unknown,) = fleet.exceptions("unknown_token")
    assert (unknown["evidence"]["first"], unknown["evidence"]["records"]) == (10, 1)


@pytest.mark.parametrize("changed", [{"serial": 5_000_000_000}, {"iat": 5}, {"license": "lic_" + "b" * 26}])
def test_a_token_record_that_lies_about_its_token_sets_its_usage_aside(fleet, changed):
    license_id = fleet.grant()
    device = fleet.device()
    device.activate(fleet.code(license_id))
    device.install(**changed)
    device.use(9, license_id=changed.get("license", license_id))
    device.sync()
    assert fleet.units(license_id) == 0
    assert len(fleet.exceptions("unknown_token")) == 1


def test_usage_that_names_another_devices_token_is_set_aside(fleet, device, license_id):
    other = fleet.device(license_id)
    device.use(9, token=other.token.jti)
    device.sync()
    assert fleet.units(license_id) == 21
    assert len(fleet.exceptions("unknown_token")) == 1


def test_more_units_than_a_window_has_time_for_are_set_aside(fleet, license_id):
    device = fleet.device(license_id)
    most = limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S
    device.use(most)
    device.use(most + 1)
    device.use(2**52)
    device.sync()
    (item,) = usage.sum_usage(fleet.server)["items"]
    assert (item["units"], item["quarantined"]) == (most, most + 1 + 2**52)
    (found,) = fleet.exceptions("implausible_rate")
    assert found["evidence"]["records"] == 2


def test_sums_of_quarantined_units_do_not_overflow(fleet, license_id):
    device = fleet.device(license_id)
    for _ in range(3):
        device.reset()
        device.install()
        device.count = 0
        device.use(2**53 - 1)
        device.sync()
    (item,) = usage.sum_usage(fleet.server)["items"]
    assert item["quarantined"] == 3 * (2**53 - 1)


def test_unsettled_units_stand_beside_the_sums(fleet, license_id):
    device = fleet.device(license_id)
    device.use(3, unsettled=1_000, flags=("recovered",))
    device.sync()
    (item,) = usage.sum_usage(fleet.server, license_id=license_id)["items"]
    assert (item["units"], item["unsettled"]) == (3, 1_000)


def test_flags_open_one_exception_while_it_is_open(api, fleet, device):
    for _ in range(3):
        device.use(1, flags=("over_limit", "clock"))
        device.sync()
    assert sorted(item["kind"] for item in fleet.exceptions()) == ["clock", "over_limit"]
    (over,) = fleet.exceptions("over_limit")
    api.post(f"/v1/exceptions/{over['id']}/resolve", {"how": "agreed"}, expect=200)
    device.append(clock_changed(from_s=START_S, to_s=START_S - 500, reason="back"))
    device.use(1, flags=("over_limit",))
    device.sync()
    assert len(fleet.exceptions("over_limit")) == 2
    assert len(fleet.exceptions("clock")) == 1


def test_a_record_is_attributed_to_its_window_held_by_token_and_reception(fleet, license_id):
    device = fleet.device(license_id)
    token_iat = device.token.iat
    fleet.clock.advance(10 * 86_400)
    for at in (START_S + 5 * 86_400 + 17, START_S - 86_400, START_S + 400 * 86_400):
        device.use(1, at=at)
    device.sync()
    rows = sorted(stored_records(fleet), key=lambda row: row.seq)
    assert [(row.service_at, row.shifted) for row in rows] == [
        (START_S + 5 * 86_400, False),
        (token_iat, True),
        (fleet.clock.now, True),
    ]


def test_usage_from_a_device_that_was_away_for_400_days_is_accepted(fleet):
    license_id = fleet.grant(token_life_s=limits.TOKEN_LIFE_MAX_S)
    device = fleet.device(license_id)
    device.use(8, at=START_S + 86_400)
    fleet.clock.advance(300 * 86_400)
    device.sync()
    first_days = usage.sum_usage(fleet.server, period=(START_S, START_S + 2 * 86_400))["items"]
    assert [item["units"] for item in first_days] == [8]
    assert usage.sum_usage(fleet.server, period=(START_S + 2 * 86_400, None))["items"] == []


def test_sums_are_over_half_open_periods_and_by_meter(api, fleet, license_id):
    device = fleet.device(license_id)
    fleet.clock.advance(5_000)
    for at in (START_S, START_S + 900, START_S + 1_800):
        device.use(1, at=at)
    device.sync()
    query = {"license": license_id, "model": MODEL, "unit": "call"}
    assert api.get("/v1/usage", **query, **{"from": START_S, "to": START_S + 1_800})["items"][0]["units"] == 2
    assert api.get("/v1/usage", **query, **{"from": START_S + 900, "to": START_S + 900})["items"] == []
    assert api.get("/v1/usage", model="other")["items"] == []
    assert api.get("/v1/usage", unit="item")["items"] == []
    for wrong in ({"from": -1}, {"to": "x"}, {"unit": "frame"}, {"to": 2**63}):
        assert api.get("/v1/usage", **wrong, expect=422)["code"] == "malformed_members"
