"""Any order, repetition and cut into batches, and any schedule of runs, give the same sums (BILLING §3)."""

import dataclasses
from fractions import Fraction
from typing import Any

import billing_terms as bt
from billing_terms import DAY, bill, per_unit, sums
from hypothesis import given
from hypothesis import strategies as st

from meterkit import pricing
from meterkit.attribution import Calendar, Measured, Record, Run, TokenSpan, gather
from meterkit.lines import Key, Line
from meterkit.terms import Terms

END = 90
LAST = Run(number=99, cut_off=END * DAY, acceptance_max=10**6)

amounts = st.integers(0, 10**6).map(lambda n: f"{n // 10**4}.{n % 10**4:04d}")
modifiers = st.fixed_dictionaries(
    {},
    optional={
        "included_units": st.integers(0, 20),
        "discount_percent": st.integers(0, 100),
        "minimum_amount": st.just("3.33"),
        "maximum_amount": st.just("777.77"),
    },
)


@st.composite
def prices(draw: Any) -> dict[str, Any]:
    model = draw(st.sampled_from(["flat", "per_unit", "package", "volume", "graduated"]))
    if model == "flat":
        body: dict[str, Any] = {"amount": draw(amounts)}
    elif model == "per_unit":
        body = {"unit_amount": draw(amounts)}
    elif model == "package":
        body = {"size": draw(st.integers(1, 9)), "amount": draw(amounts)}
    else:
        bounds = sorted(draw(st.sets(st.integers(1, 60), max_size=3)))
        body = {
            "tiers": [
                {"up_to": bound, "unit_amount": draw(amounts), "flat_amount": draw(amounts)}
                for bound in [*bounds, None]
            ]
        }
    return {"model": model, **body, **draw(modifiers)}


@st.composite
def terms(draw: Any) -> Terms:
    plan = bt.plan_json(
        bt.usage_charge(draw(prices())),
        bt.usage_charge(draw(prices()), name="others", model="other"),
        bt.recurring(due="advance", price=draw(prices())),
        bt.recurring(name="fleet", per="device", price=draw(prices())),
        bt.commitment(draw(amounts), "calls", "fee", "fleet"),
        interim=draw(st.booleans()),
        close={"policy": "grace", "days": draw(st.integers(0, 5))},
        currency=draw(st.sampled_from(["EUR", "JPY", "KWD"])),
    )
    return bt.terms(plan)


@st.composite
def records(draw: Any) -> list[Record]:
    return [
        bt.record(
            draw(st.integers(0, 30)),
            seq=place + 1,
            device=f"dev_{draw(st.integers(0, 3))}",
            meter=(draw(st.sampled_from(["net", "other", "unpriced"])), "call"),
            service_at=draw(st.integers(-DAY, END * DAY - 1)),
            unsettled=draw(st.integers(0, 2)),
            quarantined=draw(st.integers(0, 9)) == 0,
        )
        for place in range(draw(st.integers(0, 12)))
    ]


@st.composite
def schedules(draw: Any, count: int) -> tuple[list[int], list[Run]]:
    """When each record was accepted (its batch), and runs whose limits never go back."""
    acceptances = [draw(st.integers(1, 6)) for _ in range(count)]
    cut_offs = sorted(draw(st.lists(st.integers(0, END), max_size=5)))
    limits = sorted(draw(st.integers(0, 6)) for _ in cut_offs)
    runs = [
        Run(number=place + 1, cut_off=cut_off * DAY, acceptance_max=limit)
        for place, (cut_off, limit) in enumerate(zip(cut_offs, limits, strict=True))
    ]
    return acceptances, [*runs, dataclasses.replace(LAST, cut_off=(END + 10) * DAY)]


TOKENS = [TokenSpan(license_id=bt.LICENSE, device="dev_9", iat=5 * DAY, nbf=5 * DAY, exp=35 * DAY)]


@given(data=st.data(), plan=terms(), used=records())
def test_any_schedule_of_runs_gives_the_same_sums(data, plan, used):
    acceptances, runs = data.draw(schedules(len(used)))
    accepted = [dataclasses.replace(r, acceptance=a) for r, a in zip(used, acceptances, strict=True)]
    at_once = sums(bill(plan, accepted, runs[-1:], TOKENS))
    assert sums(bill(plan, accepted, runs, TOKENS)) == at_once


@given(data=st.data(), plan=terms(), used=records())
def test_order_copies_and_batches_do_not_matter(data, plan, used):
    run = dataclasses.replace(LAST, cut_off=(END + 10) * DAY)
    copies = data.draw(st.lists(st.sampled_from(used), max_size=8)) if used else []
    shuffled = data.draw(st.permutations([*used, *copies]))
    batched = [dataclasses.replace(each, acceptance=data.draw(st.integers(1, 9))) for each in shuffled]
    assert bill(plan, batched, [run], TOKENS) == bill(plan, used, [run], TOKENS)


@given(plan=terms(), used=records())
def test_every_unit_is_in_one_place(plan, used):
    """Conservation: billed, shown beside as unpriced or quarantined; nothing twice, nothing lost."""
    (made,) = bill(plan, used, [dataclasses.replace(LAST, cut_off=(END + 10) * DAY)])
    billed = sum(line.quantity for line in made.lines if line.key.kind == "measured")
    beside = sum(each.unpriced + each.quarantined + each.unsettled for each in made.beside)
    assert billed + beside == sum(record.units + record.unsettled for record in used)
    counted = [record for record in used if not record.quarantined]
    assert sum(each.unsettled for each in made.beside) == sum(record.unsettled for record in counted)


@given(data=st.data(), plan=terms(), used=records())
def test_a_line_is_the_rounded_price_of_what_its_period_holds(data, plan, used):
    _, runs = data.draw(schedules(0))
    last = runs[-1]
    for made in bill(plan, used, runs):
        for line in made.lines:
            assert line.amount_minor == line.owed_minor - line.billed_before_minor
    usage = gather(Calendar(plan.periods, None), last, used, [])
    (whole,) = bill(plan, used, [last])
    price = plan.versions[0].plan.charges[0].price
    for line in whole.lines:
        if line.key.charge == "calls":
            exact = pricing.rate(price, line.quantity)
            scale = {"EUR": 100, "JPY": 1, "KWD": 1000}[line.currency]
            assert abs(exact * scale - line.owed_minor) <= Fraction(1, 2)
            held = usage.measured.get((("month", line.key.start_at), bt.CALLS), Measured())
            assert (line.quantity, line.cited) == (held.units, held.cited)


@given(data=st.data(), used=records(), amount=st.integers(1, 500))
def test_a_commitment_is_kept_until_it_is_passed(data, used, amount):
    plan = bt.terms(bt.plan_json(bt.usage_charge(per_unit("1")), bt.commitment(str(amount), "calls")), count=3)
    acceptances, runs = data.draw(schedules(len(used)))
    accepted = [dataclasses.replace(r, acceptance=a) for r, a in zip(used, acceptances, strict=True)]
    per_period: dict[int, int] = {}
    for key, minor in sums(bill(plan, accepted, runs)).items():
        per_period[key.start_at] = per_period.get(key.start_at, 0) + minor
    usage = gather(Calendar(plan.periods, None), runs[-1], accepted, [])
    for period in plan.periods:
        units = usage.measured[period.slot, bt.CALLS].units if (period.slot, bt.CALLS) in usage.measured else 0
        assert per_period.get(period.start_at, 0) == 100 * max(amount, units)


@given(plan=terms(), used=records(), cut=st.integers(0, END))
def test_a_run_asked_again_gives_the_same(plan, used, cut):
    run = Run(number=1, cut_off=cut * DAY, acceptance_max=10**6)
    later = [bt.record(9, seq=900, day=0, acceptance=10**6 + 1)]
    assert bill(plan, used, [run]) == bill(plan, [*used, *later], [run])
    lines = bill(plan, used, [run])[0].lines
    assert [line.to_claims() for line in lines] == [line.to_claims() for line in sorted(lines, key=_by_key)]


def _by_key(line: Line) -> Key:
    return line.key
