"""What happened and what was allowed are two questions: each oddity has its exception, and its effect on money."""

import pytest
from billing_fleet import DAY, FEBRUARY, MARCH, at
from exchanging import refused

from licensing_server.devices import service as devices
from licensing_server.usage import deciding
from licensing_server.usage.deciding import Resolution
from licensing_server.usage.rebuild import rebuild
from meterkit import limits
from meterkit.licenses import Policy


@pytest.fixture
def biller(embedded_fleet):
    return embedded_fleet


def kinds(biller):
    return sorted(each["kind"] for each in biller.exceptions())


def billed(biller, when=FEBRUARY):
    """What one run charges, in cents: a unit is one; the invoice proves itself."""
    biller.clock.now = max(biller.clock.now, when)
    drafts = biller.run()
    total = 0
    for draft in drafts:
        biller.finalize(draft["id"])
        assert biller.audit(draft["id"]).findings == ()
        total += draft["total_minor"]
    return total


def test_late_usage_is_no_exception_and_is_billed_in_its_period(biller):
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    assert billed(biller) == 100
    biller.use(device, 40, at("2026-01-06"))
    assert kinds(biller) == []
    assert billed(biller, MARCH) == 40


@pytest.mark.parametrize("flags", [(), ("over_limit",)])
def test_usage_over_the_limit_is_billed_and_told_whether_the_device_says_so_or_not(biller, flags):
    device = biller.device(biller.grant(token_units_max=100))
    biller.use(device, 100, at("2026-01-05"))
    assert kinds(biller) == []
    biller.use(device, 1, at("2026-01-06"), token=device.entries[1].claims["jti"], flags=flags)
    assert kinds(biller) == ["over_limit"]
    biller.use(device, 100, at("2026-01-06"), token=device.entries[1].claims["jti"], flags=flags)
    assert kinds(biller) == ["over_limit"]
    assert billed(biller) == 201


def test_a_limit_that_was_kept_is_no_exception(biller):
    device = biller.device(biller.grant(token_units_max=100))
    for day in range(5, 9):
        biller.use(device, 100, at(f"2026-01-0{day}"))
        device.install()
    device.use(60, unsettled=40)
    device.sync()
    assert kinds(biller) == []
    assert billed(biller) == 460


def test_a_limit_counts_from_an_anchor_whose_records_are_still_to_come(biller):
    license_id = biller.grant(token_units_max=100)
    device = biller.device(license_id)
    device.use(60)
    biller.clock.advance(7_200)
    device.activate(biller.code(license_id))  # anchored after the 60 that are not accepted yet
    device.install()
    device.use(100)
    device.sync()
    assert kinds(biller) == []
    assert billed(biller) == 160


@pytest.mark.parametrize(
    ("offset_s", "found"),
    [
        (-1, []),
        (0, ["out_of_window"]),
        (90 * DAY, ["out_of_window"]),
    ],
)
def test_usage_after_the_tokens_end_and_grace_is_billed_and_told(biller, offset_s, found):
    device = biller.device(biller.grant(token_life_s=5 * DAY, grace_s=DAY))
    end = device.token.exp + device.token.grace_s
    biller.use(device, 70, end + offset_s)
    assert kinds(biller) == found
    assert billed(biller, end + offset_s + 40 * DAY) == 70


def test_usage_long_before_the_token_is_billed_where_the_token_begins(biller):
    device = biller.device(biller.grant())
    biller.use(device, 70, device.token.nbf - 400 * DAY)
    assert kinds(biller) == ["out_of_window"]
    assert billed(biller) == 70


def test_a_license_that_flags_its_end_lets_the_device_say_so(biller):
    device = biller.device(biller.grant(token_life_s=5 * DAY, grace_s=DAY, policy=Policy(expiry="flag")))
    biller.use(device, 1, at("2026-01-15"), flags=("grace",))
    assert kinds(biller) == []
    biller.use(device, 70, at("2026-01-16"), flags=("expired",))
    assert kinds(biller) == ["out_of_window"]
    assert billed(biller) == 71


@pytest.mark.parametrize("kind", ["token", "device", "license"])
def test_usage_after_a_revocation_is_billed_and_told(biller, kind):
    license_id = biller.grant()
    device = biller.device(license_id)
    biller.use(device, 10, at("2026-01-05"))
    installed = device.entries[1].claims["jti"]
    biller.clock.now = at("2026-01-10")
    subject = {"token": installed, "device": device.id, "license": license_id}[kind]
    devices.revoke(biller.server, kind, subject)
    biller.use(device, 20, at("2026-01-09"), token=installed)
    assert kinds(biller) == []  # used before, brought after
    biller.use(device, 30, at("2026-01-11"), token=installed)
    assert kinds(biller) == ["revoked"]
    assert billed(biller) == 60


def test_usage_under_a_token_that_nobody_gave_is_kept_and_not_billed(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    device.install(jti="tok_" + "a" * 26, serial=device.serial + 7)
    biller.use(device, 40, at("2026-01-06"))
    assert kinds(biller) == ["unknown_token"]
    assert billed(biller) == 10


def test_a_damaged_chain_is_refused_whole_and_its_good_part_is_billed(biller):
    device = biller.device(biller.grant())
    for units in (1, 2, 4):
        device.use(units, at=at("2026-01-05"))
    biller.clock.now = at("2026-01-06")
    bodies = [entry.body for entry in device.entries]
    bodies[3] = bodies[3].replace(b'"units":2', b'"units":1').replace(b'"to":3', b'"to":2')
    assert refused(biller.exchange, device.batch(1, bodies=tuple(bodies))) == "chain_broken"
    assert biller.units(device.token.license_id) == 0
    biller.exchange(device.batch(1, 3))  # what of it holds
    lost = (4, 5)
    device.reset(lost=lost)
    device.install()
    biller.use(device, 8, at("2026-01-07"))
    assert kinds(biller) == ["reset"]
    (reset,) = biller.exceptions("reset")
    assert reset["evidence"]["lost"] == {"from": 4, "to": 5}
    assert billed(biller) == 1 + 8


def test_more_than_a_window_has_time_for_is_kept_and_not_billed(biller):
    device = biller.device(biller.grant(token_units_max=None))
    biller.use(device, 10, at("2026-01-05"))
    biller.use(device, limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S + 1, at("2026-01-06"))
    assert kinds(biller) == ["implausible_rate"]
    assert billed(biller) == 10


def test_each_is_told_once_a_ledger_while_it_is_open(biller):
    device = biller.device(biller.grant(token_units_max=10, token_life_s=DAY, grace_s=0))
    first = device.entries[1].claims["jti"]
    devices.revoke(biller.server, "token", first)
    for day in (5, 6, 7):
        biller.use(device, 20, at(f"2026-01-0{day}"), token=first)
    assert kinds(biller) == ["out_of_window", "over_limit", "revoked"]
    for each in biller.exceptions():
        deciding.resolve(biller.server, each["id"], Resolution(how="agreed"), who="Ada")
    biller.use(device, 20, at("2026-01-08"), token=first)
    assert len(biller.exceptions()) == 6


@pytest.mark.parametrize("lost", [(limits.LEASE_UNITS_MAX + 1,), (limits.LEASE_UNITS_MAX, 1)])
def test_more_unsettled_than_one_lease_holds_is_told_and_not_billed(biller, lost):
    device = biller.device(biller.grant(token_units_max=1_000_000))
    for units in lost:
        device.use(0, unsettled=units, flags=("recovered",), at=at("2026-01-05"))
    biller.use(device, 3, at("2026-01-06"))
    (found,) = biller.exceptions()
    assert (found["kind"], found["evidence"]["records"]) == ("unsettled", len(lost))
    assert found["evidence"]["unsettled"] == str(limits.LEASE_UNITS_MAX + 1)
    assert rebuild(biller.server, check=True)["items"] == []
    assert billed(biller) == 3


def test_what_a_lease_of_each_process_covered_is_no_exception(biller):
    device = biller.device(biller.grant(token_units_max=1_000_000))
    for cell in "ab":
        device.use(0, unsettled=limits.LEASE_UNITS_MAX, cell=f"cel_{cell * 26}", at=at("2026-01-05"))
    biller.use(device, 3, at("2026-01-06"))
    assert kinds(biller) == []
