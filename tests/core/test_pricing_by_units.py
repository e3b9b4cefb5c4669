"""Prices, against a second reading of the contract that takes one unit after the other."""

from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meterkit import pricing

MONOTONE = ("flat", "per_unit", "package", "graduated")
UNSCALED = ("per_unit", "package", "volume", "graduated")

thousandths = st.integers(0, 9_999).map(lambda n: f"{n // 1000}.{n % 1000:03d}")
counts = st.integers(0, 60)
shares = st.fractions(0, 1, max_denominator=97)


@st.composite
def prices(draw: Any, models: tuple[str, ...] = (*MONOTONE, "volume"), *, bare: bool = False) -> dict[str, Any]:
    model = draw(st.sampled_from(models))
    price: dict[str, Any] = {"model": model}
    match model:
        case "flat":
            price["amount"] = draw(thousandths)
        case "per_unit":
            price["unit_amount"] = draw(thousandths)
        case "package":
            price |= {"size": draw(st.integers(1, 9)), "amount": draw(thousandths)}
        case _:
            bounds = sorted(draw(st.sets(st.integers(1, 40), max_size=4)))
            price["tiers"] = [
                {"up_to": up_to, "unit_amount": draw(thousandths), "flat_amount": draw(thousandths)}
                for up_to in [*bounds, None]
            ]
    return price if bare else {**price, **draw(modifiers())}


@st.composite
def modifiers(draw: Any) -> dict[str, Any]:
    low, high = sorted((draw(thousandths), draw(thousandths)), key=Fraction)
    every = {
        "included_units": draw(st.integers(0, 30)),
        "discount_percent": draw(st.integers(0, 100)),
        "minimum_amount": low,
        "maximum_amount": high,
    }
    return {name: every[name] for name in draw(st.sets(st.sampled_from(sorted(every))))}


def owed(price: dict[str, Any], units: int, share: Fraction) -> Fraction:
    """What the contract says, unit by unit, from its JSON: nothing of `meterkit.pricing` is used."""
    free = 0
    while free < price.get("included_units", 0) * share:
        free += 1
    left = [unit for unit in range(1, units + 1) if unit > free]
    amount = _of_model(price, len(left), share)
    amount -= amount * Fraction(price.get("discount_percent", 0)) / 100
    if "maximum_amount" in price and amount > Fraction(price["maximum_amount"]) * share:
        amount = Fraction(price["maximum_amount"]) * share
    if "minimum_amount" in price and amount < Fraction(price["minimum_amount"]) * share:
        amount = Fraction(price["minimum_amount"]) * share
    return amount


def _of_model(price: dict[str, Any], count: int, share: Fraction) -> Fraction:
    match price["model"]:
        case "flat":
            return Fraction(price["amount"]) * share
        case "per_unit":
            return sum((Fraction(price["unit_amount"]) for _ in range(count)), Fraction(0))
        case "package":
            return _in_packages(price, count)
        case "volume":
            tier = _tier(price, count)
            return sum((Fraction(tier["unit_amount"]) for _ in range(count)), Fraction(tier["flat_amount"]))
        case _:
            return _in_tiers(price, count)


def _in_packages(price: dict[str, Any], count: int) -> Fraction:
    total, room = Fraction(0), 0
    for _ in range(count):
        if room == 0:
            total += Fraction(price["amount"])
            room = price["size"]
        room -= 1
    return total


def _in_tiers(price: dict[str, Any], count: int) -> Fraction:
    entered = [_tier(price, 0)]
    total = Fraction(entered[0]["flat_amount"])
    for unit in range(1, count + 1):
        tier = _tier(price, unit)
        total += Fraction(tier["unit_amount"])
        if tier is not entered[-1]:
            entered.append(tier)
            total += Fraction(tier["flat_amount"])
    return total


def _tier(price: dict[str, Any], unit: int) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in price["tiers"] if t["up_to"] is None or unit <= t["up_to"])
    return found


def test_a_price_by_hand_comes_to_the_same():
    """≤2 @1+0.5, ≤4 @0.5+0.25, above @0.1+0; one included, 10 % off; six units leave five:
    2×1+0.5 + 2×0.5+0.25 + 1×0.1 = 3.85; less a tenth: 3.465. In half a period one unit is still included
    (half of one, rounded up); at most 6 × ½ = 3.
    """
    tiers = [
        {"up_to": 2, "unit_amount": "1", "flat_amount": "0.5"},
        {"up_to": 4, "unit_amount": "0.5", "flat_amount": "0.25"},
        {"up_to": None, "unit_amount": "0.1", "flat_amount": "0"},
    ]
    price = {"model": "graduated", "tiers": tiers, "included_units": 1, "discount_percent": 10}
    assert owed(price, 6, Fraction(1)) == pricing.rate(pricing.read(price), 6) == Fraction("3.465")
    capped = {**price, "maximum_amount": "6"}
    assert owed(capped, 6, Fraction(1, 2)) == pricing.rate(pricing.read(capped), 6, Fraction(1, 2)) == 3


@given(price=prices(), units=counts, share=shares)
def test_a_price_is_what_its_units_come_to_one_by_one(price, units, share):
    assert pricing.rate(pricing.read(price), units, share) == owed(price, units, share)


@given(price=prices(MONOTONE), units=counts, more=counts, share=shares)
def test_more_units_never_cost_less_but_by_volume(price, units, more, share):
    read = pricing.read(price)
    assert pricing.rate(read, units, share) <= pricing.rate(read, units + more, share)


def test_more_units_can_cost_less_by_volume():
    """100 units at 2 are 200; the 101st brings all of them to 1, which is 101."""
    tiers = [{"up_to": 100, "unit_amount": "2"}, {"up_to": None, "unit_amount": "1"}]
    read = pricing.read({"model": "volume", "tiers": tiers})
    assert (pricing.rate(read, 100), pricing.rate(read, 101)) == (200, 101)


@given(price=prices(UNSCALED, bare=True), units=counts, share=shares)
def test_bounds_flats_of_tiers_packages_and_unit_prices_are_not_scaled(price, units, share):
    read = pricing.read(price)
    assert pricing.rate(read, units, share) == pricing.rate(read, units)


@given(price=prices(("flat",)), units=counts, cut=shares)
def test_two_pieces_of_a_flat_period_come_to_the_whole(price, units, cut):
    """A flat amount with its minimum, maximum and discount: what is scaled, is scaled alike."""
    read = pricing.read(price)
    assert pricing.rate(read, units, cut) + pricing.rate(read, units, 1 - cut) == pricing.rate(read, units)


@given(
    price=prices(("per_unit", "package", "graduated"), bare=True),
    units=counts,
    included=st.integers(0, 30),
    pieces=st.tuples(shares, shares).map(sorted),
)
def test_a_longer_piece_includes_no_fewer_units(price, units, included, pieces):
    read = pricing.read({**price, "included_units": included})
    short, long = pieces
    assert pricing.rate(read, units, long) <= pricing.rate(read, units, short)
