"""What is estimated of devices that are missing when a period closes, worked out by hand (BILLING §4)."""

import dataclasses
from typing import Any

import billing_terms as bt
import pytest
from billing_terms import CALLS, DAY, amounts, per_unit, record, run, sums, terms
from hypothesis import given
from hypothesis import strategies as st

from meterkit import estimates, exposure, invoices
from meterkit.attribution import Calendar, Period, Record, Run, TokenSpan, gather
from meterkit.estimates import Estimate
from meterkit.exposure import Granted
from meterkit.lateness import Declared, Reporting, closed_by, deadlines
from meterkit.lines import Bill, Line, billed_before
from meterkit.terms import Terms

TIERS = [{"up_to": 100, "unit_amount": "2"}, {"up_to": None, "unit_amount": "1"}]
CLOSE = {"policy": "estimate", "percent": 100, "days": 10}
NO_BOUND = {("dev_a", CALLS): None, ("dev_b", CALLS): None, ("dev_c", CALLS): None}


def bill(given_terms: Terms, records, runs, fleet, exposed=NO_BOUND) -> list[Bill]:
    """Bill every run in turn: periods close by the contract, and what is missing then is estimated."""
    lines: list[Line] = []
    bills = []
    for place, now in enumerate(runs):
        upto, known = runs[: place + 1], given_terms.known_at(now)
        calendar = Calendar(known.periods, known.ends_at)
        closed = closed_by(known, upto, fleet)
        gaps = estimates.gaps(known, closed, now, fleet)
        made = invoices.bill(
            known,
            gather(calendar, now, records, (), deadlines(known, closed, now)),
            billed_before(lines),
            upto,
            closed=closed,
            estimated=estimates.estimate(gaps, estimates.count(gaps, calendar, now, records), exposed),
        )
        bills.append(made)
        lines += made.lines
    return bills


def plan(price: dict[str, Any] | None = None, *more: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return bt.plan_json(bt.usage_charge(price or per_unit("1")), *more, **{"close": CLOSE, **changed})


def device(*reports: tuple[int, float], name: str = "dev_a", since: float = 0, **named) -> Reporting:
    """A device with a token from a day on: (acceptance, through which day) of each report."""
    token = TokenSpan(
        license_id=bt.LICENSE, device=name, iat=int(since * DAY), nbf=int(since * DAY), exp=120 * DAY
    )
    told = tuple((acceptance, int(day * DAY)) for acceptance, day in reports)
    return Reporting(**{"device": name, "tokens": (token,), "reports": told, **named})


def kinds(made: Bill) -> dict[str, int]:
    return {f"{line.key.kind}@{line.key.start_at // DAY}": line.amount_minor for line in made.lines}


USED = [record(300, day=1), record(90, day=35, seq=2, acceptance=2)]  # in the first period, and in the second
FIRST, SECOND = run(30, acceptance_max=1), run(70, number=2, acceptance_max=2)
AWAY = device((1, 30), (2, 40))  # it has covered the first period, and ten days of the second


def test_an_estimate_goes_on_at_the_pace_of_the_last_period_that_was_covered():
    """300 units in 30 days, and 20 days not covered: 200. Beside the 90 that are measured, at 1.00."""
    bills = bill(terms(plan(), count=2), USED, [FIRST, SECOND], [AWAY])
    assert [kinds(each) for each in bills] == [
        {"measured@0": 30_000},
        {"estimated@30": 20_000, "measured@30": 9_000},
    ]
    line = bills[1].lines[0]
    assert (line.description, line.quantity, line.on_top_of) == ("calls: net, per call, estimated", 200, 90)
    assert (line.cited, line.late) == ((), False)
    own = {"basis_start_at": 0, "basis_end_at": 30 * DAY, "basis_quantity": 300}
    told = {"device": "dev_a", "quantity": 200, "seconds": 20 * DAY, **own, "quantity_max": None}
    assert line.to_claims()["estimates"] == [told]
    assert line.to_claims()["on_top_of"] == 90
    assert not {"estimates", "on_top_of"} & bills[1].lines[1].to_claims().keys()


@pytest.mark.parametrize(
    ("units", "through", "quantity"),
    [
        (100, 40, 66),  # 100 × 20 ÷ 30 is 66.67, rounded down
        (100, 30, 100),  # nothing of the second period is covered, not even its first second
        (1, 40, 0),  # two thirds of a unit are none
        (2_592_000, 60 - 1 / DAY, 1),  # one unit a second, and one second not covered
        (300, 60, 0),  # it has reported through the end
    ],
)
def test_an_estimate_is_whole_units_rounded_down(units, through, quantity):
    fleet = [device((1, 30), (2, through))]
    made = bill(terms(plan(), count=2), [record(units, day=1)], [FIRST, SECOND], fleet)[1]
    assert kinds(made) == ({"estimated@30": 100 * quantity} if quantity else {})


def test_the_estimated_units_cost_what_the_units_after_the_measured_ones_do():
    """100 at 2.00, then 1.00. 90 are measured: 180.00. With 200 more: 200 + 190 = 390.00. The estimate: 210.00."""
    given_terms = terms(plan({"model": "graduated", "tiers": TIERS}), count=2)
    made = bill(given_terms, USED, [FIRST, SECOND], [AWAY])[1]
    assert kinds(made) == {"estimated@30": 21_000, "measured@30": 18_000}


def test_each_of_the_two_prices_is_rounded_and_the_sum_is_the_price_of_all():
    """333 measured at 0.001 are 0.33, 666 with the estimated ones 0.67: the estimate is 0.34, not 0.33."""
    used = [record(333, day=1), record(333, day=35, seq=2, acceptance=2)]
    fleet = [device((1, 30), (2, 30))]
    made = bill(terms(plan(per_unit("0.001")), count=2), used, [FIRST, SECOND], fleet)[1]
    assert kinds(made) == {"estimated@30": 34, "measured@30": 33}


def test_more_can_cost_less_and_then_an_estimate_is_below_zero():
    """All units at the tier of the last: 90 × 2 = 180.00; 290 × 1 = 290.00. 99 × 2 = 198.00; 101 × 1 = 101.00."""
    given_terms = terms(plan({"model": "volume", "tiers": TIERS}), count=2)
    assert kinds(bill(given_terms, USED, [FIRST, SECOND], [AWAY])[1])["estimated@30"] == 11_000
    used = [record(3, day=1), record(99, day=35, seq=2, acceptance=2)]
    assert kinds(bill(given_terms, used, [FIRST, SECOND], [AWAY])[1])["estimated@30"] == -9_700


def test_an_estimate_is_at_most_the_exposure():
    """200 would be missing, and its tokens leave it 25."""
    made = bill(terms(plan(), count=2), USED, [FIRST, SECOND], [AWAY], {("dev_a", CALLS): 25})[1]
    assert kinds(made)["estimated@30"] == 2_500
    assert made.lines[0].estimates[0].quantity_max == 25


def test_a_device_without_a_token_left_can_have_used_nothing():
    made = bill(terms(plan(), count=2), USED, [FIRST, SECOND], [AWAY], {})[1]
    assert kinds(made) == {"measured@30": 9_000}


def test_all_that_is_missing_of_a_device_is_at_most_its_exposure():
    """10 a day: 200 in the second period and 300 in the third. Its tokens leave it 450: 200, then 250."""
    runs = [FIRST, SECOND, run(100, number=3, acceptance_max=2)]
    bills = bill(terms(plan(), count=3), USED, runs, [AWAY], {("dev_a", CALLS): 450})
    assert [kinds(each) for each in bills[1:]] == [
        {"estimated@30": 20_000, "measured@30": 9_000},
        {"estimated@60": 25_000},
    ]


def test_a_period_of_which_nothing_is_covered_is_missing_whole_and_no_more():
    """10 a day: 20 days of the second period, 30 of the third."""
    runs = [FIRST, SECOND, run(100, number=3, acceptance_max=2)]
    bills = bill(terms(plan(), count=3), USED, runs, [AWAY])
    assert [kinds(each).get("estimated@60") for each in bills] == [None, None, 30_000]


def test_the_last_covered_period_is_the_basis_however_little_was_used_in_it():
    """600 in the first period, 30 in the second, nothing known of the third: 30."""
    used = [record(600, day=1), record(30, day=35, seq=2)]
    runs = [run(60), run(100, number=2)]
    assert kinds(bill(terms(plan(), count=3), used, runs, [device((1, 60))])[1]) == {"estimated@60": 3_000}


def test_without_a_covered_period_nothing_is_estimated():
    never, partly = device(), device((1, 29), name="dev_b")
    used = [record(500, day=1, device="dev_b")]
    assert kinds(bill(terms(plan(), count=1), used, [run(40)], [never, partly])[0]) == {"measured@0": 50_000}


def test_a_period_before_a_device_had_a_token_is_none_that_it_covered():
    """It came in the second period, by which 31 are estimated in the third. In the first it was not here."""
    used = [record(31, day=45)]
    fleet = [device((1, 60), since=40)]
    runs = [run(60), run(100, number=2)]
    assert kinds(bill(terms(plan(), count=3), used, runs, fleet)[1]) == {"estimated@60": 3_100}
    gone = [device((1, 40), since=40)]  # nor does one that has covered nothing take the first for its basis
    assert kinds(bill(terms(plan(), count=3), [], runs, gone)[1]) == {}


def test_a_period_in_which_it_had_no_token_is_no_basis_though_it_reported_since():
    """300 in the first period, no token in the second, and silent from the first day of the third on: 29 × 10."""
    spans = [
        TokenSpan(license_id=bt.LICENSE, device="dev_a", iat=day * DAY, nbf=day * DAY, exp=(day + 30) * DAY)
        for day in (0, 60)
    ]
    fleet = [device((1, 61), tokens=tuple(spans))]
    made = bill(terms(plan(), count=3), USED[:1], [run(40), run(100, number=2)], fleet)[1]
    assert kinds(made) == {"estimated@60": 29_000}


def test_when_the_device_reports_its_estimate_becomes_0_and_the_rule_does_the_rest():
    """200 were estimated, 150 were used: −200.00 and +150.00, each on its own key."""
    used = [*USED, record(150, day=50, seq=3, acceptance=3)]
    fleet = [device((1, 30), (2, 40), (3, 71))]
    bills = bill(terms(plan(), count=2), used, [FIRST, SECOND, run(71, number=3)], fleet)
    assert kinds(bills[2]) == {"estimated@30": -20_000, "measured@30": 15_000}
    estimated, measured = bills[2].lines
    assert (estimated.quantity, estimated.quantity_before, estimated.late) == (0, 200, True)
    assert (measured.quantity, measured.quantity_before) == (240, 90)


def test_what_a_device_reports_of_a_part_makes_its_estimate_smaller():
    """After ten more days ten are missing: 100 instead of 200, beside what was measured in those days."""
    used = [*USED, record(60, day=45, seq=3, acceptance=3)]
    fleet = [device((1, 30), (2, 40), (3, 50))]
    bills = bill(terms(plan(), count=2), used, [FIRST, SECOND, run(71, number=3)], fleet)
    assert kinds(bills[2]) == {"estimated@30": -10_000, "measured@30": 6_000}


@pytest.mark.parametrize("state", ["lost", "retired"])
def test_of_a_device_that_is_declared_lost_or_retired_nothing_is_estimated_any_more(state):
    fleet = [dataclasses.replace(AWAY, declared=(Declared(state=state, since_run=3),))]
    bills = bill(terms(plan(), count=2), USED, [FIRST, SECOND, run(71, number=3)], fleet)
    assert kinds(bills[1])["estimated@30"] == 20_000
    assert kinds(bills[2]) == {"estimated@30": -20_000}


def test_the_usage_of_a_lost_device_that_comes_back_is_late_usage():
    """Lost before the close: 90.00. Back again with 150 more and active: 150.00, late, and nothing estimated."""
    declared = (Declared(state="lost", since_run=2), Declared(state="active", since_run=3))
    fleet = [device((1, 30), (2, 40), (3, 71), declared=declared)]
    used = [*USED, record(150, day=50, seq=3, acceptance=3)]
    bills = bill(terms(plan(), count=2), used, [FIRST, SECOND, run(71, number=3)], fleet)
    assert [kinds(each) for each in bills[1:]] == [{"measured@30": 9_000}, {"measured@30": 15_000}]
    assert [line.late for line in bills[2].lines] == [True]


def test_a_period_closes_as_by_coverage_and_only_then_is_estimated():
    """Half of the two have reported by day 65: closed, and the other is estimated; no interim run does so."""
    close = {"policy": "estimate", "percent": 50, "days": 30}
    used = [record(300, day=1), record(40, day=31, seq=2, device="dev_b", acceptance=2)]
    fleet = [device((1, 30)), device((1, 30), (3, 61), name="dev_b")]
    runs = [
        run(31, acceptance_max=1),
        run(62, number=2, acceptance_max=2),
        run(65, number=3, acceptance_max=3),
    ]
    bills = bill(terms(plan(close=close), count=2), used, runs, fleet)
    assert [kinds(each) for each in bills] == [
        {"measured@0": 30_000},
        {},
        {"estimated@30": 30_000, "measured@30": 4_000},
    ]
    bills = bill(terms(plan(close=close, interim=True), count=2), used, runs, fleet)
    assert [kinds(each) for each in bills[1:]] == [{"measured@30": 4_000}, {"estimated@30": 30_000}]


@pytest.mark.parametrize("close", [{"policy": "grace", "days": 10}, {**CLOSE, "policy": "coverage"}])
def test_other_contracts_estimate_nothing(close):
    bills = bill(terms(plan(close=close), count=2), USED, [FIRST, SECOND], [AWAY])
    assert {line.key.kind for each in bills for line in each.lines} == {"measured"}
    closed = closed_by(terms(plan(close=close), count=2), [SECOND], [AWAY])
    assert estimates.gaps(terms(plan(close=close), count=2), closed, SECOND, [AWAY]) == ()


def test_a_commitment_counts_what_is_estimated_of_its_charges():
    """500 a month over calls: 90.00 measured and 200.00 estimated leave 210.00; when 150 come instead, 260.00."""
    used = [*USED, record(150, day=50, seq=3, acceptance=3)]
    given_terms = terms(plan(None, bt.commitment("500", "calls")), count=2)
    fleet = [device((1, 30), (2, 40), (3, 71))]
    bills = bill(given_terms, used, [FIRST, SECOND, run(71, number=3)], fleet)
    assert [amounts(each).get("least@30") for each in bills[1:]] == [21_000, 5_000]
    assert sum(line.amount_minor for each in bills[1:] for line in each.lines) == 50_000


def test_late_units_are_carried_over_and_the_estimate_of_their_period_becomes_0():
    used = [*USED, dataclasses.replace(record(150, day=50, seq=3, acceptance=3), received_at=71 * DAY)]
    given_terms = terms(plan(late={"policy": "carry_over"}), count=3)
    fleet = [device((1, 30), (2, 40), (3, 90))]
    bills = bill(given_terms, used, [FIRST, SECOND, run(100, number=3)], fleet)
    assert kinds(bills[2]) == {"estimated@30": -20_000, "measured@60": 15_000}


def test_what_counts_in_the_basis_is_when_it_was_used_whatever_the_contract_makes_of_late_units():
    """100 in time, 200 late and waived: the device used 300 all the same, and 200 are estimated of 20 days."""
    late = dataclasses.replace(record(200, day=2, seq=3, acceptance=2), received_at=80 * DAY)
    used = [record(100, day=1), late]
    given_terms = terms(plan(late={"policy": "waive", "days": 0}), count=2)
    made = bill(given_terms, used, [FIRST, run(90, number=2)], [AWAY])[1]
    assert kinds(made) == {"estimated@30": 20_000}
    assert [each.waived for each in made.beside] == [200]


def test_what_is_set_aside_is_no_basis():
    used = [record(300, day=1), record(900, day=2, seq=2, quarantined=True), record(70, day=3, seq=3, repeated=60)]
    made = bill(terms(plan(), count=2), used, [FIRST, run(90, number=2)], [device((1, 30), (2, 30))])[1]
    assert kinds(made) == {"estimated@30": 31_000}


def test_a_short_period_s_pace_is_by_its_own_seconds():
    """15 days at the start with 150 units: 10 a day, 300 in the 30 days after."""
    whole = bt.whole(0)
    periods = [dataclasses.replace(whole, start_at=15 * DAY), bt.whole(1)]
    used = [record(150, day=20)]
    made = bill(terms(plan(), periods=periods), used, [FIRST, SECOND], [device((1, 30))])[1]
    assert kinds(made) == {"estimated@30": 30_000}


def test_the_basis_is_a_period_of_the_charge_s_own_interval():
    """Days and months side by side: the month's estimate is by the month before, the day's by the day before."""
    days = [bt.whole(nth, interval="day", days=1) for nth in range(60)]
    months = [bt.whole(nth) for nth in range(2)]
    charges = (
        bt.usage_charge(per_unit("1"), interval="month"),
        bt.usage_charge(per_unit("1"), name="others", model="other", interval="day"),
    )
    given_terms = terms(bt.plan_json(*charges, close=CLOSE), periods=[*days, *months])
    used = [record(300, day=1), record(7, day=58, seq=2, meter=("other", "call"))]
    exposed = {("dev_a", CALLS): None, ("dev_a", ("other", "call")): None}
    made = bill(given_terms, used, [run(80)], [device((1, 59))], exposed)[0]
    estimated = {line.key.charge: line.quantity for line in made.lines if line.key.kind == "estimated"}
    assert estimated == {"calls": 10, "others": 7}  # one day of thirty is missing; one day after a day with 7


def test_what_a_run_does_not_know_changes_no_estimate_of_its():
    """Reports, tokens, declarations and records that came later: the run's lines are the same."""
    later = [*USED, record(9_999, day=2, seq=9, acceptance=3)]
    token = TokenSpan(license_id=bt.LICENSE, device="dev_a", iat=70 * DAY, nbf=0, exp=30 * DAY)
    fleet = [
        dataclasses.replace(
            AWAY,
            tokens=(*AWAY.tokens, token),
            reports=(*AWAY.reports, (3, 90 * DAY)),
            declared=(Declared(state="lost", since_run=3),),
        )
    ]
    first = bill(terms(plan(), count=2), USED, [FIRST, SECOND], [AWAY])
    assert bill(terms(plan(), count=2), later, [FIRST, SECOND], fleet) == first


def test_who_is_given_a_token_for_a_period_after_a_run_need_not_have_reported_for_it():
    spans = [
        TokenSpan(license_id=bt.LICENSE, device="dev_a", iat=iat * DAY, nbf=nbf * DAY, exp=(nbf + 30) * DAY)
        for iat, nbf in ((0, 0), (70, 30))
    ]
    runs = [FIRST, SECOND, run(71, number=3, acceptance_max=2)]
    bills = bill(terms(plan(), count=2), USED, runs, [dataclasses.replace(AWAY, tokens=tuple(spans))])
    assert [kinds(each).get("estimated@30") for each in bills] == [None, None, 20_000]


# -- the most that a device can still report


def granted(serial: int, units_max: int | None, at_anchor: int | None = 0) -> Granted:
    return Granted(serial=serial, at_anchor=at_anchor, units_max=units_max)


@pytest.mark.parametrize(
    ("tokens", "installed", "ends", "most"),
    [
        ([], 0, [], 0),
        ([granted(1, 500)], 0, [], 500),  # nothing is accepted yet
        ([granted(1, 500)], 1, [120], 380),
        ([granted(1, 500)], 1, [600], 0),  # it went beyond its limit, flagged: nothing is left
        ([granted(1, 500), granted(2, 500, 120)], 1, [120], 500),  # the later one was given, and may be in use
        ([granted(1, 900), granted(2, 500, 120)], 2, [120], 500),  # it is: the first one is no longer usable
        ([granted(1, 900), granted(2, 500, 120)], 1, [120], 780),
        ([granted(1, None)], 1, [120], None),
        ([granted(1, None), granted(2, 500, 120)], 2, [120], 500),  # what has no bound is out of use
        ([granted(1, 500), granted(2, 300, None)], 1, [120], 680),  # anchored ahead: where the first one ends
        ([granted(2, 300, None)], 0, [], 300),
        ([granted(1, 500, 100)], 1, [120, 350], 480),  # two branches: the one that is least far
        ([granted(1, 500, 200)], 1, [120, 350], 350),  # one of them has not come to the anchor
        ([granted(1, 500, 200)], 1, [120], 500),
    ],
)
def test_exposure_is_what_usable_tokens_allow_beyond_what_is_accepted(tokens, installed, ends, most):
    assert exposure.beyond(tokens, installed, ends) == most
    assert exposure.beyond(reversed(tokens), installed, ends) == most


# -- any schedule of runs and reports


@st.composite
def lives(draw: Any) -> tuple[list[Record], list[Reporting]]:
    """Three devices: what they used, when it was accepted, through when they had reported then; in the end all."""
    records, fleet = [], []
    for name in ("dev_a", "dev_b", "dev_c"):
        told = sorted(draw(st.integers(0, 90)) for _ in range(4))
        records += [
            record(
                draw(st.integers(0, 50)),
                seq=seq,
                device=name,
                service_at=draw(st.integers(0, 90 * DAY - 1)),
                acceptance=draw(st.integers(1, 5)),
                received_at=draw(st.integers(0, 100)) * DAY,
            )
            for seq in range(1, draw(st.integers(1, 5)))
        ]
        states = draw(st.lists(st.sampled_from(["lost", "active", "retired"]), max_size=2))
        declared = tuple(Declared(state=state, since_run=place + 2) for place, state in enumerate(states))
        since = draw(st.sampled_from([0, 0, 31]))
        reports = [*enumerate(told, 1), (5, 200)]
        fleet.append(device(*reports, name=name, since=since, declared=declared))
    return records, fleet


@st.composite
def schedules(draw: Any) -> list[Run]:
    cut_offs = sorted(draw(st.lists(st.integers(0, 100), max_size=5)))
    limits = sorted(draw(st.integers(0, 5)) for _ in cut_offs)
    runs = [
        run(cut_off, number=number, acceptance_max=limit)
        for number, (cut_off, limit) in enumerate(zip(cut_offs, limits, strict=True), 1)
    ]
    return [*runs, run(120, number=9, acceptance_max=5)]


PRICES = [
    per_unit("0.333"),
    per_unit("1", minimum_amount="7", included_units=5),
    {"model": "graduated", "tiers": TIERS},
    {"model": "volume", "tiers": TIERS},
    {"model": "package", "size": 7, "amount": "3"},
]
exposures = st.fixed_dictionaries({name: st.none() | st.integers(0, 60) for name in NO_BOUND})


@given(lives(), schedules(), st.sampled_from(PRICES), st.integers(1, 100), exposures)
def test_any_schedule_of_runs_and_reports_ends_at_the_same_sum_once_all_have_reported(
    life, runs, price, percent, exposed
):
    records, fleet = life
    close = {"policy": "estimate", "percent": percent, "days": 10}
    given_terms = terms(plan(price, bt.commitment("40", "calls"), close=close))
    bills = bill(given_terms, records, runs, fleet, exposed)
    assert sums(bills) == sums(bill(given_terms, records, runs[-1:], fleet, exposed))
    assert not any(key.kind == "estimated" for key in sums(bills))


@given(lives(), schedules(), exposures)
def test_estimated_units_are_no_measured_ones_and_stay_within_the_exposure(life, runs, exposed):
    """Whatever is estimated, measured lines say the same; and of no device is more missing than it can report."""
    records, fleet = life
    given_terms = terms(plan())
    bills = bill(given_terms, records, runs, fleet, exposed)
    measured = [[line for line in each.lines if line.key.kind == "measured"] for each in bills]
    alone = bill(terms(plan(close={**CLOSE, "policy": "coverage"})), records, runs, fleet, exposed)
    assert [[line.to_claims() for line in each] for each in measured] == [
        [line.to_claims() for line in each.lines] for each in alone
    ]
    standing: dict[Period | int, tuple[Estimate, ...]] = {}
    for each in bills:
        standing |= {line.key.start_at: line.estimates for line in each.lines if line.key.kind == "estimated"}
        missing: dict[str, int] = {}
        for own in (each for found in standing.values() for each in found):
            missing[own.device] = missing.get(own.device, 0) + own.quantity
        for name, units in missing.items():
            most = exposed[name, CALLS]
            assert most is None or units <= most
