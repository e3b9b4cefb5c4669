"""Reading a record by its pattern, and the long way: to the same end, for every run of bytes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit import limits, usage
from meterkit.canonical import from_canonical, to_bytes
from meterkit.errors import InputError
from meterkit.usage import read_record, record_shape

CLAIMS = {
    "v": 1,
    "kind": "usage",
    "seq": 7,
    "time": 1_767_225_600,
    "boot": "0f9e4c1a-4a54-4f10-9c4b-0a35b6f4e1d2",
    "window": 1_963_584,
    "provisional": False,
    "license": "lic_" + "a" * 26,
    "token": "tok_" + "b" * 26,
    "model": "detector",
    "digest": "0" * 64,
    "unit": "call",
    "units": 3,
    "unsettled": 0,
    "flags": [],
    "cell": "cel_" + "c" * 26,
    "from": 2,
    "to": 5,
}
ODD = [-1, 0, 1, 10**15 - 1, 10**15, limits.INTEGER_MAX, limits.INTEGER_MAX + 1, True, None, "", "call", 1.5]
FLAGS = [[], *([flag] for flag in usage.FLAGS), ["grace", "clock"], ["grace", "grace"], ["odd"], ["cell_lost", ""]]
TEXTS = ["item", "lic_" + "A" * 26, "-x", "x" * 64, "x" * 65, "é", 'a"b', "a\nb", "\x00", "0" * 64, "F" * 64]


def the_long_way(body):
    claims = from_canonical(body, bytes_max=limits.RECORD_BYTES_MAX)
    record_shape(claims, "record")
    return claims


def outcome(read, body):
    try:
        return read(body)
    except InputError as refusal:
        return refusal.code, refusal.detail


def same(body):
    return outcome(lambda body: read_record(body, "record"), body) == outcome(the_long_way, body)


def is_usual(body):
    found = usage._usual_usage()(body)
    return found is not None and usage._usual_claims(found.groups()) is not None


@pytest.mark.parametrize("flags", [[], ["grace"], ["cell_lost"]])
def test_what_devices_write_is_read_by_the_pattern(flags):
    body = to_bytes({**CLAIMS, "flags": flags})
    assert is_usual(body)
    assert read_record(body, "record") == {**CLAIMS, "flags": flags}


@given(st.dictionaries(st.sampled_from(sorted(CLAIMS)), st.sampled_from([*ODD, *TEXTS, *FLAGS]), max_size=3))
def test_a_record_with_odd_members(changed):
    try:
        body = to_bytes({**CLAIMS, **changed})
    except InputError:
        return
    assert same(body)


@given(
    st.integers(0, 600), st.binary(max_size=3), st.integers(0, 3), st.sampled_from([[], ["grace"], ["over_limit"]])
)
def test_a_record_whose_bytes_were_changed(at, put, cut, flags):
    body = to_bytes({**CLAIMS, "flags": flags})
    assert same(body[:at] + put + body[at + cut :])


@given(st.sampled_from([b" ", b"\n", b"\x00", b"0", b"\xff", b"-", b'"', b"{", b"}"]), st.integers(0, 600))
def test_a_record_with_a_byte_too_many(put, at):
    body = to_bytes(CLAIMS)
    assert same(body[:at] + put + body[at:])


@pytest.mark.parametrize("name", sorted(name for name, value in CLAIMS.items() if type(value) is int))
@pytest.mark.parametrize("digits", ["00", "01", "-0", "1e3", "1.0", "9" * 15, "9" * 16, "9" * 400])
def test_a_number_written_oddly(name, digits):
    body = re.sub(rb'"%s":\d+' % name.encode(), b'"%s":%s' % (name.encode(), digits.encode()), to_bytes(CLAIMS))
    assert body != to_bytes(CLAIMS)
    assert same(body)


@pytest.mark.parametrize("sums", [(2, 5, 4), (5, 2, 3), (2, 5, 3), (0, 0, 0)])
@pytest.mark.parametrize("flags", [[], ["cell_lost"], ["grace"]])
def test_units_that_its_counts_do_not_prove(sums, flags):
    count_from, count_to, units = sums
    assert same(to_bytes({**CLAIMS, "from": count_from, "to": count_to, "units": units, "flags": flags}))


def test_the_last_instant_and_the_last_window():
    for time in (limits.TIME_MAX_S, limits.TIME_MAX_S + 1):
        for window in (limits.CELL_WINDOW_MAX, limits.CELL_WINDOW_MAX + 1):
            assert same(to_bytes({**CLAIMS, "time": time, "window": window}))
    assert same(to_bytes({**CLAIMS, "seq": 0}))
