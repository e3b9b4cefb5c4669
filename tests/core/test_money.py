"""Currencies, the one rounding, and parts that add up."""

from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit import money
from meterkit.errors import InputError, ServiceError

names = st.text("abcdefgh", min_size=1, max_size=4)
weights = st.dictionaries(names, st.fractions(0, 1000), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("currency", "decimals"), [("JPY", 0), ("USD", 2), ("EUR", 2), ("KWD", 3), ("TND", 3), ("CLF", 4)]
)
def test_a_currency_has_its_minor_unit(currency, decimals):
    assert money.decimals_of(currency) == decimals


@pytest.mark.parametrize("currency", ["", "eur", "EURO", "XXX", "XAU", "DEM", "HRK", "ANG", "€", "\x00"])
def test_what_is_no_currency_is_refused(currency):
    with pytest.raises(ServiceError) as refused:
        money.decimals_of(currency)
    assert refused.value.code == "currency_wrong"


def test_the_table_is_whole():
    counts = {n: list(money.CURRENCIES.values()).count(n) for n in (0, 2, 3, 4)}
    assert counts == {0: 17, 2: 139, 3: 7, 4: 2}
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in money.CURRENCIES)


@pytest.mark.parametrize(
    ("value", "decimals", "minor"),
    [
        ("0.005", 2, 1),
        ("-0.005", 2, -1),
        ("0.00499999999999", 2, 0),
        ("0.333", 2, 33),
        ("0.5", 0, 1),
        ("-0.5", 0, -1),
        ("2.5", 0, 3),
        ("1.0005", 3, 1001),
    ],
)
def test_halves_go_away_from_zero(value, decimals, minor):
    assert money.round_half_away(Fraction(value), decimals) == minor


@given(st.decimals(-(10**12), 10**12, places=9), st.sampled_from([0, 2, 3, 4]))
def test_rounding_is_what_decimal_calls_half_up(value, decimals):
    with localcontext(prec=60):
        expected = int(value.scaleb(decimals).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    assert money.round_half_away(Fraction(value), decimals) == expected


@given(st.integers(-(10**15), 10**15), st.sampled_from(sorted(money.CURRENCIES)))
def test_minor_units_and_text_go_both_ways(minor, currency):
    text = money.to_text(minor, currency)
    assert Fraction(text) == money.from_minor(minor, currency)
    assert money.to_minor(Fraction(text), currency) == minor
    assert len(text.partition(".")[2]) == money.decimals_of(currency)


def test_small_amounts_keep_their_zeros():
    assert [money.to_text(m, "EUR") for m in (0, 5, -5, 123, -1230)] == [
        "0.00",
        "0.05",
        "-0.05",
        "1.23",
        "-12.30",
    ]
    assert money.to_text(-1230, "JPY") == "-1230"


@pytest.mark.parametrize(
    "text", ["", "-1", "1e2", " 1", "1 ", "1\n", "01", "1.", ".1", "٣", "0." + "0" * 12 + "1"]
)
def test_text_that_is_no_amount_is_refused(text):
    with pytest.raises(InputError):
        money.read_decimal(text)


def test_five_cents_over_three_are_two_two_one():
    assert money.split(5, {"c": 1, "a": 1, "b": 1}) == {"a": 2, "b": 2, "c": 1}
    assert money.split(-5, {"c": 1, "a": 1, "b": 1}) == {"a": -2, "b": -2, "c": -1}


def test_the_largest_remainder_gets_the_cent():
    assert money.split(10, {"a": Fraction(1, 3), "b": Fraction(2, 3)}) == {"a": 3, "b": 7}


def test_parts_without_weight_are_equal():
    assert money.split(3, {"b": 0, "a": 0}) == {"a": 2, "b": 1}


def test_nothing_can_be_split_over_nothing():
    with pytest.raises(ValueError, match="weights"):
        money.split(5, {})
    with pytest.raises(ValueError, match="negative"):
        money.split(5, {"a": -1})


@given(st.integers(-(10**9), 10**9), weights)
def test_parts_add_up_and_are_within_a_cent(total, given_weights):
    parts = money.split(total, given_weights)
    assert sum(parts.values()) == total
    whole = sum(given_weights.values())
    for name, weight in given_weights.items():
        exact = total * (weight / whole if whole else Fraction(1, len(given_weights)))
        assert abs(parts[name] - exact) < 1


@given(st.integers(-(10**6), 10**6), weights)
def test_parts_do_not_depend_on_the_order_they_are_named_in(total, given_weights):
    backwards = dict(reversed(given_weights.items()))
    assert money.split(total, given_weights) == money.split(total, backwards)
