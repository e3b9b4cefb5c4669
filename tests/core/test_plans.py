"""Plans: what is read, what is left out, and what cannot be billed."""

import copy
from fractions import Fraction

import pytest

from meterkit import canonical, plans
from meterkit.errors import InputError
from meterkit.plans import Commitment, Recurring, UsageCharge

PLAN = {
    "v": 1,
    "currency": "EUR",
    "interval": "month",
    "interim": False,
    "late": {"policy": "true_up"},
    "close": {"policy": "grace", "days": 3},
    "charges": [
        {
            "id": "seat",
            "type": "recurring",
            "per": "license",
            "due": "advance",
            "from_period": 1,
            "price": {"model": "flat", "amount": "49.00"},
        },
        {
            "id": "fleet",
            "type": "recurring",
            "per": "device",
            "due": "arrears",
            "from_period": 0,
            "price": {"model": "per_unit", "unit_amount": "2"},
        },
        {
            "id": "calls",
            "type": "usage",
            "meter": {"model": "squeezenet", "unit": "call"},
            "price": {"model": "per_unit", "unit_amount": "0.002"},
        },
        {"id": "least", "type": "commitment", "amount": "1000", "over": ["calls"], "interval": "year"},
    ],
}


def changed(path: str, value: object) -> dict:
    plan = copy.deepcopy(PLAN)
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place = plan
    for step in way:
        place = place[step]
    place[last] = value
    return plan


def test_a_plan_is_read_whole():
    plan = plans.read(PLAN)
    seat, fleet, calls, least = plan.charges
    assert (plan.currency, plan.interval, plan.interim, plan.close.days) == ("EUR", "month", False, 3)
    assert isinstance(seat, Recurring)
    assert (seat.due, seat.from_period, seat.interval) == ("advance", 1, "month")
    assert isinstance(fleet, Recurring)
    assert isinstance(calls, UsageCharge)
    assert calls.meter == ("squeezenet", "call")
    assert isinstance(least, Commitment)
    assert (least.amount, least.over, least.interval) == (Fraction(1000), ("calls",), "year")
    assert plan.intervals == {"month", "year"}


def test_what_is_left_out_is_written_in_full():
    short = {name: PLAN[name] for name in ("v", "currency", "interval")}
    charge = {name: PLAN["charges"][1][name] for name in ("id", "type", "per", "due", "price")}
    plan = plans.read({**short, "charges": [charge]})
    assert plan.body["late"] == {"policy": "true_up"}
    assert plan.body["close"] == {"policy": "grace", "days": 0}
    assert plan.body["interim"] is False
    assert plan.body["charges"][0]["interval"] == "month"
    assert plan.body["charges"][0]["from_period"] == 0
    assert plans.read(plan.body) == plan
    assert canonical.to_bytes(dict(plan.body)) == canonical.to_bytes(dict(plans.read(plan.body).body))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("v", 2),
        ("currency", "EURO"),
        ("currency", ["EUR"]),
        ("interval", "quarter"),
        ("interim", 1),
        ("tax", "20"),
        ("late", {"policy": "true_up", "days": 3}),
        ("late", {"policy": "waive"}),
        ("close", {"policy": "grace"}),
        ("close", {"policy": "coverage", "days": 3, "percent": 101}),
        ("close", {"policy": "grace", "days": -1}),
        ("charges", []),
        ("charges", {}),
        ("charges.0", None),
        ("charges.0.type", "discount"),
        ("charges.0.type", ["usage"]),
        ("charges.0.per", "customer"),
        ("charges.0.id", "a b"),
        ("charges.0.id", "fleet"),
        ("charges.1.due", "advance"),
        ("charges.0.from_period", -1),
        ("charges.2.from_period", 1),
        ("charges.2.meter", {"model": "squeezenet"}),
        ("charges.2.meter.unit", "token"),
        ("charges.0", {**PLAN["charges"][2], "id": "again"}),
        ("charges.3.over", []),
        ("charges.3.over", ["calls", "calls"]),
        ("charges.3.over", ["nothing"]),
        ("charges.3.over", ["least"]),
        ("charges.3.amount", "-1"),
        ("charges.3.interval", "day"),
        ("charges.2.interval", "week"),
    ],
)
def test_a_plan_that_cannot_be_billed_is_refused(path, value):
    with pytest.raises(InputError) as refused:
        plans.read(changed(path, value))
    assert refused.value.code == "malformed_plan"


@pytest.mark.parametrize("price", [{"model": "flat"}, {"model": "flat", "amount": "1", "tax": "2"}, None, "49"])
def test_a_price_that_cannot_be_charged_is_named_as_such(price):
    with pytest.raises(InputError) as refused:
        plans.read(changed("charges.0.price", price))
    assert refused.value.code == "malformed_price"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("late", {"policy": "carry_over"}),
        ("late", {"policy": "waive", "days": 30}),
        ("close", {"policy": "coverage", "percent": 95, "days": 10}),
        ("close", {"policy": "estimate", "percent": 95, "days": 10}),
    ],
)
def test_what_a_contract_may_say_of_late_and_missing_usage_is_read(member, value):
    found = getattr(plans.read(changed(member, value)), member)
    assert {name: getattr(found, name) for name in value} == value
