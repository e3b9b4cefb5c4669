"""A device declared retired or lost: out of coverage, receipts only; a lost one comes back by reporting."""

import pytest
from exchanging import exposed, limit_of, refused

from licensing_server.audit_log import service as audit_log
from licensing_server.devices import decisions
from licensing_server.devices import service as devices
from licensing_server.pages import Page
from licensing_server.reconciliation import service as reconciliation
from licensing_server.reconciliation.service import Asked
from licensing_server.usage.rebuild import rebuild


@pytest.fixture
def license_id(fleet):
    return fleet.grant(token_units_max=400, pool_units=1_000)


@pytest.fixture
def device(fleet, license_id):
    """A device that used 100 of its 400."""
    made = fleet.device(license_id)
    made.use(100)
    made.sync()
    made.install()
    return made


def declare(fleet, device, state, why="fell into the sea"):
    return decisions.declare(fleet.server, device.id, state=state, why=why, who="Ada")


def state_of(fleet, device):
    return devices.show(fleet.server, device.id)["state"]


def expected(fleet):
    return reconciliation.page(fleet.server, Asked(), Page())["summary"]["coverage"]["expected"]


def logged(fleet, device):
    items = audit_log.page(fleet.server, Page(), subject=device.id)["items"]
    return [(each["action"], each["who"]) for each in items]


@pytest.mark.parametrize("state", ["retired", "lost"])
def test_it_is_out_of_coverage_until_that_is_taken_back(fleet, device, state):
    assert expected(fleet) == 1
    assert declare(fleet, device, state)["state"] == state
    assert expected(fleet) == 0
    assert declare(fleet, device, "active")["state"] == "active"
    assert expected(fleet) == 1
    assert logged(fleet, device) == [(f"device.{state}", "Ada"), ("device.active", "Ada")]


def test_what_a_lost_device_may_still_use_is_given_to_others(fleet, device, license_id):
    assert exposed(fleet, license_id) == 400
    declare(fleet, device, "lost")
    assert exposed(fleet, license_id) == 0
    (off,) = decisions.page_write_offs(fleet.server, device.id, Page())["items"]
    assert (off["why"], off["who"], off["exposures"][0]["units"]) == ("fell into the sea", "Ada", 400)
    (entry,) = audit_log.page(fleet.server, Page(), subject=device.id)["items"]
    assert entry["body"] == {"from": "active", "why": "fell into the sea", "write_offs": [off["id"]]}
    assert [limit_of(fleet.device(license_id)) for _ in range(3)] == [400, 400, 100]


def test_a_lost_device_that_reports_is_active_and_its_usage_counts(fleet, device, license_id):
    declare(fleet, device, "lost")
    fleet.clock.advance(86_400)
    device.use(30)
    reply = device.sync()
    assert reply.token is not None
    assert state_of(fleet, device) == "active"
    assert fleet.units(license_id) == 130
    (off,) = decisions.page_write_offs(fleet.server, device.id, Page())["items"]
    assert off["reversed_at"] == fleet.clock.now
    assert logged(fleet, device)[-1] == ("device.active", audit_log.SERVER)
    assert expected(fleet) == 1
    assert rebuild(fleet.server, check=True)["items"] == []


def test_what_it_had_sent_before_says_nothing_of_a_lost_device(fleet, device):
    old = device.batch(1)
    device.sync()
    declare(fleet, device, "lost")
    assert fleet.exchange(old).token is None
    assert state_of(fleet, device) == "lost"


def test_a_lost_device_comes_back_by_activating_too(fleet, device, license_id):
    declare(fleet, device, "lost")
    assert device.activate(fleet.code(license_id)).token is not None
    assert state_of(fleet, device) == "active"
    assert logged(fleet, device)[-1] == ("device.active", audit_log.SERVER)


def test_a_retired_device_reports_its_last_and_gets_receipts_only(fleet, device, license_id):
    declare(fleet, device, "retired")
    assert exposed(fleet, license_id) == 400
    device.use(30)
    reply = device.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert (state_of(fleet, device), fleet.units(license_id)) == ("retired", 130)
    assert refused(device.activate, fleet.code(license_id)) == "state_conflict"
    declare(fleet, device, "active")
    device.use(1)
    assert device.sync().token is not None


def test_nothing_is_declared_twice_nor_of_a_revoked_device(fleet, device):
    declare(fleet, device, "lost")
    assert refused(declare, fleet, device, "lost") == "state_conflict"
    declare(fleet, device, "retired")
    devices.revoke(fleet.server, "device", device.id)
    for state in ("active", "lost", "retired"):
        assert refused(declare, fleet, device, state) == "state_conflict"


def test_it_is_declared_over_http_once_by_its_key(api, device):
    path = f"/v1/devices/{device.id}/declare"
    body = {"state": "lost", "why": "fell into the sea"}
    key = {"idempotency-key": "one"}
    assert api.post(path, body, expect=200, **key) == api.post(path, body, expect=200, **key)
    assert api.get(f"/v1/devices/{device.id}")["state"] == "lost"
    for wrong in ({"state": "revoked", "why": "x"}, {"state": "lost"}, {"state": "lost", "why": ""}):
        assert api.post(path, wrong, expect=422)["code"] == "malformed_members"
