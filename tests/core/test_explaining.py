"""A line in words: the steps of its price add up, and every record that it cites is told."""

import dataclasses
from fractions import Fraction

import evidence_world as ew
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit import audit, explaining, pricing
from meterkit.errors import InputError
from meterkit.pricing import steps as price_steps


@pytest.fixture(scope="module")
def second() -> audit.AuditResult:
    return audit.recompute(ew.story()[1])


AMOUNTS = st.decimals(0, 100, places=3).map(str)
LADDERS = st.lists(st.integers(1, 50), max_size=3, unique=True).map(sorted)


@st.composite
def prices(draw) -> pricing.Price:
    model = draw(st.sampled_from(["flat", "per_unit", "package", "volume", "graduated"]))
    if model in ("volume", "graduated"):
        bounds = [*draw(LADDERS), None]
        tiers = [{"up_to": bound, "unit_amount": draw(AMOUNTS), "flat_amount": draw(AMOUNTS)} for bound in bounds]
        value = {"model": model, "tiers": tiers}
    elif model == "package":
        value = {"model": model, "size": draw(st.integers(1, 9)), "amount": draw(AMOUNTS)}
    else:
        value = {"model": model, "amount" if model == "flat" else "unit_amount": draw(AMOUNTS)}
    around = {
        "included_units": draw(st.none() | st.integers(0, 30)),
        "discount_percent": draw(st.none() | st.integers(0, 100).map(str)),
        "maximum_amount": draw(st.none() | st.just("60")),
        "minimum_amount": draw(st.none() | st.just("20")),
    }
    return pricing.read({**value, **{name: each for name, each in around.items() if each is not None}})


@given(prices(), st.integers(0, 120), st.sampled_from([Fraction(1), Fraction(1, 3), Fraction(0)]), st.booleans())
def test_the_steps_of_a_price_add_up_to_it(price, units, share, minimum):
    found = price_steps.steps(price, units, share, minimum=minimum)
    assert sum((step.amount for step in found), Fraction(0)) == pricing.rate(price, units, share, minimum=minimum)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(5), "5"),
        (Fraction(-1, 8), "-0.125"),
        (Fraction(1, 3), "0.333333333333…"),
        (Fraction(1, 10**12), "0.000000000001"),
        (Fraction(100), "100"),
    ],
)
def test_an_exact_amount_has_the_decimals_it_has(amount, text):
    assert price_steps.exact(amount) == text


def test_a_late_line_is_told_from_its_records_to_its_amount(second):
    told = "\n".join(explaining.explain(second, 1))
    assert "Line 1 of INV-000002: calls: detector, per call" in told
    assert "127 units of detector, per call:" in told
    assert "  97 by " in told  # 90 in time and the seven late ones
    assert "  30 by " in told
    assert "  100 × 0.1, units 1 to 100: 10\n  27 × 0.05, units 101 to 127: 1.35" in told
    assert "That is 11.35 EUR, rounded 11.35 EUR." in told
    assert "Billed before: 11.00 EUR, for 120 units." in told
    assert told.endswith("This line bills 0.35 EUR.")


def test_both_branches_of_a_fork_are_told_by_their_heads(second):
    told = explaining.explain(second, 3)
    heads = [line for line in told if "whose head is" in line]
    assert len(heads) == 2
    assert sorted(line.split()[0] for line in told if " by dev_" in line) == ["11", "13"]


def test_the_units_told_are_those_of_the_line(second):
    for place, line in enumerate(second.work.done[-1][1].lines, 1):
        told = explaining.explain(second, place)
        if line.key.kind == "measured":
            assert sum(int(each.split()[0]) for each in told if " by dev_" in each) == line.quantity


def parts_told(told) -> dict[str, str]:
    """What each device has of a line's amount."""
    return {line.split()[-1]: line.split()[0] for line in told if " EUR of it for " in line}


def test_each_device_has_its_part_of_the_rounded_amount(second):
    """11.35 for 97 and 30 units: 8.669 and 2.681 exactly."""
    told = explaining.explain(second, 1)
    counted = {words[2].rstrip(","): words[0] for words in map(str.split, told) if words[1] == "by"}
    assert {counted[device]: part for device, part in parts_told(told).items()} == {"97": "8.67", "30": "2.68"}
    at = told.index("That is 11.35 EUR, rounded 11.35 EUR.")
    assert parts_told(told[at + 1 : at + 3]) == parts_told(told)
    assert parts_told(explaining.explain(second, 3)) == {}  # two branches of one device, which has it all


@given(st.integers(-(10**6), 10**6), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=6))
def test_the_parts_of_devices_add_up_to_the_amount(second, owed, branches):
    """Whatever is owed, however many ledgers each device has, also where nothing was used."""
    record = next(iter(second.work.proven.records(second.work.runs[-1])))
    own = {
        (f"dev_{name}", "epoch", f"head{place}"): [dataclasses.replace(record, units=units, repeated=0)]
        for place, (name, units) in enumerate(branches)
    }
    line = dataclasses.replace(second.work.done[-1][1].lines[0], owed_minor=owed)
    parts = parts_told(explaining._parts(line, own))
    devices = {device for device, _, _ in own}
    assert set(parts) == (devices if len(devices) > 1 else set())
    if parts:
        assert sum(map(Fraction, parts.values())) == Fraction(owed, 100)


def test_fees_and_commitments_are_told_too(second):
    told = {
        line.key.charge: "\n".join(explaining.explain(second, place))
        for place, line in enumerate(second.work.done[-1][1].lines, 1)
    }
    assert "2 active devices" in told["fleet"]
    assert "  2 × 2: 4" in told["fleet"]
    assert "calls, fee must come to 120 EUR" in told["least"]
    assert "  49 for the period: 49" in told["fee"]


def test_a_line_that_is_not_there_is_refused(second):
    for place in (0, 99):
        with pytest.raises(InputError) as error:
            explaining.explain(second, place)
        assert error.value.code == "malformed_members"
