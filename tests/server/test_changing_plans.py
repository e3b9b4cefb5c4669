"""A license that is billed by another version of a plan, from its next period or from now on."""

import json

import pytest
from account_ways import APRIL
from billing_fleet import DAY, FEBRUARY, JANUARY, MARCH, at
from fastapi.testclient import TestClient
from fleet import Api
from tampering import read_part, tampered

from licensing_server.app import create_app
from licensing_server.billing import changing, disputing, service
from licensing_server.licenses import service as licenses
from meterkit import audit, evidence
from meterkit.errors import ServiceError
from meterkit.evidence import Bundle


def refused(biller, license_id, plan, **named) -> str:
    with pytest.raises(ServiceError) as error:
        changing.change_plan(biller.server, license_id, plan=plan, **named)
    return error.value.code


def lines(draft) -> list[tuple[str, int, str, str]]:
    return [(line["charge"], line["service_start_at"], line["share"], line["amount"]) for line in draft["lines"]]


def settle(biller, until: int) -> list[tuple[str, int, str, str]]:
    """Bill up to an instant, finalize, and let the evidence prove it."""
    biller.clock.now = until
    (draft,) = biller.run()
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()
    return lines(draft)


def test_a_new_version_starts_at_the_next_period(biller):
    old = biller.plan_of(biller.calls("1"), biller.fee("31", due="arrears"))
    new = biller.plan_of(biller.calls("3"), biller.fee("28", due="arrears"))
    license_id = biller.grant(plan=old)
    device = biller.device(
        license_id,
    )
    biller.use(device, 2, at("2026-01-10"))
    shown = changing.change_plan(biller.server, license_id, plan=new)
    assert [(each["starts_at"], each["plan"]) for each in shown["versions"]][1:] == [(FEBRUARY, new)]
    biller.use(device, 2, at("2026-01-31"))
    biller.use(device, 5, at("2026-02-01"))
    assert settle(biller, MARCH) == [
        ("calls", JANUARY, "1", "4.00"),
        ("fee", JANUARY, "1", "31.00"),
        ("calls", FEBRUARY, "1", "15.00"),
        ("fee", FEBRUARY, "1", "28.00"),
    ]


def test_a_new_version_from_now_on_makes_two_short_periods_and_the_ladder_starts_anew(biller):
    """January has 31 days; ten of them by the old version: 10/31 of 31 is 10, 21/31 of 62 is 42. Five included
    units are ⌈5×10/31⌉ = 2 of the first piece, and of 12 units 10 cost 10.
    """
    price = {"model": "per_unit", "unit_amount": "1", "included_units": 5}
    old = biller.plan_of(biller.calls_at(price), biller.fee("31", due="arrears"))
    new = biller.plan_of(biller.calls("2"), biller.fee("62", due="arrears"))
    license_id = biller.grant(plan=old)
    device = biller.device(license_id)
    biller.use(device, 12, at("2026-01-05"))
    biller.clock.now = JANUARY + 10 * DAY - 60
    biller.run()  # a run that knows nothing of it yet; its period is open
    changing.change_plan(biller.server, license_id, plan=new, starts="now")
    edge = JANUARY + 10 * DAY
    biller.use(device, 3, edge)
    assert settle(biller, FEBRUARY) == [
        ("calls", JANUARY, "10/31", "10.00"),
        ("fee", JANUARY, "10/31", "10.00"),
        ("calls", edge, "21/31", "6.00"),
        ("fee", edge, "21/31", "42.00"),
    ]
    biller.use(device, 1, at("2026-01-06"))  # late, and of the piece in which it was used
    assert [line[1::2] for line in settle(biller, MARCH)][:1] == [(JANUARY, "1.00")]


def test_a_version_decided_between_two_runs_counts_from_its_start_and_every_invoice_is_proved(biller):
    charges = (biller.calls("1"), biller.fee("31", due="arrears"))
    license_id = biller.grant(plan=biller.plan_of(*charges, interim=True, interval="day"))
    device = biller.device(license_id)
    biller.use(device, 2, at("2026-01-01"))
    first = settle(biller, at("2026-01-02"))
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(biller.calls("9"), interval="day"))
    second = settle(biller, at("2026-01-03"))
    assert [line[0] for line in first + second] == ["calls", "fee", "fee"]
    biller.use(device, 2, at("2026-01-03"))
    assert settle(biller, at("2026-01-04"))[0][3] == "18.00"


def test_it_never_starts_before_what_a_run_has_billed_though_the_clock_was_set_back(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    new = biller.plan_of(biller.calls("2"))
    biller.clock.now = FEBRUARY + DAY
    biller.run()
    biller.clock.now = FEBRUARY - DAY
    assert refused(biller, license_id, new) == "state_conflict"
    biller.clock.now = FEBRUARY + DAY
    changing.change_plan(biller.server, license_id, plan=new)


def test_bounds_once_billed_stay(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.fee("31", due="advance")))
    new = biller.plan_of(biller.fee("62", due="advance"))
    settle(biller, at("2026-01-02"))
    assert refused(biller, license_id, new, starts="now") == "state_conflict"
    changing.change_plan(biller.server, license_id, plan=new)
    assert settle(biller, FEBRUARY) == [("fee", FEBRUARY, "1", "62.00")]


def test_currency_and_interval_change_only_where_a_period_ends(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    biller.clock.now = at("2026-01-10T11:50")
    for changed in ({"currency": "JPY"}, {"interval": "day"}):
        plan = biller.plan_of(biller.calls("1"), **changed)
        assert refused(biller, license_id, plan, starts="now") == "state_conflict"
    changing.change_plan(biller.server, license_id, plan=plan)
    device = biller.device(license_id)
    biller.use(device, 1, at("2026-01-20"))
    biller.use(device, 1, at("2026-02-02"))
    assert settle(biller, at("2026-02-04")) == [
        ("calls", JANUARY, "1", "1.00"),
        ("calls", at("2026-02-02"), "1", "1.00"),
    ]


def test_one_change_at_a_time_and_none_of_what_has_ended(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    new = biller.plan_of(biller.calls("2"))
    assert refused(biller, license_id, "plan_" + "a" * 26) == "not_found"
    changing.change_plan(biller.server, license_id, plan=new)
    assert refused(biller, license_id, new) == "state_conflict"
    licenses.change_state(biller.server, license_id, "ended")
    assert refused(biller, license_id, new) == "license_inactive"


def test_a_license_that_ends_before_its_new_version_starts_owes_nothing_by_it(biller):
    charges = (biller.calls("1"), biller.fee("31", due="arrears"))
    license_id = biller.grant(plan=biller.plan_of(*charges))
    biller.clock.now = JANUARY + 10 * DAY - 60
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(*charges), starts="now")
    licenses.change_state(biller.server, license_id, "ended")
    (fee,) = settle(biller, FEBRUARY)
    assert fee[0] == "fee"
    assert fee[1] == JANUARY


@pytest.fixture
def let_off(biller) -> Bundle:
    """The evidence of an invoice with a concession on a version that the first run did not know."""
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    device = biller.device(license_id)
    biller.use(device, 2, at("2026-01-10"))
    settle(biller, FEBRUARY)
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(biller.calls("3")))
    biller.use(device, 5, at("2026-03-10"))
    biller.clock.now = APRIL
    (draft,) = biller.run()
    biller.finalize(draft["id"])
    disputing.concede(biller.server, draft["id"], line=1, amount="4", note="for the outage")
    assert settle(biller, APRIL + DAY) == [("calls", MARCH, "1", "-4.00")]
    _, data = service.show_evidence(biller.server, biller.run()[0]["id"])
    return evidence.read_zip(data)


def test_what_is_let_off_on_a_second_version_is_proved(let_off):
    (concession,) = read_part(let_off, evidence.ACCOUNT)["concessions"]
    versions = read_part(let_off, evidence.LICENSES)[0]["versions"]
    assert [version["since_run"] for version in versions] == [0, 2]
    assert (concession["key"]["plan_id"], concession["since_run"]) == (versions[1]["plan"], 3)
    assert audit.recompute(let_off).findings == ()


@pytest.mark.parametrize("wrong", [{"since_run": 1}, {"version": 2}])
def test_none_is_let_off_on_a_version_that_nobody_knew_then(biller, let_off, wrong):
    def change(account):
        concession = account["concessions"][0]
        concession.update({name: wrong.get(name, value) for name, value in concession.items()})
        concession["key"].update({name: wrong.get(name, value) for name, value in concession["key"].items()})

    (finding,) = tampered(biller.server, let_off, evidence.ACCOUNT, change).findings
    assert finding.place == evidence.ACCOUNT
    assert "held no such version" in finding.what


@pytest.mark.parametrize("since_run", [2, 4])
def test_nor_is_it_said_to_be_known_to_another_run(biller, let_off, since_run):
    def change(account):
        account["concessions"][0]["since_run"] = since_run

    assert not tampered(biller.server, let_off, evidence.ACCOUNT, change).holds


def test_pools_count_by_one_interval_for_a_licenses_whole_life(biller):
    pool = {"pool_units": 100, "pool_per": "period"}
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")), **pool)
    assert refused(biller, license_id, biller.plan_of(biller.calls("1"), interval="day")) == "state_conflict"
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(biller.calls("2")))


def test_over_http_and_by_command(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    new = biller.plan_of(biller.calls("2"))
    with TestClient(create_app(biller.server)) as client:
        api = Api(client, biller.made.api_key)
        api.post(f"/v1/licenses/{license_id}/versions", {"plan": new, "starts": "later"}, expect=422)
        shown = api.post(f"/v1/licenses/{license_id}/versions", {"plan": new})
        assert shown["versions"][1] == {"starts_at": FEBRUARY, "plan": new, "version": 1}
        api.post(f"/v1/licenses/{license_id}/versions", {"plan": new}, expect=409)
    other = biller.grant(plan=new)
    ran = biller.invoke("--json", "billing", "change-plan", other, "--plan", new)
    assert ran.exit_code == 0, ran.output
    assert [each["starts_at"] for each in json.loads(ran.stdout)["versions"]][1:] != []
