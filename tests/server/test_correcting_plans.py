"""A version that starts in the past, as a named correction: by whom and why, and what has been billed stays."""

import json

import pytest
from account_ways import APRIL, refused
from billing_fleet import DAY, FEBRUARY, JANUARY, MARCH, Biller, at
from fastapi.testclient import TestClient
from fleet import Api
from tampering import read_part, tampered

from licensing_server.app import create_app
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import changing, correcting, disputing, documents, run_store, service
from licensing_server.customers import service as customers
from licensing_server.database import read, write
from licensing_server.licenses import service as licenses
from licensing_server.pages import Page
from meterkit import audit, evidence, explaining
from meterkit.canonical import to_bytes
from meterkit.evidence import Bundle

NOTE = "the wrong plan was chosen"


def correct(biller: Biller, license_id: str, plan: str, starts_at: int, **named):
    shown = correcting.correct_plan(biller.server, license_id, plan=plan, starts_at=starts_at, note=NOTE, **named)
    return shown["corrections"][-1]


def settle(biller: Biller, until: int):
    """Bill up to an instant, finalize, and let the evidence prove it."""
    biller.clock.now = max(until, biller.clock.now)
    (draft,) = biller.run(cut_off=until)
    final = biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()
    return final


def lines(document):
    shown = ("charge", "service_start_at", "share", "quantity", "amount", "late")
    return [tuple(line[name] for name in shown) for line in document["lines"]]


def wrong_and_right(biller: Biller) -> tuple[str, str, str]:
    """A license with ten calls in January, billed by 1.00 a call and 31.00; it should have been 0.50 and 20.00."""
    wrong = biller.plan_of(biller.calls("1"), biller.fee("31", due="arrears"))
    right = biller.plan_of(biller.calls("0.5"), biller.fee("20", due="arrears"))
    license_id = biller.grant(plan=wrong)
    biller.use(biller.device(license_id), 10, at("2026-01-10"))
    return license_id, wrong, right


def test_what_was_billed_by_the_wrong_version_is_withdrawn_and_billed_by_the_right_one(biller):
    """41.00 were billed. Withdrawn: 10.00 and 31.00. Owed instead: 10 × 0.50 and 20.00. 16.00 are given back."""
    license_id, _, right = wrong_and_right(biller)
    assert settle(biller, FEBRUARY)["total"] == "41.00"
    correct(biller, license_id, right, JANUARY)
    note = settle(biller, FEBRUARY + DAY)
    by_plan = sorted((line["plan"] == right, *row) for line, row in zip(note["lines"], lines(note), strict=True))
    assert by_plan == [
        (False, "calls", JANUARY, "0", 0, "-10.00", True),
        (False, "fee", JANUARY, "0", 0, "-31.00", True),
        (True, "calls", JANUARY, "1", 10, "5.00", True),
        (True, "fee", JANUARY, "1", 1, "20.00", True),
    ]
    assert (note["kind"], note["total"], note["balance_minor"]) == ("credit_note", "-16.00", -1600)
    biller.clock.now += DAY
    assert biller.run() == []  # once


def test_it_counts_until_the_next_version_and_from_a_period_s_start_moves_no_bound(biller):
    """January was right at 1.00; February should have been 3.00, and March is 9.00, as was changed before."""
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    device = biller.device(license_id)
    for day in ("2026-01-10", "2026-02-10"):
        biller.use(device, 2, at(day))
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(biller.calls("9")))
    biller.use(device, 2, at("2026-03-10"))
    assert [row[4] for row in lines(settle(biller, APRIL))] == ["2.00", "2.00", "18.00"]
    correct(biller, license_id, biller.plan_of(biller.calls("3")), FEBRUARY)
    assert sorted(lines(settle(biller, APRIL + DAY))) == [
        ("calls", FEBRUARY, "0", 0, "-2.00", True),
        ("calls", FEBRUARY, "1", 2, "6.00", True),
    ]


def test_within_a_period_that_is_not_billed_two_short_ones_owe_their_shares(biller):
    """Ten of January's 31 days at 31.00, 21 at 62.00: 10.00 and 42.00. Two calls at 1.00 before, three at 2.00
    after, all used before anyone knew of it."""
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1"), biller.fee("31", due="arrears")))
    device = biller.device(license_id)
    biller.use(device, 2, at("2026-01-05"))
    biller.use(device, 3, at("2026-01-20"))
    biller.clock.now = at("2026-01-25")
    biller.run()  # it adds up what there is, and knows nothing of the correction
    edge = JANUARY + 10 * DAY
    correct(biller, license_id, biller.plan_of(biller.calls("2"), biller.fee("62", due="arrears")), edge)
    assert lines(settle(biller, FEBRUARY)) == [
        ("calls", JANUARY, "10/31", 2, "2.00", False),
        ("fee", JANUARY, "10/31", 1, "10.00", False),
        ("calls", edge, "21/31", 3, "6.00", False),
        ("fee", edge, "21/31", 1, "42.00", False),
    ]
    biller.use(device, 1, at("2026-01-06"))  # late, and of the piece in which it was used
    assert lines(settle(biller, FEBRUARY + DAY)) == [("calls", JANUARY, "10/31", 3, "1.00", True)]


def test_bounds_once_billed_stay(biller):
    license_id, _, right = wrong_and_right(biller)
    settle(biller, FEBRUARY)
    assert refused(correct, biller, license_id, right, JANUARY + 10 * DAY) == "state_conflict"
    assert licenses.show(biller.server, license_id)["corrections"] == []
    biller.clock.now += DAY
    assert biller.run() == []


def test_a_piece_that_was_cut_before_is_not_cut_again(biller):
    license_id, _, right = wrong_and_right(biller)
    biller.clock.now = JANUARY + 20 * DAY - 60
    changing.change_plan(biller.server, license_id, plan=right, starts="now")
    third = biller.plan_of(biller.calls("7"))
    biller.clock.now = JANUARY + 21 * DAY
    assert refused(correct, biller, license_id, third, JANUARY + 10 * DAY) == "state_conflict"
    correct(biller, license_id, third, JANUARY + 20 * DAY)


def sums(biller: Biller) -> dict[tuple, int]:
    """What stands billed on each key, but for those that came to nothing."""
    found: dict[tuple, int] = {}
    with read(biller.server) as connection:
        for number in run_store.runs_of(connection, biller.customer, 10**6):
            for invoice_id in service.store.invoice_ids(connection, number.number):
                for line in service.find(connection, invoice_id).to_document()["lines"]:
                    key = tuple(line[name] for name in ("charge", "plan", "version", "service_start_at"))
                    found[key] = found.get(key, 0) + line["amount_minor"]
    return {key[:1] + key[2:]: amount for key, amount in found.items() if amount}


@pytest.mark.parametrize("before", [[], [FEBRUARY], [FEBRUARY, MARCH], [FEBRUARY, FEBRUARY + DAY, MARCH]])
def test_any_schedule_of_runs_before_it_comes_to_the_same(biller, before):
    license_id, _, right = wrong_and_right(biller)
    biller.use(biller.device(license_id), 7, at("2026-02-10"))
    biller.clock.now = MARCH
    for cut_off in before:
        for draft in biller.run(cut_off=cut_off):
            biller.finalize(draft["id"])
    correct(biller, license_id, right, JANUARY)
    settle(biller, MARCH + DAY)
    fees = {("fee", 1, JANUARY): 2000, ("fee", 1, FEBRUARY): 2000}
    assert sums(biller) == {("calls", 1, JANUARY): 500, ("calls", 1, FEBRUARY): 350, **fees}


def test_a_run_from_before_recomputed_gives_the_same_bytes(biller):
    license_id, _, right = wrong_and_right(biller)
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    first = biller.finalize(draft["id"])

    def again(number: int) -> bytes:
        with write(biller.server) as connection:
            customer = customers.find(connection, biller.customer)
            (made,) = documents.compute(connection, customer, service.find_run(connection, number).limits)
            return to_bytes(made.body)

    known = again(first["run"]["number"])
    correct(biller, license_id, right, JANUARY)
    settle(biller, FEBRUARY + DAY)
    assert again(first["run"]["number"]) == known
    assert again(first["run"]["number"] + 1) != known


def test_a_draft_that_does_not_know_of_it_is_withdrawn(biller):
    license_id, _, right = wrong_and_right(biller)
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    correct(biller, license_id, right, JANUARY)
    assert refused(biller.finalize, draft["id"]) == "not_found"
    assert settle(biller, FEBRUARY + DAY)["total"] == "25.00"


def test_a_correction_is_corrected_by_the_next(biller):
    """10 × 1.00 and 31.00; 10 × 0.50 and 20.00; in the end what was first was right: nothing is left to bill."""
    license_id, wrong, right = wrong_and_right(biller)
    settle(biller, FEBRUARY)
    correct(biller, license_id, right, JANUARY)
    correct(biller, license_id, wrong, JANUARY)
    biller.clock.now += DAY
    assert biller.run() == []
    correct(biller, license_id, right, JANUARY)
    assert settle(biller, FEBRUARY + 2 * DAY)["total"] == "-16.00"
    correct(biller, license_id, wrong, JANUARY)
    assert settle(biller, FEBRUARY + 3 * DAY)["total"] == "16.00"
    assert [each["version"] for each in licenses.show(biller.server, license_id)["versions"]] == [1]


def test_on_the_first_day_it_is_the_first_version_that_is_corrected(biller):
    """A license that starts at ten: its first period is from that midnight, and is not cut at ten."""
    wrong, right = biller.plan_of(biller.calls("1")), biller.plan_of(biller.calls("2"))
    biller.clock.now = at("2026-01-15T10:00")
    license_id = biller.grant(plan=wrong)
    biller.use(biller.device(license_id), 4, at("2026-01-16"))
    made = correct(biller, license_id, right, at("2026-01-15"))
    assert made["starts_at"] == at("2026-01-15T10:00")
    first = settle(biller, at("2026-02-15"))
    assert lines(first) == [("calls", at("2026-01-15"), "1", 4, "8.00", False)]


def test_another_currency_from_a_period_s_start_only(biller):
    license_id, _, _ = wrong_and_right(biller)
    yen = biller.plan_of(biller.calls("100"), currency="JPY")
    settle(biller, FEBRUARY)
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(biller.calls("3")))
    biller.clock.now = MARCH + 10 * DAY - 60
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(biller.calls("4")), starts="now")
    biller.clock.now += DAY
    assert refused(correct, biller, license_id, yen, MARCH) == "state_conflict"  # until the 11th, in euros again
    assert refused(correct, biller, license_id, yen, MARCH + 5 * DAY) == "state_conflict"
    correct(biller, license_id, yen, JANUARY)
    biller.clock.now += DAY
    euros, yens = sorted(biller.run(), key=lambda draft: draft["currency"])
    assert (euros["total"], yens["total"]) == ("-41.00", "1000")
    for draft in (euros, yens):
        biller.finalize(draft["id"])
        assert biller.audit(draft["id"]).findings == ()


def test_nothing_is_let_off_on_what_is_withdrawn_nor_withdrawn_where_it_was_let_off(biller):
    license_id, _, right = wrong_and_right(biller)
    invoice = settle(biller, FEBRUARY)
    let_off = {"line": 1, "amount": "3", "note": "for the outage"}
    correct(biller, license_id, right, JANUARY)
    assert refused(disputing.concede, biller.server, invoice["id"], **let_off) == "state_conflict"
    assert settle(biller, FEBRUARY + DAY)["total"] == "-16.00"


@pytest.mark.parametrize("starts_at", [JANUARY, JANUARY + 5 * DAY])
def test_what_was_let_off_is_not_withdrawn_as_well(biller, starts_at):
    license_id, _, right = wrong_and_right(biller)
    invoice = settle(biller, FEBRUARY)
    correct(biller, license_id, right, FEBRUARY)  # of another period
    disputing.concede(biller.server, invoice["id"], line=1, amount="3", note="for the outage")
    assert refused(correct, biller, license_id, right, starts_at) == "state_conflict"
    biller.clock.now += DAY
    assert settle(biller, MARCH)["total"] == "17.00"  # 20.00 of February by the right one, less 3.00


@pytest.mark.parametrize(
    ("starts_at", "code"),
    [
        (JANUARY - 1, "malformed_members"),
        (JANUARY + 10 * DAY + 60, "malformed_members"),
        (at("2026-01-20T00:15"), "malformed_members"),
    ],
)
def test_an_instant_that_it_cannot_start_at_is_refused(biller, starts_at, code):
    license_id, wrong, right = wrong_and_right(biller)
    biller.clock.now = at("2026-01-20")
    assert refused(correct, biller, license_id, right, starts_at) == code
    assert refused(correct, biller, license_id, wrong, JANUARY) == "state_conflict"  # it is by that one already


def test_pools_count_by_one_interval(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")), pool_units=100, pool_per="period")
    daily = biller.plan_of(biller.calls("1"), interval="day")
    assert refused(correct, biller, license_id, daily, JANUARY) == "state_conflict"


def test_it_is_logged_by_whom_and_why_and_a_license_shows_it(biller):
    license_id, _, right = wrong_and_right(biller)
    made = correct(biller, license_id, right, JANUARY)
    assert made["note"] == NOTE
    (entry,) = (
        each
        for each in audit_log.page(biller.server, Page(limit=200), subject=license_id)["items"]
        if each["action"] == "license.correct_plan"
    )
    assert (entry["who"], entry["body"]["id"], entry["body"]["note"]) == ("command", made["id"], NOTE)


@pytest.fixture
def corrected(biller) -> Bundle:
    """The evidence of the document that a correction made."""
    license_id, _, right = wrong_and_right(biller)
    settle(biller, FEBRUARY)
    correct(biller, license_id, right, JANUARY)
    note = settle(biller, FEBRUARY + DAY)
    _, data = service.show_evidence(biller.server, note["id"])
    return evidence.read_zip(data)


def retold(biller: Biller, bundle: Bundle, change):
    """The vendor changes its license's timeline."""
    return tampered(biller.server, bundle, evidence.LICENSES, lambda stated: change(stated[0]["versions"]))


def test_evidence_carries_it_and_the_audit_finds_what_is_changed(biller, corrected):
    def become(**members):
        return lambda versions: versions[1].update(members)

    assert retold(biller, corrected, become()).holds
    for change in (
        lambda versions: versions.pop(),  # it is left out
        lambda versions: versions.reverse(),
        lambda versions: versions.append({**versions[1]}),
        become(since_run=1),  # known to the run before
        become(since_run=0),
        become(since_run=9),
        become(starts_at=FEBRUARY),
        become(starts_at=JANUARY + DAY),
        become(starts_at=JANUARY - DAY),
        become(plan=read_part(corrected, evidence.LICENSES)[0]["versions"][0]["plan"]),
    ):
        assert not retold(biller, corrected, change).holds


def test_what_starts_in_the_past_without_a_name_is_found(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    biller.use(biller.device(license_id), 10, at("2026-02-10"))
    settle(biller, MARCH)
    correct(biller, license_id, biller.plan_of(biller.calls("2")), FEBRUARY)
    _, data = service.show_evidence(biller.server, settle(biller, MARCH + DAY)["id"])
    result = retold(biller, evidence.read_zip(data), lambda versions: versions[1].pop("correction"))
    assert ["starts in the past" in finding.what for finding in result.findings] == [True]


def test_it_is_explained(corrected):
    work = audit.recompute(corrected)
    told = {each.stated["plan"]: [] for each in work.lines}
    for place, line in enumerate(work.lines, 1):
        told[line.stated["plan"]] += explaining.explain(work, place)
    withdrawn, instead = (told[each["plan"]] for each in sorted((c.stated for c in work.lines), key=_amount)[::3])
    assert any("in whose place version 1 of plan" in text and "correction cor_" in text for text in withdrawn)
    assert "Nothing is owed by this version for this period any more." in withdrawn
    assert any(text.startswith("which counts by correction cor_") for text in instead)


def _amount(line):
    return line["amount_minor"]


def test_over_http_and_by_command(biller):
    license_id, wrong, right = wrong_and_right(biller)
    asked = {"plan": right, "starts_at": JANUARY, "note": NOTE}
    with TestClient(create_app(biller.server)) as client:
        api = Api(client, biller.made.api_key)
        api.post(f"/v1/licenses/{license_id}/corrections", {"plan": right, "starts_at": JANUARY}, expect=422)
        shown = api.post(f"/v1/licenses/{license_id}/corrections", asked)
        assert [each["plan"] for each in shown["corrections"]] == [right]
        api.post(f"/v1/licenses/{license_id}/corrections", asked, expect=409)
    options = ["--plan", wrong, "--starts-at", "2026-01-01T00:00:00+01:00", "--note", NOTE]
    ran = biller.invoke("--json", "billing", "correct-plan", license_id, *options)
    assert ran.exit_code == 0, ran.output
    assert [each["plan"] for each in json.loads(ran.stdout)["corrections"]] == [right, wrong]
