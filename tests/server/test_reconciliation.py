"""A statement says what was granted, reported and is still out, and whether it adds up."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import sqlalchemy as sa
from billing_fleet import BERLIN, at
from exchanging import refused
from fleet import MODEL, START_S, Api
from lively_fleet import IMPLAUSIBLE, decide_all, lively

from licensing_server.api_keys import service as api_keys
from licensing_server.customers import service as customers
from licensing_server.database import write
from licensing_server.devices import service as devices
from licensing_server.devices.store import devices as device_table
from licensing_server.devices.token_store import token_limits
from licensing_server.pages import Page
from licensing_server.reconciliation import service
from licensing_server.reconciliation.service import Asked
from licensing_server.usage import deciding
from licensing_server.usage.deciding import Resolution
from licensing_server.usage.store import batches, usage_records
from meterkit.licenses import Policy

DAY = 86_400


def state(fleet, limit=200, **asked):
    return service.page(fleet.server, Asked(**asked), Page(limit=limit))


def figures(fleet, **asked):
    """The figures of the only meter there is."""
    (meter,) = state(fleet, **asked)["summary"]["totals"]
    assert (meter.pop("model"), meter.pop("unit")) == (MODEL, "call")
    return meter


def some(found, *names):
    return tuple(found[name] for name in names)


def test_a_statement_of_a_device_says_all_that_is_known_of_it(fleet):
    license_id = fleet.grant(token_units_max=1_000)
    device = fleet.device(license_id)
    device.use(100, unsettled=7)
    device.use(20, flags=("over_limit",))
    device.sync()
    found = state(fleet, period="2026-01")
    (line,) = found["items"]
    assert some(line, "customer", "license", "device") == (fleet.customer, license_id, device.id)
    assert line["meters"] == [
        {
            "model": MODEL, "unit": "call", "tokens": 2, "granted_units": 2_000, "granted_unlimited": False,
            "records": 2, "reported": 120, "over_limit": 20, "unsettled": 7, "quarantined": 0, "dismissed": 0,
            "repeated": 0, "exposure": 1_000, "exposure_unbounded": False, "exposure_past_grace": 0,
        }
    ]  # fmt: skip
    assert line["coverage"] == {
        "expected": True, "reported": True, "state": "active", "sdk": "0.1.0", "runtime": "1.24",
        "seen_at": START_S, "through": START_S,
    }  # fmt: skip
    assert some(found, "holds", "code", "next") == (True, None, None)
    assert some(found["summary"]["conservation"], "signed", "accepted", "holds") == (127, 127, True)


def test_unsettled_units_of_what_is_set_aside_are_in_no_figure_but_that(fleet):
    device = fleet.device(fleet.grant())
    device.use(IMPLAUSIBLE + 1, unsettled=5, flags=("over_limit",))
    device.sync()
    found = some(figures(fleet), "records", "reported", "over_limit", "unsettled", "quarantined")
    assert found == (1, 0, 0, 0, IMPLAUSIBLE + 6)


def test_units_belong_to_the_period_in_which_they_were_used(fleet):
    device = fleet.device(fleet.grant())
    fleet.clock.advance(40 * DAY)
    device.use(3, at=START_S + DAY)
    device.use(4)
    device.sync()
    assert figures(fleet, period="2026-01")["reported"] == 3
    assert figures(fleet, period="2026-02")["reported"] == 4
    assert figures(fleet, period="2026-01-02")["reported"] == 3
    assert figures(fleet, period="2026")["reported"] == 7
    assert figures(fleet)["reported"] == 7
    assert figures(fleet, from_at=START_S + DAY - 900, to_at=START_S + DAY + 900)["reported"] == 3
    assert figures(fleet, period="2026-03")["reported"] == 0


def test_a_named_period_is_the_customers_own_or_utc(fleet):
    def bounds(**asked):
        return some(state(fleet, **asked), "from", "to", "time_zone")

    berlin = (at("2026-12-01"), at("2027-01-01"), "Europe/Berlin")
    assert bounds(period="2026-12", customer=fleet.customer) == berlin
    assert bounds(period="2026-01") == (START_S, START_S + 31 * DAY, "UTC")
    assert bounds(period="2026", customer=fleet.customer)[:2] == (at("2026-01-01"), at("2027-01-01"))
    assert bounds(period="2026-03-29", customer=fleet.customer)[1] - at("2026-03-29", BERLIN) == 23 * 3_600
    assert bounds(from_at=5) == (5, fleet.clock.now + 1, "UTC")


@pytest.mark.parametrize("period", ["2026-13", "2026-00", "26", "2026-02-30", "1969", "9999", "2026-1", "x", ""])
def test_what_is_no_period_is_refused(fleet, period):
    assert refused(state, fleet, period=period) == "malformed_members"


def test_what_makes_no_sense_together_is_refused(fleet):
    other = customers.create(fleet.server, name="Other", time_zone="UTC")["id"]
    assert refused(state, fleet, period="2026", from_at=1) == "malformed_members"
    assert refused(state, fleet, from_at=5, to_at=5) == "malformed_members"
    assert refused(state, fleet, customer=other, license_id=fleet.grant()) == "malformed_members"
    assert refused(state, fleet, customer="cus_none") == "not_found"
    assert refused(state, fleet, license_id="lic_none") == "not_found"


@pytest.mark.parametrize("changed", [{"token_units_max": None}, {"policy": Policy(limit="flag")}])
def test_what_has_no_limit_is_said_to_have_none(fleet, changed):
    fleet.device(fleet.grant(**changed))
    found = figures(fleet, period="2026-01")
    assert some(found, "granted_unlimited", "exposure_unbounded") == (True, True)


def test_exposure_under_tokens_past_their_grace_is_told_apart(fleet):
    license_id = fleet.grant(token_units_max=600, token_life_s=3_600, grace_s=60)
    device = fleet.device(license_id)
    device.use(100)
    device.sync()  # its token of before is still usable, as far as its ledger says
    assert some(figures(fleet), "exposure", "exposure_past_grace") == (600, 0)
    fleet.clock.advance(3_000)
    device.use(50)
    device.sync()
    assert some(figures(fleet), "exposure", "exposure_past_grace") == (600, 0)
    fleet.clock.advance(661)  # those of the beginning are past their grace, the last one is not
    assert some(figures(fleet), "exposure", "exposure_past_grace") == (600, 0)
    fleet.clock.advance(3_000)
    assert some(figures(fleet), "exposure", "exposure_past_grace") == (600, 600)


def test_part_of_an_exposure_may_be_past_grace(fleet):
    device = fleet.device(fleet.grant(token_units_max=600, token_life_s=3_600, grace_s=0))
    fleet.clock.advance(3_000)
    device.use(100)
    device.sync()
    with write(fleet.server) as connection:  # as if the next token had been given less
        newer = token_limits.c.jti == device.token.jti
        connection.execute(sa.update(token_limits).where(newer).values(units_max=50))
    assert some(figures(fleet), "exposure", "exposure_past_grace") == (500, 0)
    fleet.clock.advance(700)
    assert some(figures(fleet), "exposure", "exposure_past_grace") == (500, 450)


def test_coverage_names_who_is_missing_and_since_when(fleet):
    license_id = fleet.grant()
    good, late, never, revoked, lost = (fleet.device(license_id) for _ in range(5))
    for each in (good, late):
        each.use(1)
        each.sync()
    devices.revoke(fleet.server, "device", revoked.id)
    with write(fleet.server) as connection:
        connection.execute(sa.update(device_table).where(device_table.c.id == lost.id).values(state="lost"))
    fleet.clock.advance(31 * DAY)
    good.sync()
    found = state(fleet, period="2026-01")
    coverage = found["summary"]["coverage"]
    assert some(coverage, "reported", "expected") == (1, 4)
    missing = {each["device"]: (each["through"], each["sdk"], each["runtime"]) for each in coverage["missing"]}
    assert missing == {
        late.id: (START_S, "0.1.0", "1.24"),
        never.id: (None, "0.1.0", "1.24"),
        revoked.id: (None, "0.1.0", "1.24"),
    }
    assert found["summary"]["licenses"][0]["coverage"] == {"reported": 1, "expected": 4}
    by_device = {each["device"]: each["coverage"]["expected"] for each in found["items"]}
    assert by_device[good.id] is True
    assert by_device[lost.id] is False


def test_in_a_period_that_goes_on_a_device_has_reported_that_did_so_up_to_now(fleet):
    device = fleet.device(fleet.grant())
    device.sync()
    assert state(fleet, period="2026-01")["summary"]["coverage"]["reported"] == 1
    fleet.clock.advance(1)
    found = state(fleet, period="2026-01")
    assert found["summary"]["coverage"]["reported"] == 0
    assert found["through"] == fleet.clock.now


def test_a_device_without_a_token_valid_in_the_period_need_not_report(fleet):
    fleet.device(fleet.grant(token_life_s=3_600))
    fleet.clock.advance(40 * DAY)
    found = state(fleet, period="2026-02")["summary"]
    assert found["coverage"]["expected"] == 0
    assert found["totals"][0]["exposure"] > 0  # what it may have used is out all the same


def test_after_a_reset_the_new_ledger_speaks_for_the_device(fleet):
    device = fleet.device(fleet.grant())
    device.sync()
    fleet.clock.advance(40 * DAY)
    device.reset()
    device.install()
    device.sync()
    assert state(fleet, period="2026-01")["summary"]["coverage"]["reported"] == 1


def test_exceptions_are_counted_by_kind_and_state(fleet):
    device = fleet.device(fleet.grant())
    twin = device.clone()
    device.use(1, flags=("over_limit",))
    twin.use(2)
    device.sync()
    twin.sync()
    (limit,) = fleet.exceptions("over_limit")
    deciding.acknowledge(fleet.server, limit["id"])
    expected = [
        {"kind": "fork", "open": 1, "acknowledged": 0, "resolved": 0},
        {"kind": "over_limit", "open": 0, "acknowledged": 1, "resolved": 0},
    ]
    assert state(fleet, period="2026-01")["summary"]["exceptions"] == expected
    assert state(fleet, period="2026-02")["summary"]["exceptions"] == expected  # they wait still
    assert state(fleet, period="2025-12")["summary"]["exceptions"] == []
    deciding.resolve(fleet.server, limit["id"], Resolution(how="x"))
    assert state(fleet, period="2026-01")["summary"]["exceptions"][1]["resolved"] == 1
    assert len(state(fleet, period="2026-02")["summary"]["exceptions"]) == 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_fleet_does_and_people_decide_it_adds_up(fleet, seed):
    chance, _ = lively(fleet, seed)
    before = state(fleet)
    assert before["holds"]
    decide_all(fleet, chance)
    after = state(fleet)
    assert after["holds"]
    one, two = (each["summary"]["conservation"] for each in (before, after))
    assert one["signed"] == two["signed"] == one["accepted"] + one["quarantined"]
    assert two["signed"] == two["accepted"] + two["quarantined"] + two["dismissed"] + two["repeated"]
    assert one != two


@pytest.mark.parametrize("seed", range(3))
def test_pages_parts_and_customers_come_to_the_whole(fleet, seed):
    chance, _ = lively(fleet, seed)
    decide_all(fleet, chance)
    whole = state(fleet, period="2026-01")
    lines, after = [], None
    for _ in range(len(whole["items"])):  # more pages than that would be the same again
        found = service.page(fleet.server, Asked(period="2026-01"), Page(limit=2, after=after))
        assert (found["summary"] is None) is (after is not None)
        assert found["holds"]
        lines += found["items"]
        if found["next"] is None:
            break
        after = (0, found["items"][-1]["device"] if found["items"] else "")
    assert lines == whole["items"]
    names = [name for name in whole["summary"]["totals"][0] if name not in ("model", "unit")]
    meters = [meter for line in lines for meter in line["meters"]]
    of_licenses = [meter for each in whole["summary"]["licenses"] for meter in each["meters"]]
    scoped = [{"license_id": each["license"]} for each in whole["summary"]["licenses"] if each["customer"]]
    by_license = [
        meter
        for each in scoped
        for meter in state(fleet, from_at=whole["from"], to_at=whole["to"], **each)["summary"]["totals"]
    ]
    for name in names:
        total = whole["summary"]["totals"][0][name]
        add = any if isinstance(total, bool) else sum
        for parts in (meters, of_licenses, by_license):
            assert add(each[name] for each in parts) == total


def tampered(fleet, statement):
    with write(fleet.server) as connection:
        assert connection.execute(statement).rowcount >= 1
    found = state(fleet, period="2026-01")
    assert (found["holds"], found["code"]) == (False, "conservation_broken")
    return found["summary"]["conservation"]


@pytest.mark.parametrize("forked", [False, True])
def test_a_record_that_was_changed_or_lost_is_named(fleet, forked):
    device = fleet.device(fleet.grant())
    device.use(10)
    device.sync()
    twin = device.clone()
    device.use(20)
    device.sync()
    if forked:
        twin.use(30)
        twin.sync()
    record = usage_records.c
    (difference,) = tampered(fleet, sa.update(usage_records).where(record.units == 20).values(units=19))[
        "differences"
    ]
    signed = 60 if forked else 30
    assert some(difference, "device", "signed", "accepted") == (device.id, signed, signed - 1)
    (difference,) = tampered(fleet, sa.delete(usage_records).where(record.units == 10))["differences"]
    assert difference["accepted"] == signed - 11
    if forked:
        first = sa.select(sa.func.min(batches.c.acceptance)).scalar_subquery()
        (difference,) = tampered(fleet, sa.delete(batches).where(batches.c.acceptance == first))["differences"]
        assert difference["signed"] is None


def test_sums_that_no_engine_can_add_up_are_exact(fleet):
    device = fleet.device(fleet.grant())
    for _ in range(3):
        device.reset()
        device.install()
        device.use(2**53 - 1, count_from=0, count_to=2**53 - 1)
        device.sync()
    assert figures(fleet)["quarantined"] == 3 * (2**53 - 1)
    assert state(fleet)["summary"]["conservation"]["signed"] == 3 * (2**53 - 1)


def test_over_http_it_needs_its_scope_and_comes_in_pages(client, api, fleet):
    license_id = fleet.grant()
    for _ in range(3):
        fleet.device(license_id).sync()
    first = api.get("/v1/reconciliation", period="2026-01", limit=2)
    second = api.get("/v1/reconciliation", period="2026-01", limit=2, cursor=first["next"])
    assert (len(first["items"]), len(second["items"]), second["next"], second["summary"]) == (2, 1, None, None)
    whole = api.get("/v1/reconciliation", **{"from": START_S, "to": START_S + 9, "license": license_id})
    assert whole["summary"]["coverage"]["expected"] == 3
    assert api.get("/v1/reconciliation", period="x", expect=422)["code"] == "malformed_members"
    for scope, status in (("reconciliation:read", 200), ("usage:write", 403)):
        own = Api(client, api_keys.create(fleet.server, name="k", scopes=[scope])["key"])
        own.get("/v1/reconciliation", expect=status)


@pytest.fixture
def run(fleet):
    def invoke(*arguments, expect=0, flags=()):
        result = fleet.invoke(*flags, "reconcile", *arguments)
        assert result.exit_code == expect, (result.output, result.exception)
        return result

    return invoke


def test_the_command_prints_json_as_the_api_does(fleet, run):
    lively(fleet, 1)
    asked = ("--from", str(START_S), "--to", str(START_S + 20 * DAY))
    printed = json.loads(run(*asked, flags=["--json"]).stdout)
    answered = state(fleet, from_at=START_S, to_at=START_S + 20 * DAY)
    changing = ("known_at", "through", "summary", "items")
    assert {k: v for k, v in printed.items() if k not in changing} == {
        k: v for k, v in answered.items() if k not in changing
    }
    assert printed["summary"]["conservation"] == answered["summary"]["conservation"]
    assert len(printed["items"]) == len(answered["items"])


def test_the_command_prints_a_row_for_each_device_and_meter_that_no_spreadsheet_runs(fleet, run):
    license_id = fleet.grant()
    device, idle = fleet.device(license_id), fleet.device()
    device.use(42)
    device.sync()
    idle.activate(fleet.code(license_id))
    with write(fleet.server) as connection:
        connection.execute(sa.update(device_table).values(sdk="=cmd|' /C calc'!A0"))
    text = run("--period", "2026-01", "--csv").stdout
    rows = {row["device"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows.keys() == {device.id, idle.id}
    own = rows[device.id]
    assert some(own, "from", "customer", "license", "reported", "granted_unlimited") == (
        "2026-01-01T00:00:00Z", fleet.customer, license_id, "42", "no",
    )  # fmt: skip
    assert own["sdk"] == "'=cmd|' /C calc'!A0"
    assert some(rows[idle.id], "through", "has_reported") == ("", "no")


def test_the_command_tells_people_what_they_ask_first(fleet, run):
    license_id = fleet.grant(token_units_max=None)
    device, silent = fleet.device(license_id), fleet.device(license_id)
    twin = device.clone()
    device.use(42)
    twin.use(2)
    device.sync()
    twin.sync()
    with write(fleet.server) as connection:
        connection.execute(sa.update(device_table).values(runtime="[red]\x1b[2J[/x]"))
    text = run("--period", "2026-01", "--devices").stdout
    for said in ("no limit", "0 of 2 devices have reported", silent.id, "fork", "It adds up.", "[/x]"):
        assert said in text
    assert "\x1b" not in text
    quiet = run("--period", "2026-01").stdout
    assert silent.id in quiet
    assert "has reported through" not in quiet


def test_the_command_ends_with_one_and_the_code_where_it_does_not_add_up(fleet, run):
    device = fleet.device(fleet.grant())
    device.use(10)
    device.sync()
    tampered(fleet, sa.update(usage_records).values(units=9))
    for flags, options in (([], []), (["--json"], []), ([], ["--csv"])):
        result = run("--period", "2026-01", *options, flags=flags, expect=1)
        assert "[conservation_broken]" in result.stderr
    assert "It does not add up" in run("--period", "2026-01", expect=1).stdout


GUIDE = Path(__file__).resolve().parents[2] / "docs" / "reconciliation.md"


def test_every_command_of_the_guide_does_what_it_says(fleet):
    license_id = fleet.grant()
    device = fleet.device(license_id)
    twin = device.clone()
    device.use(IMPLAUSIBLE + 1)
    twin.use(2)
    device.sync()
    twin.sync()
    (fork,), (rate,) = fleet.exceptions("fork"), fleet.exceptions("implausible_rate")
    written = re.findall(r"^meterkit-server (.*)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert len(written) > 12
    for line in written:
        command = line.split(" > ")[0].replace("cus_…", fleet.customer).replace("lic_…", license_id)
        command = command.replace("exc_…", rate["id"] if "release" in line else fork["id"])
        words = shlex.split(command.replace("HEAD", twin.position.head))
        result = fleet.invoke(*words)
        assert result.exit_code == 0, (line, result.output)
    assert {each["outcome"] for each in fleet.exceptions()} == {"release", None}  # and one is open again
    assert figures(fleet)["dismissed"] == 2
