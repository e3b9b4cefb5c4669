"""What is owed, worked out by hand."""

import dataclasses
from fractions import Fraction

import billing_terms as bt
import pytest
from billing_terms import DAY, amounts, bill, per_unit, record, run, terms

from meterkit import invoices
from meterkit.attribution import Period, TokenSpan, Usage
from meterkit.lines import billed_before
from meterkit.terms import Version


def test_thirds_of_a_cent_come_out_even():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("0.001"))), count=1)
    first = record(333, day=1, seq=1, acceptance=1)
    late = record(333, day=2, seq=2, acceptance=2)
    bills = bill(given, [first, late], [run(30, acceptance_max=1), run(31, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 33}, {"calls@0": 34}]
    (line,) = bills[1].lines
    assert (line.quantity, line.quantity_before) == (666, 333)
    assert (line.owed_minor, line.billed_before_minor) == (67, 33)
    assert line.late
    assert not bills[0].lines[0].late


def test_late_units_climb_the_tiers_of_their_own_period():
    tiers = [{"up_to": 100, "unit_amount": "2"}, {"up_to": None, "unit_amount": "1"}]
    given = terms(bt.plan_json(bt.usage_charge({"model": "graduated", "tiers": tiers})))
    records = [
        record(100, day=1, seq=1, acceptance=1),
        record(5, day=40, seq=2, acceptance=2),
        record(10, day=3, seq=3, acceptance=3),  # used in the first period, accepted in the second
    ]
    bills = bill(given, records, [run(30, acceptance_max=1), run(60, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 20000}, {"calls@0": 1000, "calls@30": 1000}]
    assert [line.late for line in bills[1].lines] == [True, False]


def test_more_volume_can_cost_less_and_the_difference_is_given_back():
    tiers = [{"up_to": 100, "unit_amount": "2"}, {"up_to": None, "unit_amount": "1"}]
    given = terms(bt.plan_json(bt.usage_charge({"model": "volume", "tiers": tiers})), count=1)
    records = [record(100, seq=1, acceptance=1), record(1, seq=2, acceptance=2)]
    bills = bill(given, records, [run(30, acceptance_max=1), run(31, number=2)])
    assert [amounts(each) for each in bills] == [{"calls@0": 20000}, {"calls@0": -9900}]


@pytest.mark.parametrize(("currency", "minor"), [("JPY", 1), ("EUR", 50), ("KWD", 500), ("CLF", 5000)])
def test_amounts_are_rounded_to_the_currency_s_minor_unit(currency, minor):
    given = terms(bt.plan_json(bt.usage_charge(per_unit("0.5")), currency=currency), count=1)
    (made,) = bill(given, [record(1)], [run(30)])
    assert amounts(made) == {"calls@0": minor}
    assert made.lines[0].currency == currency


def test_a_line_cites_its_records_by_branch():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("1"))), count=1)
    records = [
        record(1, seq=7),
        record(2, seq=3),
        record(4, seq=5, hash="b" * 64, branch="b" * 64),
        record(8, seq=9, device="dev_b", epoch="ep_b"),
    ]
    (made,) = bill(given, records, [run(30)])
    (line,) = made.lines
    assert [cited.to_claims() for cited in line.cited] == [
        {"device": "dev_a", "epoch": "ep_a", "head": "b" * 64, "first": 5, "last": 5},
        {"device": "dev_a", "epoch": "ep_a", "head": "f" * 64, "first": 3, "last": 7},
        {"device": "dev_b", "epoch": "ep_b", "head": "f" * 64, "first": 9, "last": 9},
    ]
    assert line.quantity == 15


def test_a_period_is_billed_when_it_has_closed():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("1")), close={"policy": "grace", "days": 3}), count=1)
    runs = [run(29), run(32.9, number=2), run(33, number=3)]
    assert [amounts(each) for each in bill(given, [record(1)], runs)] == [{}, {}, {"calls@0": 100}]


def test_what_was_accepted_before_the_close_is_not_late():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("1")), close={"policy": "grace", "days": 3}), count=1)
    made = bill(given, [record(1, acceptance=2)], [run(30, acceptance_max=1), run(33, number=2)])
    assert not made[1].lines[0].late


def test_a_fee_in_advance_is_billed_from_the_period_s_start():
    given = terms(bt.plan_json(bt.recurring(due="advance")))
    runs = [run(0), run(15, number=2), run(30, number=3)]
    assert [amounts(each) for each in bill(given, [], runs)] == [{"fee@0": 3000}, {}, {"fee@30": 3000}]


def test_a_fee_in_arrears_waits_for_the_end_in_interim_runs_too():
    for interim in (False, True):
        given = terms(bt.plan_json(bt.recurring(), interim=interim), count=1)
        assert [amounts(each) for each in bill(given, [], [run(29), run(30, number=2)])] == [{}, {"fee@0": 3000}]


def test_a_trial_is_free():
    given = terms(bt.plan_json(bt.recurring(due="advance", from_period=1)))
    assert amounts(*bill(given, [], [run(60)])) == {"fee@30": 3000, "fee@60": 3000}


def test_an_interim_plan_is_billed_at_any_run_without_its_minimum():
    price = per_unit("1", minimum_amount="50")
    given = terms(bt.plan_json(bt.usage_charge(price), interim=True), count=1)
    records = [record(10, day=1, seq=1), record(10, day=20, seq=2)]
    runs = [run(10), run(20.5, number=2), run(30, number=3)]
    made = bill(given, records, runs)
    assert [amounts(each) for each in made] == [{"calls@0": 1000}, {"calls@0": 1000}, {"calls@0": 3000}]


def test_zero_lines_stay_where_the_quantity_changed():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("1", included_units=100))), count=1)
    records = [record(40, seq=1, acceptance=1), record(60, seq=2, acceptance=2)]
    runs = [run(30, acceptance_max=1), run(31, number=2), run(32, number=3)]
    made = bill(given, records, runs)
    assert [amounts(each) for each in made] == [{"calls@0": 0}, {"calls@0": 0}, {}]
    assert [line.quantity for each in made for line in each.lines] == [40, 100]


def test_a_price_that_is_owed_at_zero_units_is_billed_without_usage():
    tiers = [{"up_to": None, "unit_amount": "1", "flat_amount": "9"}]
    given = terms(bt.plan_json(bt.usage_charge({"model": "graduated", "tiers": tiers})), count=1)
    assert amounts(*bill(given, [], [run(30)])) == {"calls@0": 900}


def test_active_devices_are_counted_whole_also_when_they_turn_out_later():
    fleet = bt.recurring(name="fleet", per="device", price=per_unit("2"))
    given = terms(bt.plan_json(fleet), count=2)
    records = [
        record(1, day=1, device="dev_a"),
        record(1, day=2, seq=2, device="dev_a"),
        record(1, day=3, device="dev_late", acceptance=2),
        record(1, day=3, device="dev_odd", quarantined=True),
    ]
    tokens = [
        # valid into the first period, issued before the license's first
        TokenSpan(license_id=bt.LICENSE, device="dev_idle", iat=-5 * DAY, nbf=-5 * DAY, exp=1),
        # issued in the second
        TokenSpan(license_id=bt.LICENSE, device="dev_new", iat=30 * DAY, nbf=61 * DAY, exp=62 * DAY),
        # ended as the first began
        TokenSpan(license_id=bt.LICENSE, device="dev_old", iat=-5 * DAY, nbf=-5 * DAY, exp=0),
    ]
    made = bill(given, records, [run(30, acceptance_max=1), run(60, number=2)], tokens)
    assert [amounts(each) for each in made] == [{"fleet@0": 400}, {"fleet@0": 200, "fleet@30": 200}]
    assert [line.quantity for each in made for line in each.lines] == [2, 3, 1]


def test_a_commitment_is_what_its_charges_fall_short_and_late_usage_lowers_it():
    plan = bt.plan_json(bt.usage_charge(per_unit("1")), bt.recurring(), bt.commitment("100", "calls", "fee"))
    given = terms(plan, count=1)
    records = [
        record(20, seq=1, acceptance=1),
        record(30, seq=2, acceptance=2),
        record(90, seq=3, acceptance=3),
    ]
    runs = [
        run(29),
        run(30, number=2, acceptance_max=1),
        run(31, number=3, acceptance_max=2),
        run(32, number=4),
    ]
    made = [amounts(each) for each in bill(given, records, runs)]
    assert made == [
        {},
        {"calls@0": 2000, "fee@0": 3000, "least@0": 5000},
        {"calls@0": 3000, "least@0": -3000},
        {"calls@0": 9000, "least@0": -2000},
    ]


def test_a_commitment_s_period_is_made_of_whole_periods_of_its_charges():
    plan = bt.plan_json(bt.usage_charge(per_unit("1")), bt.commitment("100", "calls", interval="year"))
    months = [bt.whole(nth) for nth in range(13)]
    given = terms(plan, periods=[*months, bt.whole(0, interval="year", days=360)])
    records = [record(7, day=30 * nth + 5, seq=nth + 1) for nth in range(13)]
    made = bill(given, records, [run(330), run(360, number=2), run(390, number=3)])
    assert sum(amounts(made[0]).values()) == 7700
    assert amounts(made[1]) == {"calls@330": 700, "least@0": 1600}
    assert amounts(made[2]) == {"calls@360": 700}


def test_a_short_period_owes_its_share():
    half = Period(
        interval="month", nth=0, start_at=15 * DAY, end_at=30 * DAY, whole_start_at=0, whole_end_at=30 * DAY
    )
    price = per_unit("1", included_units=5, maximum_amount="8", minimum_amount="3")
    plan = bt.plan_json(
        bt.usage_charge(price),
        bt.recurring(),
        bt.recurring(name="fleet", per="device", price=per_unit("4")),
        bt.commitment("101", "fee"),
    )
    given = terms(plan, periods=[half])
    for units, expected in ((3, 150), (5, 200), (50, 400)):
        made = amounts(*bill(given, [record(units, day=20)], [run(30)]))
        assert made == {"calls@15": expected, "fee@15": 1500, "fleet@15": 200, "least@15": 3550}


def test_the_nearest_period_takes_what_lies_outside_all():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("1"))), ends_at=60 * DAY, count=2)
    records = [record(1, day=-3, seq=1), record(2, day=45, seq=2), record(4, day=75, seq=3)]
    made = bill(given, records, [run(60), run(80, number=2)])
    assert [amounts(each) for each in made] == [{"calls@0": 100, "calls@30": 200}, {"calls@30": 400}]


def test_unsettled_quarantined_and_unpriced_units_are_shown_beside_and_in_no_sum():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("1"))), count=2)
    records = [
        record(5, seq=1, unsettled=3),
        record(7, seq=2, quarantined=True, unsettled=1),
        record(9, seq=3, meter=("other", "item")),
        record(2, day=31, seq=4, unsettled=6),  # its period is still open
    ]
    (made,) = bill(given, records, [run(31)])
    assert amounts(made) == {"calls@0": 500}
    shown = [(each.model, each.unpriced, each.unsettled, each.quarantined) for each in made.beside]
    assert shown == [("net", 0, 3, 8), ("other", 9, 0, 0)]


def test_a_new_version_prices_its_own_pieces():
    old, new = (bt.plan_json(bt.usage_charge(per_unit(amount)), bt.recurring()) for amount in ("1", "3"))
    edge, end = 10 * DAY, 30 * DAY
    pieces = [
        Period(interval="month", nth=0, start_at=a, end_at=b, whole_start_at=0, whole_end_at=end)
        for a, b in ((0, edge), (edge, end))
    ]
    first = terms(old, periods=pieces)
    second = Version(plan_id=bt.PLAN, number=2, starts_at=edge, plan=terms(new).versions[0].plan)
    given = dataclasses.replace(first, versions=(*first.versions, second))
    records = [record(4, day=9, seq=1), record(4, day=10, seq=2)]
    (made,) = bill(given, records, [run(30)])
    assert amounts(made) == {"calls@0": 400, "fee@0": 1000, "calls@10": 1200, "fee@10": 2000}
    assert [line.key.version for line in made.lines] == [1, 1, 2, 2]
    assert sum((line.share for line in made.lines if line.key.charge == "fee"), Fraction(0)) == 1


def test_what_was_billed_on_a_key_that_is_no_more_is_given_back():
    given = terms(bt.plan_json(bt.recurring(due="advance")), count=1)
    (made,) = bill(given, [], [run(0)])
    without = dataclasses.replace(given, periods=())
    billed = billed_before(made.lines)
    again = invoices.bill(without, Usage(), billed, [run(0), run(1, number=2)])
    assert amounts(again) == {"fee@0": -3000}


def test_two_runs_with_nothing_between_them_bill_once():
    given = terms(bt.plan_json(bt.usage_charge(per_unit("1")), bt.recurring()), count=1)
    made = bill(given, [record(1)], [run(30), run(31, number=2), run(99, number=3)])
    assert [bool(each.lines) for each in made] == [True, False, False]
