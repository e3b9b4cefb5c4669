"""What waits because a line is disputed is shown, and every accepted unit is in one place (BILLING §5)."""

import json

import pytest
import sqlalchemy as sa
from account_ways import bill_at, refused
from billing_fleet import DAY, FEBRUARY, JANUARY, MARCH, at
from fastapi.testclient import TestClient
from fleet import Api

from licensing_server.app import create_app
from licensing_server.billing import conserving, correcting, disputing, service
from licensing_server.database import write
from licensing_server.usage import deciding
from licensing_server.usage.deciding import Resolution
from licensing_server.usage.store import usage_records

IMPLAUSIBLE = 10**6 * 900 + 1
FIGURES = ("accepted", "invoiced", "pending", "disputed", "waived", "excluded", "unpriced")


def places(biller, customer: str | None = None) -> list[tuple[int, ...]]:
    found = conserving.show(biller.server, customer or biller.customer)
    assert found["holds"], found
    return [tuple(item[name] for name in FIGURES) for item in found["items"]]


def waiting(found) -> list[tuple]:
    shown = ("service_start_at", "quantity_before", "quantity", "amount", "currency")
    return [tuple(each[name] for name in shown) for each in found["pending"]]


def open_one(biller) -> tuple[int | None, int | None]:
    (row,) = (each for each in disputing.show(biller.server, biller.customer)["disputes"] if not each["outcome"])
    return row["pending_quantity"], row["pending_minor"]


@pytest.fixture
def disputed(biller):
    """Of 100 calls at 0.01 in January the line is disputed; ten came late, and ten are February's."""
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    held = disputing.dispute(biller.server, invoice["id"], line=1, note="not ours")
    assert open_one(biller) == (None, None)
    biller.use(device, 10, at("2026-01-06"))
    biller.use(device, 10, at("2026-02-05"))
    return held


@pytest.mark.usefixtures("disputed")
def test_what_waits_is_shown_by_runs_dry_runs_and_the_dispute(biller):
    assert open_one(biller) == (10, 10)
    assert places(biller) == [(120, 100, 20, 10, 0, 0, 0)]
    biller.clock.now = MARCH
    wanted = [(JANUARY, 100, 110, "0.10", "EUR")]
    assert waiting(service.dry_run(biller.server)) == wanted
    made = service.run(biller.server)
    assert waiting(made) == wanted
    assert made["pending"][0]["customer"] == biller.customer
    assert waiting(service.show_run(biller.server, made["number"])) == wanted
    assert waiting(service.show_run(biller.server, made["number"] - 1)) == []
    (draft,) = biller.drafts()
    assert [line["service_start_at"] for line in draft["lines"]] == [FEBRUARY]
    biller.finalize(draft["id"])
    assert places(biller) == [(120, 110, 10, 10, 0, 0, 0)]


def test_when_the_dispute_ends_it_is_billed_and_waits_no_more(biller, disputed):
    bill_at(biller, MARCH)
    disputing.resolve(biller.server, disputed["id"], outcome="stands", note="it was theirs")
    assert places(biller) == [(120, 110, 10, 0, 0, 0, 0)]
    (row,) = disputing.show(biller.server, biller.customer)["disputes"]
    assert (row["pending_quantity"], row["pending_minor"]) == (None, None)
    final = bill_at(biller, MARCH + DAY)
    assert waiting(service.show_run(biller.server, final["run"]["number"])) == []
    assert waiting(service.show_run(biller.server, final["run"]["number"] - 1)) != []  # it did wait at that one
    assert places(biller) == [(120, 120, 0, 0, 0, 0, 0)]


@pytest.mark.usefixtures("disputed")
def test_showing_it_keeps_nothing(biller):
    numbers = [run["number"] for run in service.page_runs(biller.server, service.Page())["items"]]
    places(biller)
    open_one(biller)
    assert [run["number"] for run in service.page_runs(biller.server, service.Page())["items"]] == numbers
    assert bill_at(biller, MARCH)["run"]["number"] == max(numbers) + 1


def test_more_units_for_less_money_wait_below_zero(biller):
    """100 calls at 1.00; the 101st makes all of them 0.50: 50.50, and −49.50 wait."""
    tiers = [{"up_to": 100, "unit_amount": "1"}, {"up_to": None, "unit_amount": "0.5"}]
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls_at({"model": "volume", "tiers": tiers}))))
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    disputing.dispute(biller.server, invoice["id"], line=1, note="not ours")
    biller.use(device, 1, at("2026-01-06"))
    assert open_one(biller) == (1, -4950)
    biller.clock.now = MARCH
    assert waiting(service.run(biller.server)) == [(JANUARY, 100, 101, "-49.50", "EUR")]


def test_each_unit_is_in_one_place(biller):
    """Late and waived, out by a decision (with two unsettled ones), unpriced, billed and not yet."""
    priced = biller.plan_of(biller.calls("1"), late={"policy": "waive", "days": 1})
    device = biller.device(biller.grant(plan=priced))
    biller.use(device, 10, at("2026-01-05"), unsettled=3)
    biller.use(device, IMPLAUSIBLE, at("2026-01-06"))
    twin = device.clone()
    biller.use(device, 5, at("2026-01-07"))
    biller.use(twin, 7, at("2026-01-08"), unsettled=2)
    unpriced = biller.plan_of({**biller.calls("1"), "meter": {"model": "other", "unit": "call"}})
    biller.use(biller.device(biller.grant(plan=unpriced)), 40, at("2026-01-09"))
    assert sorted(places(biller)) == [(22, 0, 22, 0, 0, 0, 0), (40, 0, 0, 0, 0, 0, 40)]
    bill_at(biller, FEBRUARY)
    fork = biller.exceptions("fork")[0]["id"]
    resolution = Resolution(how="x", outcome="dismiss_branch", branch=twin.position.head)
    deciding.resolve(biller.server, fork, resolution)
    biller.clock.now = FEBRUARY + 5 * DAY
    biller.use(device, 9, at("2026-01-10"))  # too late
    biller.use(device, 2, at("2026-02-05"))
    assert sorted(places(biller)) == [(35, 22, -5, 0, 9, 9, 0), (40, 0, 0, 0, 0, 0, 40)]
    bill_at(biller, MARCH)
    assert sorted(places(biller)) == [(35, 17, 0, 0, 9, 9, 0), (40, 0, 0, 0, 0, 0, 40)]


def test_what_two_branches_tell_of_is_excluded_once(biller):
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"), late={"policy": "carry_over"})))
    biller.use(device, 10, at("2026-01-05"))
    copy = device.live_copy()
    biller.use(device, 40, at("2026-01-06"))  # counts 10 to 50
    biller.use(copy, 60, at("2026-01-07"))  # counts 10 to 70
    assert places(biller) == [(110, 0, 70, 0, 0, 40, 0)]
    bill_at(biller, FEBRUARY)
    biller.use(device, 3, at("2026-01-08"))  # of no other branch's counts; carried over
    assert [place[:2] for place in places(biller)] == [(113, 70)]


def test_units_of_two_intervals_and_of_a_corrected_version_are_counted_once(biller):
    weekly = {**biller.calls("1"), "interval": "week"}
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    device = biller.device(license_id)
    for day in ("2026-01-05", "2026-02-05", "2026-02-20"):
        biller.use(device, 3, at(day))
    bill_at(biller, MARCH)
    right = biller.plan_of(weekly)
    correcting.correct_plan(biller.server, license_id, plan=right, starts_at=FEBRUARY, note="it was to be weekly")
    assert places(biller) == [(9, 9, 0, 0, 0, 0, 0)]
    bill_at(biller, MARCH + DAY)
    biller.use(device, 4, at("2026-03-05"))
    assert places(biller) == [(13, 9, 4, 0, 0, 0, 0)]


def test_what_is_changed_in_the_records_is_found(biller):
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    with write(biller.server) as connection:
        connection.execute(sa.update(usage_records).values(units=90))
    found = conserving.show(biller.server)
    assert (found["holds"], found["code"]) == (False, "conservation_broken")
    ran = biller.invoke("billing", "conservation")
    assert ran.exit_code == 1, ran.output


@pytest.mark.usefixtures("disputed")
def test_over_http_and_by_command(biller):
    with TestClient(create_app(biller.server)) as client:
        api = Api(client, biller.made.api_key)
        shown = api.get("/v1/billing-conservation", customer=biller.customer)
        assert [tuple(item[name] for name in FIGURES) for item in shown["items"]] == places(biller)
        assert api.get("/v1/billing-conservation", customer="cus_none", expect=404)["code"] == "not_found"
        held = api.get(f"/v1/customers/{biller.customer}/disputes")["disputes"]
        assert [each["pending_quantity"] for each in held] == [10]
    ran = biller.invoke("--json", "billing", "conservation", "--customer", biller.customer)
    assert ran.exit_code == 0, ran.output
    assert [item["holds"] for item in json.loads(ran.stdout)["items"]] == [True]
    listed = biller.invoke("--json", "dispute", "list", biller.customer)
    assert [each["pending_minor"] for each in json.loads(listed.stdout)["items"]] == [10]
    assert refused(conserving.show, biller.server, "cus_none") == "not_found"
