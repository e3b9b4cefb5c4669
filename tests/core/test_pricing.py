"""Prices, against documented examples of other systems and against themselves."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit import pricing
from meterkit.errors import InputError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "prices.json").read_text(encoding="utf-8"))
RATED = [vector for vector in VECTORS if isinstance(vector["expect"], dict)]
REFUSED = [vector for vector in VECTORS if isinstance(vector["expect"], str)]

amounts = st.integers(0, 10**9).map(lambda n: f"{n // 1000}.{n % 1000:03d}")
bounds = st.lists(st.integers(1, 10**6), max_size=6, unique=True).map(sorted)
units_drawn = st.integers(0, 2 * 10**6)
shares = st.fractions(0, 1, max_denominator=31 * 86_400)


@st.composite
def tiered(draw: Any, model: str) -> dict[str, Any]:
    tiers = [
        {"up_to": bound, "unit_amount": draw(amounts), "flat_amount": draw(amounts)}
        for bound in [*draw(bounds), None]
    ]
    return {"model": model, "tiers": tiers}


prices = st.one_of(
    st.fixed_dictionaries({"model": st.just("flat"), "amount": amounts}),
    st.fixed_dictionaries({"model": st.just("per_unit"), "unit_amount": amounts}),
    st.fixed_dictionaries({"model": st.just("package"), "size": st.integers(1, 10**6), "amount": amounts}),
    tiered("volume"),
    tiered("graduated"),
)


def test_there_are_vectors_of_both_kinds():
    assert len(RATED) >= 20
    assert len(REFUSED) >= 40


@pytest.mark.parametrize("vector", RATED, ids=lambda vector: vector["name"])
def test_a_price_gives_the_documented_amounts(vector):
    price = pricing.read(vector["price"])
    share = Fraction(vector.get("share", "1"))
    found = {units: pricing.rate(price, int(units), share) for units in vector["expect"]}
    assert found == {units: Fraction(amount) for units, amount in vector["expect"].items()}


@pytest.mark.parametrize("vector", REFUSED, ids=lambda vector: vector["name"])
def test_a_price_that_cannot_be_charged_is_refused(vector):
    with pytest.raises(InputError) as refused:
        pricing.read(vector["price"])
    assert refused.value.code == vector["expect"]


@given(price=prices, units=units_drawn, share=shares)
def test_a_price_is_exact_and_never_a_float(price, units, share):
    amount = pricing.rate(pricing.read(price), units, share)
    assert type(amount) is Fraction
    assert amount >= 0
    assert (amount * 10**3 * share.denominator).denominator == 1


@given(price=tiered("graduated"), units=units_drawn)
def test_graduated_charges_each_unit_by_itself(price, units):
    read = pricing.read(price)
    step = pricing.rate(read, units + 1) - pricing.rate(read, units)
    place = next(i for i, t in enumerate(price["tiers"]) if t["up_to"] is None or units + 1 <= t["up_to"])
    tier = price["tiers"][place]
    entered = place > 0 and units == price["tiers"][place - 1]["up_to"]
    assert step == Fraction(tier["unit_amount"]) + (Fraction(tier["flat_amount"]) if entered else 0)


@given(price=tiered("volume"), units=units_drawn)
def test_volume_is_one_tier_for_all(price, units):
    tier = next(t for t in price["tiers"] if t["up_to"] is None or units <= t["up_to"])
    expected = Fraction(tier["unit_amount"]) * units + Fraction(tier["flat_amount"])
    assert pricing.rate(pricing.read(price), units) == expected


@given(price=prices, units=units_drawn, included=st.integers(0, 10**6))
def test_included_units_are_not_charged(price, units, included):
    with_included = pricing.read({**price, "included_units": included})
    assert pricing.rate(with_included, units + included) == pricing.rate(pricing.read(price), units)


@given(price=prices, units=units_drawn, share=shares, edges=st.tuples(amounts, amounts))
def test_an_amount_stays_between_minimum_and_maximum(price, units, share, edges):
    low, high = sorted(edges, key=Fraction)
    bounded = pricing.read({**price, "minimum_amount": low, "maximum_amount": high})
    plain = pricing.rate(pricing.read(price), units, share)
    assert pricing.rate(bounded, units, share) == max(min(plain, Fraction(high) * share), Fraction(low) * share)
    assert pricing.rate(bounded, units, share, minimum=False) == min(plain, Fraction(high) * share)


@pytest.mark.parametrize(("units", "share"), [(-1, Fraction(1)), (1, Fraction(-1)), (1, Fraction(3, 2))])
def test_units_and_share_out_of_range_are_the_programs_fault(units, share):
    with pytest.raises(ValueError, match="share"):
        pricing.rate(pricing.read({"model": "flat", "amount": "1"}), units, share)
