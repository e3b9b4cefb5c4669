"""A range of one cell that two branches tell of: billed once, shown, and billed twice only by a named decision."""

import itertools

import pytest
import sqlalchemy as sa
from billing_fleet import FEBRUARY, MARCH, at
from exchanging import refused
from fleet import MODEL

from licensing_server.database import read
from licensing_server.licenses.store import license_units
from licensing_server.pages import Page
from licensing_server.reconciliation import service as reconciliation
from licensing_server.reconciliation.service import Asked
from licensing_server.usage import deciding
from licensing_server.usage import service as usage
from licensing_server.usage.deciding import Resolution
from licensing_server.usage.rebuild import rebuild
from meterkit.repeats import Dismissal, Link, Span, find, overlap

IMPLAUSIBLE = 10**6 * 900


@pytest.fixture
def biller(embedded_fleet):
    yield embedded_fleet
    assert rebuild(embedded_fleet.server, check=True)["items"] == []


@pytest.fixture
def copies(biller):
    """A device with 10 units reported, and its copy: both live on and count in one cell, from 10 on."""
    device = biller.device(biller.grant(token_units_max=100_000, pool_units=1_000_000))
    biller.use(device, 10, at("2026-01-05"))
    return device, device.live_copy()


def counted(biller):
    (item,) = usage.sum_usage(biller.server)["items"]
    assert item["units"] == pooled(biller, item["license"])
    return item["units"], item["repeated"], item["dismissed"]


def pooled(biller, license_id):
    with read(biller.server) as connection:
        chosen = sa.select(license_units.c.units).where(license_units.c.license == license_id)
        return connection.execute(chosen).scalar_one()


def billed(biller, cut_off):
    """Bill up to an instant and audit it; give what the bill counts, and what it shows beside."""
    biller.clock.now = max(biller.clock.now, cut_off)
    (draft,) = biller.run(cut_off=cut_off)
    final = biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()
    beside = [each["repeated"] for each in final["beside"] if "repeated" in each]
    return final["lines"][0]["quantity"], beside


def decide(biller, kind, outcome, branch=None):
    (found,) = [each for each in biller.exceptions(kind) if each["state"] != "resolved"]
    return deciding.resolve(biller.server, found["id"], Resolution(how="x", outcome=outcome, branch=branch))


def test_counts_that_both_tell_of_are_billed_once_and_what_only_one_tells_of_too(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))  # counts 10 to 50
    biller.use(copy, 30, at("2026-01-07"))  # 10 to 40: nothing new
    assert counted(biller) == (50, 30, 0)
    biller.use(copy, 25, at("2026-01-08"))  # 40 to 65: 50 to 65 is new
    assert counted(biller) == (65, 40, 0)
    biller.use(device, 5, at("2026-01-09"))  # 50 to 55, which the copy told of first
    assert counted(biller) == (65, 45, 0)
    first, second, third = biller.exceptions("repeated_range")
    assert [each["evidence"]["units"] for each in (first, second, third)] == [30, 10, 5]
    assert first["evidence"]["head"] == copy.at(4).head
    assert (first["evidence"]["first"], first["evidence"]["records"]) == (4, 1)
    assert billed(biller, FEBRUARY) == (65, [45])


def test_a_statement_shows_what_is_repeated_and_adds_up(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    biller.use(copy, 30, at("2026-01-07"), unsettled=2)
    page = reconciliation.page(biller.server, Asked(period="2026"), Page())
    assert page["holds"]
    (line,) = page["items"]
    (meter,) = line["meters"]
    assert (meter["reported"], meter["repeated"], meter["unsettled"]) == (50, 30, 2)
    found = page["summary"]["conservation"]
    assert (found["signed"], found["accepted"], found["repeated"]) == (82, 52, 30)


def test_a_named_decision_bills_both_from_the_next_run_on(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    biller.use(copy, 30, at("2026-01-07"))
    assert billed(biller, FEBRUARY) == (50, [30])
    decide(biller, "repeated_range", "release")
    assert counted(biller) == (80, 0, 0)
    assert billed(biller, MARCH) == (80, [])


def test_a_branch_is_dismissed_only_when_nothing_would_be_in_no_sum(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    biller.use(copy, 50, at("2026-01-07"))
    assert counted(biller) == (60, 40, 0)
    assert refused(decide, biller, "fork", "dismiss_branch", device.position.head) == "state_conflict"
    decide(biller, "repeated_range", "release")
    decide(biller, "fork", "dismiss_branch", device.position.head)
    assert counted(biller) == (60, 0, 40)
    assert billed(biller, FEBRUARY) == (60, [])


def test_the_branch_that_repeats_can_be_dismissed_and_takes_only_its_own_with_it(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    biller.use(copy, 50, at("2026-01-07"))
    decide(biller, "fork", "dismiss_branch", copy.position.head)
    assert counted(biller) == (50, 0, 50)
    assert billed(biller, FEBRUARY) == (50, [])


def test_what_was_dismissed_before_is_repeated_by_nobody(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    biller.use(copy, 1, at("2026-01-07"), cell=biller.device(biller.grant()).cell, count_from=0, count_to=1)
    decide(biller, "fork", "dismiss_branch", device.position.head)
    copy.count = 10
    biller.use(copy, 30, at("2026-01-08"))  # 10 to 40 again, and nobody else's now
    (item,) = [each for each in usage.sum_usage(biller.server)["items"] if each["records"]]
    assert (item["units"], item["repeated"], item["dismissed"]) == (41, 0, 40)
    assert billed(biller, FEBRUARY) == (41, [])


def test_what_the_rule_sets_aside_neither_repeats_nor_is_repeated(biller, copies):
    device, copy = copies
    biller.use(device, IMPLAUSIBLE + 1, at("2026-01-06"))
    biller.use(copy, 30, at("2026-01-07"))
    assert counted(biller) == (40, 0, 0)
    assert biller.exceptions("repeated_range") == []
    assert billed(biller, FEBRUARY) == (40, [])


def test_a_lost_cell_and_another_meter_repeat_nothing(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    biller.use(copy, 30, at("2026-01-07"), flags=("cell_lost",), count_to=10)
    copy.use(40, at=at("2026-01-08"), unit="item", count_from=10, count_to=50)
    copy.sync()
    units = {item["unit"]: (item["units"], item["repeated"]) for item in usage.sum_usage(biller.server)["items"]}
    assert units == {"call": (80, 0), "item": (40, 0)}


def test_both_branches_in_one_request_and_the_order_of_acceptance_decides(biller, copies):
    device, copy = copies
    for each, units in ((device, 40), (copy, 60)):
        each.use(units, at=at("2026-01-06"))
    biller.clock.now = at("2026-01-07")
    biller.exchange(copy.batch(), device.batch())
    assert counted(biller) == (70, 40, 0)
    (found,) = biller.exceptions("repeated_range")
    assert found["evidence"]["head"] == device.position.head


def test_a_fork_of_a_fork_repeats_what_either_told_of(biller, copies):
    device, copy = copies
    third = device.live_copy()
    biller.use(device, 20, at("2026-01-06"))  # 10 to 30
    copy.count = 25
    biller.use(copy, 15, at("2026-01-07"))  # 25 to 40: 5 repeated
    fourth = copy.live_copy()
    biller.use(third, 40, at("2026-01-08"))  # 10 to 50: 10 to 40 told of
    biller.use(copy, 5, at("2026-01-09"))  # 40 to 45, told of by the third
    biller.use(fourth, 20, at("2026-01-10"))  # 40 to 60: 50 to 60 is new
    assert counted(biller) == (60, 5 + 30 + 5 + 10, 0)
    assert billed(biller, FEBRUARY) == (60, [50])


def test_what_one_branch_tells_of_twice_is_its_own_word_and_counts_twice(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    copy.count = 1_000
    biller.use(copy, 1, at("2026-01-07"))
    biller.use(device, 40, at("2026-01-08"), count_from=10, count_to=50)
    assert counted(biller) == (91, 0, 0)
    assert billed(biller, FEBRUARY) == (91, [])


def test_an_audit_finds_out_a_vendor_that_bills_both(biller, copies):
    device, copy = copies
    biller.use(device, 40, at("2026-01-06"))
    biller.use(copy, 30, at("2026-01-07"))
    biller.forget_repeats()
    biller.clock.now = FEBRUARY
    (draft,) = biller.run(cut_off=FEBRUARY)
    biller.finalize(draft["id"])
    whats = [each.what for each in biller.audit(draft["id"]).findings]
    assert "quantity: it says 80, the evidence gives 50" in whats
    assert [each["table"] for each in rebuild(biller.server)["items"]] == ["usage_records", "usage_rollups"]
    assert counted(biller) == (50, 30, 0)


SPAN = Span(cell="cel_x", license_id="lic_x", meter=(MODEL, "call"), first=10, last=20)


@pytest.mark.parametrize(
    ("others", "units"),
    [
        ([], 0),
        ([(0, 10), (20, 30)], 0),
        ([(0, 11)], 1),
        ([(19, 40)], 1),
        ([(0, 100)], 10),
        ([(12, 14), (13, 15), (13, 14)], 3),
        ([(10, 12), (18, 20), (5, 11)], 4),
    ],
)
def test_an_overlap_counts_each_count_once_in_any_order(others, units):
    for order in itertools.permutations(SPAN._replace(first=first, last=last) for first, last in others):
        assert overlap(SPAN, order) == units


def link(name, prev, seq, acceptance, counts=None):
    span = counts and SPAN._replace(first=counts[0], last=counts[1])
    return Link(name=("ep", name), prev=prev, seq=seq, acceptance=acceptance, span=span)


def test_one_chain_repeats_nothing_of_itself_and_two_do_by_acceptance():
    trunk = [link("a", "0", 1, 1), link("b", "a", 2, 1, (0, 9))]
    assert find([*trunk, link("c", "b", 3, 2, (0, 9))], (), ()) == {}
    parted = [*trunk, link("c", "b", 3, 2, (0, 9)), link("d", "b", 3, 4, (0, 9)), link("e", "b", 3, 3, (4, 5))]
    found = {name: each.units for (_, name), each in find(parted, (), ()).items()}
    assert found == {"d": 9, "e": 1}
    assert find(parted, {("ep", "c")}, ())["ep", "d"].units == 1
    out = [Dismissal(acceptance=3, names=frozenset({("ep", "c")}))]
    assert {name: each.units for (_, name), each in find(parted, (), out).items()} == {"d": 1, "e": 1}


def test_what_follows_records_that_are_gone_is_no_other_branch():
    links = [link("a", "0", 1, 1, (0, 9)), link("x", "gone", 7, 2, (0, 9))]
    assert find(links, (), ()) == {}
