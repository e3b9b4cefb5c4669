"""What a contract makes of usage that comes after a period's close, worked out by hand (BILLING §4)."""

import billing_terms as bt
import pytest
from billing_terms import CALLS, DAY, amounts, per_unit, record, run, terms

from meterkit import invoices, pricing
from meterkit.attribution import Calendar, Carried, Run, TokenSpan, gather
from meterkit.lateness import Declared, Reporting, closed_by, deadlines
from meterkit.lines import Bill, Line, billed_before

TIERS = [{"up_to": 100, "unit_amount": "2"}, {"up_to": None, "unit_amount": "1"}]


def bill(given, records, runs, fleet=()) -> list[Bill]:
    """Bill every run in turn by the contract's own deadlines."""
    lines: list[Line] = []
    bills = []
    for place, now in enumerate(runs):
        upto = runs[: place + 1]
        known = given.known_at(now)
        closed = closed_by(known, upto, fleet)
        calendar = Calendar(known.periods, known.ends_at)
        usage = gather(calendar, now, records, (), deadlines(known, closed, now))
        bills.append(invoices.bill(known, usage, billed_before(lines), upto, closed=closed))
        lines += bills[-1].lines
    return bills


def late_plan(price: dict, **late) -> dict:
    return bt.plan_json(bt.usage_charge(price), late=late)


def used(units: int, *, day: float, received: float, acceptance: int, seq: int = 1, **changed):
    return record(units, day=day, received_at=int(received * DAY), acceptance=acceptance, seq=seq, **changed)


def test_waived_units_are_set_aside_and_shown():
    """100 in time at 1.00; 50 accepted 5 days after the end + 3 days are waived: nothing more is owed."""
    given = terms(late_plan(per_unit("1"), policy="waive", days=3), count=2)
    records = [
        used(100, day=1, received=2, acceptance=1),
        used(20, day=2, received=33, acceptance=2, seq=2),
        used(50, day=3, received=33.1, acceptance=3, seq=3),
    ]
    bills = bill(given, records, [run(30, acceptance_max=1), run(40, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 10_000}, {"calls@0": 2_000}]
    (line,) = bills[1].lines
    assert line.quantity == 120
    assert [(each.waived, each.start_at) for each in bills[1].beside] == [(50, 0)]
    assert [(cited.first, cited.last) for cited in line.cited] == [(1, 2)]


def test_a_waiver_never_costs_money():
    """100 units cost 200.00; with the one that came late all 101 cost 101.00: it is counted, not waived."""
    given = terms(late_plan({"model": "volume", "tiers": TIERS}, policy="waive", days=0), count=2)
    records = [used(100, day=1, received=2, acceptance=1), used(1, day=2, received=31, acceptance=2, seq=2)]
    bills = bill(given, records, [run(30, acceptance_max=1), run(40, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 20_000}, {"calls@0": -9_900}]
    assert bills[1].lines[0].quantity == 101
    assert bills[1].beside == ()


def test_a_waiver_that_stopped_to_be_cheaper_is_a_waiver_again():
    """In time 100 at 200.00. 1 late unit: counted, 101.00. 150 late ones: 251 would cost 251.00, so all are waived
    and the invoice comes back to 200.00."""
    given = terms(late_plan({"model": "volume", "tiers": TIERS}, policy="waive", days=0), count=2)
    records = [
        used(100, day=1, received=2, acceptance=1),
        used(1, day=2, received=31, acceptance=2, seq=2),
        used(150, day=3, received=42, acceptance=3, seq=3),
    ]
    runs = [run(30, acceptance_max=1), run(40, number=2, acceptance_max=2), run(50, number=3)]
    assert [amounts(each)["calls@0"] for each in bill(given, records, runs)] == [20_000, -9_900, 9_900]


def test_carried_units_are_billed_in_the_period_open_when_they_came_at_its_price():
    """90 of the first month at 2.00. 20 more of it come in the second, whose ladder they climb with its own 90:
    100 at 2.00 and 10 at 1.00."""
    given = terms(late_plan({"model": "graduated", "tiers": TIERS}, policy="carry_over"), count=2)
    records = [
        used(90, day=1, received=2, acceptance=1),
        used(20, day=2, received=35, acceptance=2, seq=2),
        used(90, day=31, received=36, acceptance=3, seq=3),
    ]
    bills = bill(given, records, [run(30, acceptance_max=1), run(60, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 18_000}, {"calls@30": 21_000}]
    (line,) = bills[1].lines
    assert line.carried == (Carried(start_at=0, end_at=30 * DAY, units=20),)
    assert not line.late
    assert line.to_claims()["carried"] == [{"service_start_at": 0, "service_end_at": 30 * DAY, "quantity": 20}]


def test_what_the_closing_run_knows_is_in_time():
    """Accepted after the period's end, but before the run that closes it: nothing is carried."""
    given = terms(late_plan(per_unit("1"), policy="carry_over"), count=2)
    records = [used(5, day=1, received=31, acceptance=1), used(7, day=2, received=33, acceptance=2, seq=2)]
    bills = bill(given, records, [run(32, acceptance_max=1), run(60, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 500}, {"calls@30": 700}]


def test_carried_units_wait_for_their_period_to_begin():
    given = terms(late_plan(per_unit("1"), policy="carry_over"), count=3)
    records = [used(7, day=2, received=65, acceptance=2)]
    runs = [run(30, acceptance_max=1), run(60, number=2), run(90, number=3)]
    assert [amounts(each) for each in bill(given, records, runs)] == [{}, {}, {"calls@60": 700}]


@pytest.mark.parametrize(
    "policy", [{"policy": "true_up"}, {"policy": "carry_over"}, {"policy": "waive", "days": 9}]
)
def test_each_unit_is_billed_once_or_waived(policy):
    """Whatever the contract says: Σ quantities + waived = Σ accepted, once every period is closed."""
    given = terms(late_plan(per_unit("1"), **policy), count=4)
    records = [
        used(2**nth, day=nth * 9, received=nth * 9 + (37 if nth % 3 else 1), acceptance=nth, seq=nth)
        for nth in range(1, 9)
    ]
    records.sort(key=lambda each: each.received_at)
    records = [bt.record(**{**vars_of(each), "acceptance": place}) for place, each in enumerate(records, 1)]
    runs = [
        Run(
            number=number,
            cut_off=30 * number * DAY,
            acceptance_max=sum(each.received_at <= 30 * number * DAY for each in records),
        )
        for number in range(1, 6)
    ]
    bills = bill(given, records, runs)
    quantity = sum(line.quantity - line.quantity_before for each in bills for line in each.lines)
    waived = {each.start_at: each.waived for made in bills for each in made.beside}
    assert quantity + sum(waived.values()) == sum(each.units for each in records)


def vars_of(each) -> dict:
    names = ("units", "seq", "received_at")
    return {**{name: getattr(each, name) for name in names}, "day": each.service_at / DAY}


def device(*reports: tuple[int, float], **named) -> Reporting:
    """A device with a token from the first day on: (acceptance, through which day) of each report."""
    token = TokenSpan(license_id=bt.LICENSE, device="dev_a", iat=0, nbf=0, exp=60 * DAY)
    told = tuple((acceptance, int(day * DAY)) for acceptance, day in reports)
    return Reporting(**{"tokens": (token,), "reports": told, **named})


def closing(percent: int, days: int) -> dict:
    close = {"policy": "coverage", "percent": percent, "days": days}
    return bt.plan_json(bt.usage_charge(per_unit("1")), close=close)


def first_closed(given, runs, fleet) -> int | None:
    found = closed_by(given, runs, fleet).get(("month", 0))
    return found.number if found else None


RUNS = [run(31, acceptance_max=1), run(33, number=2, acceptance_max=2), run(40, number=3, acceptance_max=3)]


@pytest.mark.parametrize(
    ("fleet", "number"),
    [
        ([device((1, 30))], 1),  # through the end is beyond it: nothing before it is still unfolded
        ([device((1, 29.9))], 3),  # it has not; ten days after the end it closes all the same
        ([device((2, 30))], 2),
        ([device((1, 30)), device((2, 31))], 2),  # 50 % are not 60 %
        ([device((1, 30)), device((1, 30)), device()], 1),  # two of three are 66 %
        ([device((1, 30)), device(declared=(Declared(state="lost", since_run=1),))], 1),
        ([device((1, 30)), device(declared=(Declared(state="retired", since_run=2),))], 2),
        (
            [
                device((1, 30)),
                device(declared=(Declared(state="lost", since_run=1), Declared(state="active", since_run=2))),
            ],
            1,  # once closed it stays closed
        ),
        ([device((1, 30)), device(tokens=())], 1),  # a device without a token in it need not report
        ([], 1),  # nobody need report: nothing is waited for
    ],
)
def test_a_period_closes_when_enough_have_reported(fleet, number):
    assert first_closed(terms(closing(60, 10), count=1), RUNS, fleet) == number


def test_a_token_that_begins_with_the_next_period_is_none_of_this_one():
    later = TokenSpan(license_id=bt.LICENSE, device="dev_b", iat=30 * DAY, nbf=30 * DAY, exp=60 * DAY)
    assert first_closed(terms(closing(100, 10), count=2), RUNS, [device((1, 30)), device(tokens=(later,))]) == 1


def test_a_period_that_is_not_closed_is_not_billed():
    given = terms(closing(100, 10), count=1)
    records = [record(5, day=1)]
    bills = bill(given, records, RUNS, [device((2, 30))])
    assert [amounts(each) for each in bills] == [{}, {"calls@0": 500}, {}]


def test_late_is_what_comes_after_the_run_that_closed_by_coverage():
    close = {"policy": "coverage", "percent": 100, "days": 10}
    plan = bt.plan_json(bt.usage_charge(per_unit("1")), close=close, late={"policy": "carry_over"})
    given = terms(plan, count=2)
    records = [
        used(5, day=1, received=32, acceptance=2),
        used(7, day=2, received=34, acceptance=3, seq=2),
    ]
    runs = [*RUNS, run(71, number=4)]
    bills = bill(given, records, runs, [device((2, 30), (3, 61))])
    assert [amounts(each) for each in bills] == [{}, {"calls@0": 500}, {}, {"calls@30": 700}]


def test_the_price_of_nothing_is_not_asked_twice():
    """A minimum is owed once, whatever was waived."""
    given = terms(late_plan(per_unit("1", minimum_amount="10"), policy="waive", days=0), count=1)
    records = [used(5, day=1, received=31, acceptance=2)]
    bills = bill(given, records, [run(30, acceptance_max=1), run(40, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 1_000}, {}]
    assert pricing.rate(given.versions[0].plan.charges[0].price, 5) == 10
    assert given.versions[0].plan.charges[0].meter == CALLS
