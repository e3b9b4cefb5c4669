"""What a device gets after a fork: its license's policy, also when one fork follows another."""

import pytest
from exchanging import refused

from licensing_server.devices import service as devices
from licensing_server.licenses import service as licenses
from licensing_server.usage import deciding
from licensing_server.usage.deciding import Resolution


def forked(fleet, policy):
    """A device and its clone, each with usage of its own that is not handed over yet."""
    license_id = fleet.grant(fork_policy=policy)
    device = fleet.device(license_id)
    device.use(1)
    device.sync()
    clone = device.clone()
    device.use(10)
    clone.use(100)
    return license_id, device, clone


def third(device, units):
    """Another clone of the same device, from where it is now."""
    made = device.clone()
    made.use(units)
    return made


def resolve(fleet, exception):
    deciding.resolve(fleet.server, exception["id"], Resolution(how="looked at"), who="Ada")


def is_held(fleet, device):
    return devices.show(fleet.server, device.id)["held"]


@pytest.mark.parametrize("policy", ["flag", "hold", "suspend"])
def test_whatever_the_policy_usage_is_taken_from_every_branch(fleet, policy):
    license_id, device, clone = forked(fleet, policy)
    grandchild = third(clone, 1_000)
    clone.use(200)
    for each in (device, clone, grandchild):
        reply = fleet.exchange(each.batch())
        assert each.open_receipt(reply.receipts[0]).position == each.position
    assert fleet.units(license_id) == 1 + 10 + 100 + 200 + 1_000
    assert len(fleet.exceptions("fork")) == 2
    for each in (device, clone, grandchild):
        fleet.exchange(each.batch(1))
    assert fleet.units(license_id) == 1 + 10 + 100 + 200 + 1_000
    assert len(fleet.exceptions("fork")) == 2


def test_a_fork_of_a_fork_names_the_record_where_it_parts(fleet):
    _, device, clone = forked(fleet, "flag")
    parted_first = device.at(3)
    device.sync()
    clone.sync()
    parted_then = clone.position
    grandchild = third(clone, 5)
    clone.use(6)
    clone.sync()
    fleet.exchange(grandchild.batch())
    first, then = sorted(fleet.exceptions("fork"), key=lambda fork: fork["evidence"]["fork_at"]["seq"])
    assert first["evidence"]["fork_at"] == parted_first.to_claims()
    assert then["evidence"]["fork_at"] == parted_then.to_claims()
    assert then["evidence"]["heads"][-1] == grandchild.position.to_claims()
    assert len(then["evidence"]["heads"]) == 3


def test_flag_goes_on_giving_tokens(fleet):
    _, device, clone = forked(fleet, "flag")
    for each in (device, clone):
        assert each.sync().token is not None
    assert not is_held(fleet, device)


def test_hold_gives_no_token_until_every_fork_is_resolved(fleet):
    license_id, device, clone = forked(fleet, "hold")
    bystander = fleet.device(license_id)
    device.sync()
    assert clone.sync().token is None
    another = third(clone, 1_000)  # a fork that comes while it is held
    clone.use(1)
    assert clone.sync().token is None
    assert fleet.exchange(another.batch()).token is None
    one, two = fleet.exceptions("fork")
    resolve(fleet, one)
    device.use(1)
    assert (is_held(fleet, device), device.sync().token) == (True, None)
    resolve(fleet, two)
    device.use(1)
    assert (is_held(fleet, device), device.sync().token is None) == (False, False)
    assert fleet.units(license_id) == 1 + 10 + 100 + 1 + 1_000 + 2
    bystander.use(1)
    assert bystander.sync().token is not None  # hold is the device's, not the license's


def test_what_was_found_once_holds_nobody_again(fleet):
    _, device, clone = forked(fleet, "hold")
    text = clone.batch()
    device.sync()
    fleet.exchange(text)
    (fork,) = fleet.exceptions("fork")
    resolve(fleet, fork)
    assert fleet.exchange(text).token is not None
    assert fleet.exchange(device.batch(1)).token is not None
    assert not is_held(fleet, device)
    third_one = third(clone, 5)
    clone.use(6)
    clone.sync()
    assert fleet.exchange(third_one.batch()).token is None  # a new fork does
    assert is_held(fleet, device)


def test_a_device_that_is_held_does_not_get_away_to_another_license(fleet):
    _, device, clone = forked(fleet, "hold")
    device.sync()
    clone.sync()
    elsewhere = fleet.grant()
    assert refused(device.activate, fleet.code(elsewhere)) == "state_conflict"
    assert devices.show(fleet.server, device.id)["license"] != elsewhere


def test_suspend_stops_the_license_once_and_its_usage_still_comes(fleet):
    license_id, device, clone = forked(fleet, "suspend")
    bystander = fleet.device(license_id)
    device.sync()
    reply = clone.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert licenses.show(fleet.server, license_id)["state"] == "suspended"
    assert refused(fleet.device().activate, fleet.code(license_id)) == "license_inactive"
    bystander.use(7)
    assert bystander.sync().token is None
    assert fleet.units(license_id) == 1 + 10 + 100 + 7
    licenses.change_state(fleet.server, license_id, "active")
    assert fleet.exchange(clone.batch(1)).token is not None  # what is known already suspends nothing again
    assert licenses.show(fleet.server, license_id)["state"] == "active"
    another = third(clone, 5)
    clone.use(6)
    clone.sync()
    fleet.exchange(another.batch())
    assert licenses.show(fleet.server, license_id)["state"] == "suspended"


def test_a_fork_does_not_wake_a_license_that_has_ended(fleet):
    license_id, device, clone = forked(fleet, "suspend")
    licenses.change_state(fleet.server, license_id, "ended")
    device.sync()
    clone.sync()
    assert licenses.show(fleet.server, license_id)["state"] == "ended"
    assert fleet.units(license_id) == 111


def test_a_fork_and_what_follows_it_in_one_request_are_held_together(fleet):
    _, device, clone = forked(fleet, "hold")
    texts = [device.batch(), clone.batch()]
    device.use(5)
    texts.append(device.batch(5, license_id=device.token.license_id))
    reply = fleet.exchange(*texts)
    assert (len(reply.receipts), reply.token) == (2, None)
    assert is_held(fleet, device)
