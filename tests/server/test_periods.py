"""Where billing periods begin and end, in zones that make it hard."""

import datetime as dt
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licensing_server.licenses import periods
from licensing_server.licenses.periods import Schedule

UTC = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "America/Goose_Bay",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "Africa/Cairo",
]


def utc(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp())


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def schedule(**changed) -> Schedule:
    values = {
        "license_id": "lic_a",
        "zone": BERLIN,
        "anchor_at": utc("2025-12-31T23:00"),
        "starts_at": utc("2026-01-01T09:30"),
        "ends_at": None,
        "intervals": frozenset({"month"}),
    }
    return Schedule(**{**values, **changed})


@pytest.mark.parametrize(
    ("zone", "local_day", "expected"),
    [
        ("Europe/Berlin", "2026-01-01", "2025-12-31T23:00"),
        ("Europe/Berlin", "2026-07-01", "2026-06-30T22:00"),
        # clocks go from 23:59:59 to 01:00:00: the midnight does not exist
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00"),
        ("Asia/Beirut", "2024-03-31", "2024-03-30T22:00"),
        # clocks go from 00:59:59 back to 00:00:00: there are two midnights, the first counts
        ("America/Havana", "2025-11-02", "2025-11-02T04:00"),
        # clocks went from 23:30 to 00:30: the gap begins before midnight
        ("America/Toronto", "1919-03-31", "1919-03-31T04:30"),
        # the date line: 30 December 2011 was left out
        ("Pacific/Apia", "2011-12-29", "2011-12-29T10:00"),
        ("Pacific/Apia", "2011-12-30", "2011-12-30T10:00"),
        ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00"),
        ("Asia/Kathmandu", "2026-01-01", "2025-12-31T18:15"),
    ],
)
def test_a_local_day_begins_at_its_first_instant(zone, local_day, expected):
    assert periods.local_midnight(day(local_day), ZoneInfo(zone)) == utc(expected)


@pytest.mark.parametrize(("local_day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_days_have_23_24_or_25_hours(local_day, hours):
    begin = day(local_day)
    seconds = periods.bound(begin, "day", 1, BERLIN) - periods.bound(begin, "day", 0, BERLIN)
    assert seconds == hours * 3600


@pytest.mark.parametrize(
    ("anchor", "interval", "expected"),
    [
        ("2026-01-31", "month", ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]),
        ("2028-01-30", "month", ["2028-01-30", "2028-02-29", "2028-03-30", "2028-04-30", "2028-05-30"]),
        ("2024-02-29", "year", ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2026-12-29", "week", ["2026-12-29", "2027-01-05", "2027-01-12", "2027-01-19", "2027-01-26"]),
        ("2026-12-31", "day", ["2026-12-31", "2027-01-01", "2027-01-02", "2027-01-03", "2027-01-04"]),
    ],
)
def test_bounds_are_counted_from_the_anchor_and_clamped(anchor, interval, expected):
    found = [periods.bound(day(anchor), interval, nth, UTC) for nth in range(5)]
    assert found == [utc(text) for text in expected]


def test_bounds_before_the_anchor_count_backwards():
    assert periods.bound(day("2026-03-31"), "month", -1, UTC) == utc("2026-02-28")
    assert periods.bound(day("2024-02-29"), "year", -4, UTC) == utc("2020-02-29")
    assert periods.nth_at(day("2026-03-31"), "month", utc("2026-02-27T23:59:59"), UTC) == -2


@given(
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    interval=st.sampled_from(["day", "week", "month", "year"]),
    anchor=st.dates(dt.date(1990, 1, 1), dt.date(2035, 12, 31)),
    at=st.integers(utc("1991-01-01"), utc("2036-01-01")),
)
def test_every_instant_lies_in_exactly_one_period(zone, interval, anchor, at):
    nth = periods.nth_at(anchor, interval, at, zone)
    assert periods.bound(anchor, interval, nth, zone) <= at < periods.bound(anchor, interval, nth + 1, zone)


@given(zone=st.sampled_from(ZONES).map(ZoneInfo), at=st.integers(utc("1991-01-01"), utc("2036-01-01")))
def test_a_midnight_is_the_first_instant_of_its_day(zone, at):
    begin = periods.day_start(at, zone)
    assert begin <= at
    assert periods.day_start(begin, zone) == begin
    # the second before belongs to an earlier day, and nothing in between begins another one
    assert periods.day_start(begin - 1, zone) < begin
    assert periods.anchor_day(begin, zone) > periods.anchor_day(periods.day_start(begin - 1, zone), zone)


@given(
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    interval=st.sampled_from(["day", "week", "month", "year"]),
    start=st.integers(utc("2008-01-01"), utc("2030-01-01")),
    shift=st.integers(-40, 40),
)
def test_periods_join_without_gap_or_overlap(zone, interval, start, shift):
    anchor_at = periods.day_start(start + shift * 86_400, zone)
    plan = schedule(zone=zone, anchor_at=anchor_at, starts_at=start, intervals=frozenset({interval}))
    found = periods.opened(plan, interval, None, start + 400 * 86_400)
    assert found[0].start_at == periods.day_start(start, zone) <= start < found[0].end_at
    assert all(a.end_at == b.start_at and a.nth < b.nth for a, b in pairwise(found))
    assert all(b.whole_start_at <= b.start_at < b.end_at <= b.whole_end_at for b in found)
    if shift == 0 and zone.key != "Pacific/Apia":
        assert all((b.start_at, b.end_at) == (b.whole_start_at, b.whole_end_at) for b in found)


def test_a_day_that_a_zone_left_out_is_no_period():
    apia = ZoneInfo("Pacific/Apia")
    first = utc("2011-12-28T10:00")
    plan = schedule(zone=apia, anchor_at=first, starts_at=first, intervals=frozenset({"day"}))
    found = periods.opened(plan, "day", None, utc("2011-12-31T10:00"))
    days = [(b.start_at, b.end_at) for b in found]
    expected = ["2011-12-28T10:00", "2011-12-29T10:00", "2011-12-30T10:00", "2011-12-31T10:00"]
    assert [start for start, _ in days] == [utc(text) for text in expected]
    assert all(end - start == 86_400 for start, end in days)


def test_a_license_starts_at_its_first_local_midnight():
    first = periods.opened(schedule(), "month", None, utc("2026-01-15"))
    assert [(b.start_at, b.end_at) for b in first] == [(utc("2025-12-31T23:00"), utc("2026-01-31T23:00"))]


def test_an_anchor_that_is_not_the_first_day_makes_a_short_period():
    plan = schedule(starts_at=utc("2026-01-16T12:00"))
    first, second = periods.opened(plan, "month", None, utc("2026-02-01"))
    assert (first.start_at, first.end_at) == (utc("2026-01-15T23:00"), utc("2026-01-31T23:00"))
    assert (first.whole_start_at, first.whole_end_at) == (utc("2025-12-31T23:00"), utc("2026-01-31T23:00"))
    assert (second.start_at, second.nth) == (first.end_at, 1)


def test_a_changed_zone_acts_from_the_next_period_on():
    plan = schedule()
    (january,) = periods.opened(plan, "month", None, utc("2026-01-15"))
    moved = schedule(zone=ZoneInfo("America/New_York"))
    (february,) = periods.opened(moved, "month", january, utc("2026-02-15"))
    assert february.start_at == january.end_at
    assert february.end_at == utc("2026-03-01T05:00")
    assert (february.whole_start_at, february.whole_end_at) == (february.start_at, february.end_at)


def test_a_new_version_cuts_a_period_and_both_pieces_know_the_whole():
    at = utc("2026-01-20T11:00")
    found = periods.opened(schedule(changes_at=(at,)), "month", None, utc("2026-02-15"))
    assert [b.nth for b in found] == [0, 0, 1]
    assert found[0].end_at == found[1].start_at == at
    assert {(b.whole_start_at, b.whole_end_at) for b in found[:2]} == {
        (utc("2025-12-31T23:00"), utc("2026-01-31T23:00"))
    }


def test_after_a_cut_the_rest_of_the_period_follows():
    whole = periods.first_of(schedule(), "month")
    left, right = periods.cut(whole, utc("2026-01-20"))
    assert periods.following(left, schedule(), "month") == right
    with pytest.raises(ValueError, match="inside"):
        periods.cut(whole, whole.end_at)


def test_nothing_opens_after_the_end():
    plan = schedule(ends_at=utc("2026-02-10"))
    found = periods.opened(plan, "month", None, utc("2026-12-01"))
    assert [b.nth for b in found] == [0, 1]
