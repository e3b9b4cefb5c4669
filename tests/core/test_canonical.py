"""One value, one form: canonical JSON out, strict JSON in, base64url and hashes."""

import hashlib
import json
import re
from enum import IntEnum
from typing import Any

import core_cases_text as texts
import pytest
from core_world import outcome
from hypothesis import given
from hypothesis import strategies as st

from meterkit import canonical, limits
from meterkit.canonical import digest, from_base64url, from_bytes, from_canonical, to_base64url, to_bytes
from meterkit.positions import Position

whole = st.integers(-limits.INTEGER_MAX, limits.INTEGER_MAX)
leaves = st.none() | st.booleans() | whole | st.text(max_size=20)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def depth(value: Any) -> int:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, inner), default=0)
    return 0


shallow = values.filter(lambda value: depth(value) <= limits.JSON_DEPTH_MAX)


# -- out


@given(shallow)
def test_what_is_written_reads_back_the_same_and_writes_the_same_again(value):
    written = to_bytes(value)
    assert from_canonical(written, bytes_max=10**6) == value
    assert to_bytes(from_bytes(written, bytes_max=10**6)) == written


@given(st.dictionaries(st.text(max_size=6), whole, max_size=8))
def test_members_are_in_the_order_of_their_utf_16_code_units(members):
    names = [name for name, _ in json.loads(to_bytes(members), object_pairs_hook=list)]
    assert names == sorted(members, key=lambda name: name.encode("utf-16-be"))


def test_beyond_the_basic_plane_utf_16_order_is_not_code_point_order():
    assert to_bytes({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


@given(st.text(max_size=30))
def test_text_is_escaped_as_rfc_8785_says_and_no_further(text):
    inner = to_bytes(text).decode("utf-8")[1:-1]
    plain = re.sub(r'\\u00[01][0-9a-f]|\\[btnfr"\\]', "", inner)
    assert not re.search(r'[\x00-\x1f"\\]', plain)
    assert json.loads(f'"{inner}"') == text


class Small(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, b"true"),
        (Small.ONE, b"1"),
        ((1, 2), b"[1,2]"),
        ({}, b"{}"),
        (-limits.INTEGER_MAX, b"-9007199254740991"),
    ],
)
def test_values_that_have_a_form(value, written):
    assert to_bytes(value) == written


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), 2**53, -(2**53), b"x", {1}, {1: 2}, {None: 1}, [object], "\ud800", {"\udc00": 1}],
    ids=ascii,
)
def test_values_that_have_none(value):
    assert outcome(to_bytes, value) == "malformed_json"


def test_a_record_is_no_list():
    assert outcome(to_bytes, [Position(epoch="ep", seq=1)]) == "malformed_json"


# -- in


@pytest.mark.parametrize("name", texts.REFUSED)
def test_what_is_not_strict_json_is_refused_in_bounded_work(name):
    """Among them: 100,000 levels, and a string without an end that holds 100,000 escaped quotes."""
    data = texts.REFUSED[name].encode("utf-8")
    assert outcome(from_bytes, data, bytes_max=10**6) == "malformed_json"


@pytest.mark.parametrize(
    "data",
    [
        b"[[" + b'"' + b'\\"' * 2_000_000 + b"[[[[[[[",
        b'"' * 3_999_999,
        b'"\\' * 2_000_000,
        b"{" * 4_000_000,
        b'["[",' * 800_000,
        b'{"a":' * 800_000,
        b"[" + b"1" * 4_000_000,
        b"[" + b"-" * 4_000_000,
        b'["\\ud800' + b"\\ud800" * 600_000,
        b" " * 4_000_000,
    ],
    ids=lambda data: data[:8].decode(),
)
def test_four_megabytes_made_to_be_slow_are_refused(data):
    """Each takes a moment; work that grew with the square of the size would take days."""
    assert outcome(from_bytes, data, bytes_max=limits.REPLY_BYTES_MAX) == "malformed_json"


@pytest.mark.parametrize("text", ['"' + '\\"' * 100_000, "[" * 100_000, '{"a":' * 100_000, "[" * 9 + "]" * 9])
def test_what_never_ends_or_nests_too_deeply_is_refused(text):
    assert outcome(canonical.from_bytes, text.encode(), bytes_max=10**6) == "malformed_json"


@given(st.text(alphabet='[]{}"\\,:a1 ', max_size=40))
def test_the_depth_check_and_the_parser_see_the_same_structure(text):
    """Whatever parses and is not too deep is taken; whatever parses and is too deep is not."""
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: [value for _, value in pairs])
    except (ValueError, RecursionError):
        assert outcome(from_bytes, text.encode(), bytes_max=1000) == "malformed_json"
        return
    if depth(value) > limits.JSON_DEPTH_MAX:
        assert outcome(from_bytes, text.encode(), bytes_max=1000) == "malformed_json"


@given(shallow)
def test_any_spelling_of_a_value_reads_as_that_value(value):
    for spelled in (json.dumps(value, indent=2), json.dumps(value, ensure_ascii=False, separators=(" , ", " : "))):
        assert from_bytes(spelled.encode("utf-8"), bytes_max=10**6) == value


@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_refusals(data):
    assert outcome(from_bytes, data, bytes_max=150) in {"ok", "too_large", "not_text", "malformed_json"}


@pytest.mark.parametrize(
    "before", ["", " ", "\t", "\n", "\r", "[", "[1,", "[1 ,\r\n", '{"a":', '{"a":\t', '{"a" :  ']
)
def test_numbers_are_judged_wherever_they_may_stand(before):
    after = {"[": "]", "{": "}"}.get(before[:1], "")
    for number in (0, -1, limits.INTEGER_MAX, -limits.INTEGER_MAX, 10**15):
        text = f"{before}{number}{after}"
        assert from_bytes(text.encode(), bytes_max=99) == json.loads(text)
    for number in ("-0", limits.INTEGER_MAX + 1, -limits.INTEGER_MAX - 1, 10**16, "9" * 40):
        assert outcome(from_bytes, f"{before}{number}{after}".encode(), bytes_max=99) == "malformed_json"


def test_size_is_judged_first():
    assert outcome(from_bytes, b"\xff" * 11, bytes_max=10) == "too_large"
    assert outcome(from_bytes, b"\xff" * 10, bytes_max=10) == "not_text"


@given(shallow, st.integers(0, 200), st.sampled_from([b" ", b"\n", b"\t"]))
def test_a_blank_anywhere_outside_text_makes_it_not_canonical(value, place, blank):
    written = to_bytes(value)
    spaced = written[:place] + blank + written[place:]
    verdict = outcome(from_canonical, spaced, bytes_max=10**6)
    assert verdict in {"ok", "not_canonical", "malformed_json", "not_text"}
    if verdict == "ok":  # the blank fell inside a text, and is part of the value
        assert from_canonical(spaced, bytes_max=10**6) != value


# -- base64url and hashes


@given(st.binary(max_size=100))
def test_base64url_goes_there_and_back(data):
    text = to_base64url(data)
    assert "=" not in text
    assert from_base64url(text) == data


@given(st.text(alphabet="ABQgw_-=+/ \n", max_size=9))
def test_base64url_has_one_spelling_for_each_value(text):
    verdict = outcome(from_base64url, text)
    assert verdict in {"ok", "malformed_envelope"}
    if verdict == "ok":
        assert to_base64url(from_base64url(text)) == text


@pytest.mark.parametrize(
    "text", ["A", "AB", "AAAAA", "AA==", "A A=", "AA\n", "+/==", "\u00c4A", "\ud800\ud800"], ids=ascii
)
def test_base64url_that_nobody_wrote(text):
    assert outcome(from_base64url, text) == "malformed_envelope"


def test_a_hash_names_its_purpose():
    assert digest("mk-record", bytes(32), b"{}") == hashlib.sha256(b"mk-record/1\n" + bytes(32) + b"{}").digest()
    assert digest("mk-record", b"x") != digest("mk-roots", b"x")
