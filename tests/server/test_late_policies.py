"""Contracts that carry over, waive, or close by coverage, billed on a real server and audited offline."""

import pytest
from billing_fleet import DAY, FEBRUARY, MARCH, at

from licensing_server.devices import decisions

APRIL = at("2026-04-01")


def lines(final: dict | None) -> list[tuple]:
    return [] if final is None else [(each["service_start_at"], each["quantity"]) for each in final["lines"]]


def test_late_units_are_carried_over_to_the_month_in_which_they_came(biller):
    plan = biller.plan_of(biller.calls("1"), late={"policy": "carry_over"})
    device = biller.device(biller.grant(plan=plan))
    biller.report(device, 10, at("2026-01-05"), at("2026-01-06"))
    january = biller.bill_at(FEBRUARY)
    assert lines(january) == [(at("2026-01-01"), 10)]
    biller.report(device, 5, at("2026-01-20"), at("2026-02-03"))
    biller.report(device, 7, at("2026-02-10"), at("2026-02-11"))
    february = biller.bill_at(MARCH)
    assert lines(february) == [(FEBRUARY, 12)]
    (line,) = february["lines"]
    assert line["carried"] == [{"service_start_at": at("2026-01-01"), "service_end_at": FEBRUARY, "quantity": 5}]
    assert line["records"][0]["first"] < line["records"][0]["last"]
    assert biller.bill_at(APRIL) is None


def test_late_units_are_waived_after_so_many_days(biller):
    plan = biller.plan_of(biller.calls("1"), late={"policy": "waive", "days": 10})
    device = biller.device(biller.grant(plan=plan))
    biller.report(device, 10, at("2026-01-05"), at("2026-01-06"))
    biller.bill_at(FEBRUARY)
    biller.report(device, 5, at("2026-01-20"), FEBRUARY + 10 * DAY)
    biller.report(device, 7, at("2026-01-21"), FEBRUARY + 10 * DAY + 1)
    biller.report(device, 1, at("2026-02-13"), at("2026-02-14"))
    final = biller.bill_at(MARCH)
    assert lines(final) == [(at("2026-01-01"), 15), (FEBRUARY, 1)]
    assert [(each["service_start_at"], each["waived"]) for each in final["beside"]] == [(at("2026-01-01"), 7)]


def test_a_fork_is_late_branch_by_branch(biller):
    plan = biller.plan_of(biller.calls("1"), late={"policy": "waive", "days": 1})
    device = biller.device(biller.grant(plan=plan))
    biller.report(device, 10, at("2026-01-05"), at("2026-01-06"))
    twin = device.clone()
    biller.report(device, 20, at("2026-01-07"), at("2026-01-08"))
    biller.bill_at(FEBRUARY)
    biller.report(twin, 40, at("2026-01-09"), FEBRUARY + 2 * DAY)
    biller.report(device, 1, at("2026-02-13"), at("2026-02-14"))
    final = biller.bill_at(MARCH)
    assert [(each["service_start_at"], each["waived"]) for each in final["beside"]] == [(at("2026-01-01"), 40)]
    assert lines(final) == [(FEBRUARY, 1)]


def test_a_month_closes_when_enough_devices_have_reported(biller):
    close = {"policy": "coverage", "percent": 100, "days": 20}
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1"), close=close), devices_max=3)
    here, away, gone = (biller.device(license_id) for _ in range(3))
    for device, units in ((here, 1), (away, 10), (gone, 100)):
        biller.report(device, units, at("2026-01-05"), at("2026-01-06"))
    biller.report(here, 2, at("2026-01-30"), FEBRUARY + 3_600)
    assert biller.bill_at(FEBRUARY + DAY) is None
    decisions.declare(biller.server, gone.id, state="lost", why="stolen", who="command")
    assert biller.bill_at(FEBRUARY + 2 * DAY) is None
    biller.report(away, 20, at("2026-01-30"), FEBRUARY + 3 * DAY)
    final = biller.bill_at(FEBRUARY + 4 * DAY)
    assert lines(final) == [(at("2026-01-01"), 133)]
    biller.report(gone, 1_000, at("2026-01-30"), FEBRUARY + 5 * DAY)
    late = biller.bill_at(FEBRUARY + 6 * DAY)
    assert [(each["quantity"], each["amount"], each["late"]) for each in late["lines"]] == [
        (1133, "1000.00", True)
    ]


def test_a_month_that_nobody_covers_closes_after_its_days(biller):
    close = {"policy": "coverage", "percent": 100, "days": 20}
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"), close=close)))
    biller.report(device, 3, at("2026-01-05"), at("2026-01-06"))
    assert biller.bill_at(FEBRUARY + 20 * DAY - 1) is None
    assert lines(biller.bill_at(FEBRUARY + 20 * DAY)) == [(at("2026-01-01"), 3)]


@pytest.mark.parametrize("policy", [{"policy": "carry_over"}, {"policy": "waive", "days": 3}])
def test_quarantined_and_unsettled_units_stay_beside_whatever_the_contract(biller, policy):
    plan = biller.plan_of(biller.calls("1"), late=policy)
    device = biller.device(biller.grant(plan=plan))
    biller.report(device, 10, at("2026-01-05"), at("2026-01-06"))
    biller.bill_at(FEBRUARY)
    device.use(5, at=at("2026-01-20"), unsettled=4)
    biller.report(device, 1, at("2026-02-08"), FEBRUARY + 9 * DAY)
    final = biller.bill_at(MARCH)
    place = FEBRUARY if policy["policy"] == "carry_over" else at("2026-01-01")
    waived = 0 if policy["policy"] == "carry_over" else 5
    (beside,) = final["beside"]
    assert (beside["service_start_at"], beside["unsettled"], beside.get("waived", 0)) == (place, 4, waived)
