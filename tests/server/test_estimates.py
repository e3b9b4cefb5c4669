"""Months that close with what is missing estimated, billed on a real server and audited offline (BILLING §4)."""

import csv
import io

import pytest
import sqlalchemy as sa
from billing_fleet import DAY, FEBRUARY, MARCH, at
from exposed_fleet import compare_exposures, runs_through
from fleet import MODEL
from lively_fleet import lively

from licensing_server.billing import chains, conserving, documents, outputs, service, sums
from licensing_server.billing import terms as customer_terms
from licensing_server.customers import service as customers
from licensing_server.database import write
from licensing_server.devices import decisions
from licensing_server.devices.store import devices as device_table
from licensing_server.licenses import service as licenses
from licensing_server.pages import Page
from licensing_server.reconciliation import service as reconciliation
from meterkit import estimates
from meterkit.attribution import Calendar, Run
from meterkit.canonical import to_bytes
from meterkit.licenses import Policy

JANUARY_5 = at("2026-01-05")
CLOSE = {"policy": "estimate", "percent": 50, "days": 20}


def lines(final: dict | None) -> list[tuple]:
    members = ("kind", "service_start_at", "quantity", "amount")
    return [] if final is None else [tuple(each[name] for name in members) for each in final["lines"]]


@pytest.fixture
def month(biller):
    """January is billed; in February one of two devices is silent from the 8th on, after 310 units in January."""
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1"), close=CLOSE), devices_max=3)
    here, away = (biller.device(license_id) for _ in range(2))
    for device, units in ((here, 31), (away, 310)):
        biller.report(device, units, JANUARY_5, FEBRUARY + 3_600)
    assert lines(biller.bill_at(FEBRUARY + DAY)) == [("measured", at("2026-01-01"), 341, "341.00")]
    biller.report(away, 70, at("2026-02-05"), at("2026-02-08"))
    biller.report(here, 20, at("2026-02-20"), MARCH + 3_600)
    return license_id, here, away


def test_a_missing_device_is_estimated_and_when_it_reports_the_estimate_is_taken_back(biller, month):
    """310 units in 31 days, and 21 days of February not covered: 210. Then it comes with 150 for these days."""
    _, _, away = month
    closing = biller.bill_at(MARCH + DAY)
    assert lines(closing) == [
        ("estimated", FEBRUARY, 210, "210.00"),
        ("measured", FEBRUARY, 90, "90.00"),
    ]
    (told,) = closing["lines"][0]["estimates"]
    assert (told["device"], told["quantity"], told["seconds"]) == (away.id, 210, 21 * DAY)
    assert (told["basis_quantity"], told["basis_start_at"], told["basis_end_at"]) == (
        310,
        at("2026-01-01"),
        FEBRUARY,
    )
    assert biller.bill_at(MARCH + 2 * DAY) is None
    biller.report(away, 150, at("2026-02-20"), MARCH + 3 * DAY)
    late = biller.bill_at(MARCH + 4 * DAY)
    assert lines(late) == [("estimated", FEBRUARY, 0, "-210.00"), ("measured", FEBRUARY, 240, "150.00")]
    assert [each["lowers"] for each in late["lines"] if "lowers" in each] == [closing["number"]]
    assert (late["kind"], late["total"]) == ("credit_note", "-60.00")


@pytest.mark.usefixtures("month")
def test_every_way_out_says_that_a_line_is_estimated(biller):
    final = biller.bill_at(MARCH + DAY)
    assert (final["lines"][0]["kind"], final["lines"][0]["on_top_of"]) == ("estimated", 90)
    page = outputs.as_html(biller.server, final["id"]).data.decode()
    assert "ESTIMATED · period" in page
    assert "calls: detector, per call, estimated" in page
    rows = list(csv.DictReader(io.StringIO(outputs.as_csv(biller.server, final["id"]).data.decode())))
    told = {row["x_Kind"]: (row["ChargeDescription"], row["PricingQuantity"], row["BilledCost"]) for row in rows}
    assert told["estimated"] == ("calls: detector, per call, estimated", "210", "210.00")
    assert told["measured"] == ("calls: detector, per call", "90", "90.00")
    words = "\n".join(service.explain(biller.server, final["id"], 1))
    assert "210 ESTIMATED units of detector, per call: no device has signed them" in words


@pytest.mark.parametrize(("policy", "sent_at"), [("estimate", MARCH + 60), ("coverage", FEBRUARY + 7_200)])
def test_nothing_is_estimated_of_who_reported_nor_where_a_contract_only_waits(biller, policy, sent_at):
    plan = biller.plan_of(biller.calls("1"), close={**CLOSE, "policy": policy})
    device = biller.device(biller.grant(plan=plan))
    biller.report(device, 310, JANUARY_5, FEBRUARY + 3_600)
    biller.clock.now = sent_at
    device.sync()
    assert lines(biller.bill_at(MARCH + 20 * DAY)) == [("measured", at("2026-01-01"), 310, "310.00")]


def test_of_a_lost_device_nothing_is_estimated_and_when_it_is_back_its_usage_is_late(biller, month):
    _, _, away = month
    assert lines(biller.bill_at(MARCH + DAY))[0] == ("estimated", FEBRUARY, 210, "210.00")
    decisions.declare(biller.server, away.id, state="lost", why="stolen", who="command")
    assert lines(biller.bill_at(MARCH + 2 * DAY)) == [("estimated", FEBRUARY, 0, "-210.00")]
    (written_off,) = decisions.page_write_offs(biller.server, away.id, Page())["items"]
    assert written_off["reversed_at"] is None
    biller.report(away, 150, at("2026-02-20"), MARCH + 3 * DAY)
    (written_off,) = decisions.page_write_offs(biller.server, away.id, Page())["items"]
    assert written_off["reversed_at"] == MARCH + 3 * DAY
    final = biller.bill_at(MARCH + 4 * DAY)
    assert lines(final) == [("measured", FEBRUARY, 240, "150.00")]
    assert final["lines"][0]["late"]


def test_an_estimate_is_at_most_what_its_tokens_still_allow(biller):
    """100 a token: it may go on for 100 beyond what it had reported, and 270 would be missing of February."""
    plan = biller.plan_of(biller.calls("1"), close=CLOSE)
    device = biller.device(biller.grant(plan=plan, token_units_max=100))
    for day in range(3, 6):
        biller.report(device, 100, at(f"2026-01-0{day}"), at(f"2026-01-0{day}T12:00"))
        device.install()
    biller.report(device, 10, at("2026-01-20"), FEBRUARY + 3_600)
    assert lines(biller.bill_at(MARCH + 20 * DAY)) == [
        ("measured", at("2026-01-01"), 310, "310.00"),
        ("estimated", FEBRUARY, 100, "100.00"),
    ]


def test_what_another_license_allows_a_device_bounds_no_estimate_of_the_first(biller):
    """It has used 90 of 100 when it moves, and is not heard of any more: under the first license 10 are left."""
    plan = biller.plan_of(biller.calls("1"), close=CLOSE)
    device = biller.device(biller.grant(plan=plan, token_units_max=100, token_life_s=60 * DAY))
    licenses.change_state(biller.server, device.token.license_id, "suspended")  # it gets receipts only
    biller.report(device, 90, JANUARY_5, FEBRUARY + 3_600)
    device.activate(biller.code(biller.grant(plan=plan, token_units_max=700)))
    assert lines(biller.bill_at(MARCH + 20 * DAY)) == [
        ("measured", at("2026-01-01"), 90, "90.00"),
        ("estimated", FEBRUARY, 10, "10.00"),
    ]


def test_estimated_units_are_in_no_place_where_accepted_ones_are(biller, month):
    """431 were accepted, and are invoiced; the 210 estimated ones are on the invoice, and in no statement."""
    license_id, *_ = month
    assert lines(biller.bill_at(MARCH + DAY))[0] == ("estimated", FEBRUARY, 210, "210.00")
    places = conserving.show(biller.server)
    (place,) = places["items"]
    assert places["holds"]
    assert (place["license"], place["accepted"], place["invoiced"], place["pending"]) == (license_id, 431, 431, 0)
    stated = reconciliation.page(biller.server, reconciliation.Asked(), Page())
    assert stated["holds"]
    assert [each["reported"] for each in stated["summary"]["totals"]] == [431]


def bodies(biller, run: Run) -> list[bytes]:
    with write(biller.server) as connection:
        customer = customers.find(connection, biller.customer)
        return [to_bytes(each.body) for each in documents.compute(connection, customer, run)]


def test_a_run_asked_again_gives_the_same_bytes_whatever_came_since(biller, month):
    """A report, a new token, a write-off and a declaration are known to the next run only."""
    license_id, here, away = month
    biller.clock.now = MARCH + DAY
    (draft,) = biller.run(cut_off=MARCH + DAY)
    run = Run(**draft["run"])
    before = bodies(biller, run)
    assert b'"kind":"estimated"' in before[0]
    away.use(150, at=at("2026-02-20"))
    biller.clock.now = MARCH + 2 * DAY
    away.activate(biller.code(license_id))  # a token, and no report
    assert bodies(biller, run) == before
    (epoch,) = {each["epoch"] for each in decisions.show_exposures(biller.server, away.id)["items"]}
    decisions.write_off(biller.server, away.id, epoch=epoch, why="a figure", who="command")
    assert bodies(biller, run) == before
    decisions.declare(biller.server, away.id, state="lost", why="gone", who="command")
    assert bodies(biller, run) == before
    for device in (here, away):
        biller.report(device, 9, at("2026-01-30"), MARCH + 3 * DAY)
        device.install()
        device.sync()
    assert bodies(biller, run) == before
    final = biller.finalize(draft["id"])
    uncited = [{name: each for name, each in line.items() if name != "records"} for line in final["lines"]]
    assert uncited == draft["lines"]
    assert biller.audit(draft["id"]).findings == ()


# -- the database against the reference


@pytest.mark.parametrize("seed", range(4))
def test_the_database_knows_exposure_as_the_reference_does(biller, seed):
    """Of a fleet that forks, resets, moves, lies and activates ahead of its reports, at many a run."""
    lively(biller, seed, steps=80)
    steady = biller.device(biller.grant(token_units_max=50))
    biller.report(steady, 7, biller.clock.now, biller.clock.now + DAY)
    steady.install()
    flagged = biller.device(biller.grant(policy=Policy(limit="flag")))
    biller.report(flagged, 9, biller.clock.now, biller.clock.now + DAY)
    licenses.change_state(biller.server, steady.token.license_id, "suspended")
    biller.report(steady, 9, biller.clock.now, biller.clock.now + DAY)
    licenses.change_state(biller.server, steady.token.license_id, "active")
    biller.clock.advance(DAY)
    steady.activate(biller.code(steady.token.license_id))  # 50 more, anchored at what is accepted: no run knows it
    told = compare_exposures(biller, 9)
    seen = {most for each in told for most in each.values()}
    found = told[-1]
    assert {None, 41, 50} <= seen
    assert found[steady.token.license_id, steady.id, (MODEL, "call")] == 41
    assert found[flagged.token.license_id, flagged.id, (MODEL, "call")] is None


@pytest.mark.parametrize("seed", range(2))
def test_the_database_adds_up_what_a_device_used_as_the_reference_does(biller, seed):
    lively(biller, seed, steps=80)
    with biller._undone() as connection:
        named = sorted(connection.execute(sa.select(device_table.c.id)).scalars())
        customer = customers.find(connection, biller.customer)
        for run in runs_through(connection, 5):
            terms = customer_terms.read(connection, customer.id, customer.zone, run)
            records = [record for device in named for record in chains.records(connection, device, run)]
            expected = {}
            for each in terms:
                own = [record for record in records if record.license_id == each.license_id]
                period = each.periods[0]
                gaps = [
                    estimates.Gap(device=device, period=period, basis=period, seconds=1, meters=())
                    for device in named
                ]
                calendar = Calendar(each.periods, each.ends_at)
                for name, units in estimates.count(gaps, calendar, run, own).items():
                    expected[each.license_id, *name] = units
            for some in (named, named[:2]):
                found = sums.of_devices(connection, run, terms, some)
                assert {name: units for name, units in found.items() if units} == {
                    name: units for name, units in expected.items() if units and name[1] in some
                }
    assert any(expected.values())


def asked(biller, cut_off: int) -> list[str]:
    """The statements that working out a run's document takes."""
    (draft,) = biller.run(cut_off=cut_off)
    found: list[str] = []

    def note(_connection, _cursor, statement, *_) -> None:
        found.append(statement)

    sa.event.listen(biller.server.engine, "before_cursor_execute", note)
    assert bodies(biller, Run(**draft["run"]))
    sa.event.remove(biller.server.engine, "before_cursor_execute", note)
    return found


def test_where_nobody_is_missing_nothing_is_asked(biller, month):
    """Of a missing device five things are: what was added up, what is not yet, what is odd, tokens, ledgers."""
    _, _, away = month
    biller.clock.now = MARCH + DAY
    missing = asked(biller, MARCH + DAY)
    biller.report(away, 150, at("2026-02-20"), MARCH + 2 * DAY)
    complete = asked(biller, MARCH + 2 * DAY)
    assert sum("AS anchors" in statement for statement in missing) == 1
    assert not any("AS anchors" in statement for statement in complete)
    assert len(missing) - len(complete) == 5
