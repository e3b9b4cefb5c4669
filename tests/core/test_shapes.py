"""Shapes: exactly these members, each within its bounds, and an error that says where."""

import re
from typing import Any

import pytest
from core_world import DEVICE, EPOCH, ISSUER, LICENSE, TOKEN, model_claims, outcome
from hypothesis import given
from hypothesis import strategies as st

from meterkit import ids, limits, shapes
from meterkit.errors import InputError
from meterkit.licenses import Axis, ModelTerms, Policy, model_shape, token_limit
from meterkit.positions import ZERO, Position


def fits(shape: shapes.Shape, value: Any) -> bool:
    """True if the shape returns the very value; False if it refuses it, as shapes do."""
    verdict = outcome(shape, value, "here")
    assert verdict in {"ok", "malformed_members"}
    return verdict == "ok" and shape(value, "here") is value


@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        (shapes.integer(1, 3), [1, 3], [0, 4, True, 1.0, "1", None, [1]]),
        (shapes.integer(), [0, limits.INTEGER_MAX], [-1, limits.INTEGER_MAX + 1]),
        (shapes.boolean, [True, False], [0, 1, "true", None]),
        (shapes.text(3), ["a", "abc", "\u00e4\u00f6\u00fc"], ["", "abcd", 1, None, b"a", "a\x00", "\ud800"]),
        (shapes.text(3, least=0), [""], ["abcd"]),
        (shapes.one_of(1, "a"), [1, "a"], [True, 1.0, "1", 2, None, [], {}]),
        (shapes.optional(shapes.integer()), [None, 5], ["", False, -1]),
        (shapes.listed(shapes.integer(), 2), [[], [1], [1, 1]], [[1, 2, 3], (1,), "12", {}, [True], None]),
        (shapes.listed(shapes.NAME, 3, least=1, unique=True), [["a"], ["a", "b"]], [[], ["a", "a"]]),
        (shapes.mapping(shapes.integer(1, 9), 1), [{}, {"a": 1}], [{"a": 0}, {"a b": 1}, [], {"a": 1, "b": 1}]),
        (shapes.NAME, ["a", "A.b_c-9", "x" * 64], ["", ".a", "-a", "a/b", "a b", "x" * 65, "a\n", "\u00e4", 1]),
        (shapes.HASH, ["ab" * 32], ["AB" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + "\n", 0, None]),
        (shapes.EPOCH, [EPOCH], [LICENSE, EPOCH.upper(), EPOCH + "a", EPOCH[:-1], EPOCH[:-1] + "1", "ep_"]),
        (shapes.LICENSE, [LICENSE], [EPOCH, f" {LICENSE}"]),
        (shapes.TOKEN, [TOKEN], [LICENSE, None]),
        (shapes.DEVICE, [DEVICE], [DEVICE[4:], DEVICE + "A", DEVICE[:-1] + "B", "dev_" + "A" * 42]),
        (shapes.KEY, ["A" * 43], ["A" * 42, "A" * 44, "A" * 42 + "B", "A" * 42 + "=", "+" + "A" * 42]),
        (shapes.TIME, [0, limits.TIME_MAX_S], [-1, limits.TIME_MAX_S + 1, 1.5, "2027-01-15"]),
        (shapes.JWS, ["a.b." + "c" * 86], ["a.b", ".b." + "c" * 86, "a.b." + "c" * 85, "a.b.c." + "c" * 86]),
        (shapes.BOOT, ["6a1f36d2-9d3e-4a3c-8d2f-0c5a7a1b2c3d"], ["", "x" * 36, "6A1F36D2" + "-" * 28]),
        (shapes.VERSION_1, [1], [0, 2, True, "1", 1.0]),
    ],
)  # fmt: skip
def test_what_fits_and_what_does_not(shape, good, bad):
    for value in good:
        assert fits(shape, value), value
    for value in bad:
        assert not fits(shape, value), value


def test_an_object_has_exactly_its_members():
    shape = shapes.Members(a=shapes.integer(), b=shapes.optional(shapes.NAME))
    assert fits(shape, {"a": 1, "b": None})
    for value in ({"a": 1}, {"a": 1, "b": None, "c": 1}, {"a": "1", "b": None}, {}, [], None, "a"):
        assert not fits(shape, value)


def test_the_error_says_where_and_shows_no_more_than_a_little_of_what_was_sent():
    shape = shapes.Members(a=shapes.Members(b=shapes.listed(shapes.integer(), 9)))
    for value, where in (
        ({"a": {"b": [1, 2, "x"]}}, "top.a.b[2]"),
        ({"a": {"b": 1}}, "top.a.b"),
        ({"a": {}}, "top.a"),
    ):
        with pytest.raises(InputError) as refused:
            shape(value, "top")
        assert refused.value.detail.startswith(f"{where}: ")
    with pytest.raises(InputError) as refused:
        shape({"a": {"b": []}, "\n\x1b[31m" + "x" * 10_000: 1}, "top")
    assert len(refused.value.detail) < 200
    assert refused.value.detail.isprintable()


def test_a_choice_is_made_by_the_value_itself():
    shape = shapes.Choice(
        "kind", a=shapes.Members(kind=shapes.one_of("a")), b=shapes.Members(kind=shapes.one_of("b"))
    )
    assert fits(shape, {"kind": "a"})
    for value in ({"kind": "c"}, {"kind": ["a"]}, {"kind": None}, {}, [], "a", {"kind": "a", "more": 1}):
        assert not fits(shape, value)


def test_a_position_has_an_all_zero_head_at_seq_0_and_only_there():
    assert fits(shapes.POSITION, {"epoch": EPOCH, "seq": 0, "head": ZERO})
    assert fits(shapes.POSITION, {"epoch": EPOCH, "seq": 1, "head": "ab" * 32})
    assert not fits(shapes.POSITION, {"epoch": EPOCH, "seq": 0, "head": "ab" * 32})
    assert not fits(shapes.POSITION, {"epoch": EPOCH, "seq": 1, "head": ZERO})
    position = Position(epoch=EPOCH, seq=3, head="ab" * 32)
    assert Position.from_claims(position.to_claims()) == position


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(anything)
def test_no_shape_raises_anything_but_its_refusal(value):
    for shape in (
        shapes.integer(),
        shapes.boolean,
        shapes.text(),
        shapes.one_of(1, "a"),
        shapes.optional(shapes.NAME),
        shapes.listed(shapes.NAME, 2, unique=True),
        shapes.mapping(shapes.NAME, 2),
        shapes.POSITION,
        shapes.Choice("kind", a=shapes.Members(kind=shapes.one_of("a"))),
        model_shape,
    ):
        assert outcome(shape, value, "here") in {"ok", "malformed_members"}


@given(st.binary(min_size=16, max_size=16))
def test_ids_are_made_of_128_bits_and_fit_their_shape(random):
    made = ids.make("lic", random)
    assert re.fullmatch(r"lic_[a-z2-7]{26}", made)
    assert fits(shapes.LICENSE, made)


@pytest.mark.parametrize("random", [b"", bytes(15), bytes(17)], ids=len)
def test_ids_are_made_of_no_fewer_and_no_more(random):
    with pytest.raises(ValueError, match="16 random bytes"):
        ids.make("lic", random)


# -- what a license grants


@pytest.mark.parametrize(
    "claims",
    [
        model_claims(),
        model_claims(unit="item", axis={"input": "frames", "dim": 1}, limit=None),
        {"name": "m", "versions": "~=1.4, !=1.4.2", "unit": "call", "axis": None, "limit": 0},
    ],
)
def test_terms_are_written_as_they_were_read(claims):
    assert fits(model_shape, claims)
    terms = ModelTerms.from_claims(claims)
    assert terms.to_claims() == claims
    assert terms.meter == (claims["name"], claims["unit"])
    assert terms.axis == (Axis(**claims["axis"]) if claims["axis"] else None)


def test_a_policy_is_written_as_it_was_read():
    claims = {"expiry": "flag", "limit": "deny", "clock": "flag"}
    assert Policy.from_claims(claims).to_claims() == claims
    assert Policy() == Policy(expiry="deny", limit="deny", clock="deny")


@pytest.mark.parametrize(
    ("token_units_max", "pool_left", "limit"),
    [(None, None, None), (5, None, 5), (None, 7, 7), (5, 7, 5), (7, 5, 5), (5, 0, 0), (5, -3, 0), (0, None, 0)],
)
def test_a_token_allows_the_smaller_of_its_maximum_and_what_is_left(token_units_max, pool_left, limit):
    assert token_limit(token_units_max, pool_left) == limit


def test_an_issuer_may_be_any_text_of_256_characters():
    assert fits(shapes.text(), ISSUER)
    assert fits(shapes.text(), "\U0001f600" * 256)
    assert not fits(shapes.text(), "a" * 257)
