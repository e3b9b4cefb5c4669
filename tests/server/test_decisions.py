"""What people decide about exceptions, and that billing obeys: by the next run, and provably."""

import contextlib
import json
import random

import pytest
import sqlalchemy as sa
from billing_fleet import FEBRUARY, MARCH, at
from exchanging import refused
from fleet import MODEL

from licensing_server.audit_log import service as audit_log
from licensing_server.billing import service as billing
from licensing_server.database import read
from licensing_server.licenses.store import license_units
from licensing_server.pages import Page
from licensing_server.usage import deciding
from licensing_server.usage import service as usage
from licensing_server.usage.deciding import Resolution
from meterkit import audit, envelopes, evidence
from meterkit.attribution import Run
from meterkit.canonical import to_bytes
from meterkit.errors import ServiceError

IMPLAUSIBLE = 10**6 * 900


@pytest.fixture
def biller(embedded_fleet):
    return embedded_fleet


def decide(biller, kind, outcome=None, branch=None):
    """Resolve the one open exception of a kind."""
    (found,) = [each for each in biller.exceptions(kind) if each["state"] != "resolved"]
    resolution = Resolution(how="as agreed", outcome=outcome, branch=branch)
    return deciding.resolve(biller.server, found["id"], resolution)


def accepted(biller, license_id):
    """What pools know: in all, unsettled units beside."""
    with read(biller.server) as connection:
        rows = connection.execute(sa.select(license_units).where(license_units.c.license == license_id)).all()
    return {row.period_start: (row.units, row.unsettled) for row in rows}


def of_one(biller):
    (item,) = usage.sum_usage(biller.server)["items"]
    return {name: item[name] for name in ("units", "unsettled", "quarantined", "dismissed")}


def billed(biller, cut_off):
    """Bill up to an instant, finalize and audit it; give the quantity of its line."""
    biller.clock.now = max(biller.clock.now, cut_off)
    (draft,) = biller.run(cut_off=cut_off)
    final = biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()
    return final["lines"][0]["quantity"]


@pytest.fixture
def quarantined(biller):
    """A device with 10 good units, and a record that its window had no time for."""
    device = biller.device(biller.grant(token_units_max=None))
    biller.use(device, 10, at("2026-01-05"))
    biller.use(device, IMPLAUSIBLE + 1, at("2026-01-06"), unsettled=2)
    return device


def test_what_is_released_is_billed_by_the_next_run_in_its_own_period(biller, quarantined):
    license_id = quarantined.token.license_id
    assert billed(biller, FEBRUARY) == 10
    assert accepted(biller, license_id) == {0: (10, 0)}
    decide(biller, "implausible_rate", "release")
    assert of_one(biller) == {"units": IMPLAUSIBLE + 11, "unsettled": 2, "quarantined": 0, "dismissed": 0}
    assert accepted(biller, license_id) == {0: (IMPLAUSIBLE + 11, 2)}
    assert billed(biller, MARCH) == IMPLAUSIBLE + 11


@pytest.mark.usefixtures("quarantined")
def test_a_draft_knows_only_what_was_decided_before_its_run(biller):
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    decide(biller, "implausible_rate", "release")
    final = biller.finalize(draft["id"])
    assert final["lines"][0]["quantity"] == 10
    assert final["beside"][0]["quarantined"] == IMPLAUSIBLE + 3
    assert biller.audit(draft["id"]).findings == ()
    assert billed(biller, MARCH) == IMPLAUSIBLE + 11


@pytest.mark.parametrize("outcome", [None, "keep"])
def test_what_is_kept_stays_aside(biller, quarantined, outcome):
    found = decide(biller, "implausible_rate", outcome)
    assert (found["outcome"], found["state"]) == ("keep", "resolved")
    assert of_one(biller)["quarantined"] == IMPLAUSIBLE + 3
    assert billed(biller, FEBRUARY) == 10
    assert quarantined.sync().token is not None


def test_of_one_batch_only_the_records_of_that_reason_are_released(biller):
    device = biller.device(biller.grant(token_units_max=None))
    device.use(IMPLAUSIBLE + 1)
    device.use(3, token="tok_" + "a" * 26)
    device.use(4)
    device.sync()
    assert of_one(biller)["quarantined"] == IMPLAUSIBLE + 4
    decide(biller, "unknown_token", "release")
    assert of_one(biller) == {"units": 7, "unsettled": 0, "quarantined": IMPLAUSIBLE + 1, "dismissed": 0}


def test_what_names_a_license_that_the_device_never_had_is_not_released(biller):
    other, missing = biller.grant(), "lic_" + "b" * 26
    for named in (other, missing):
        device = biller.device()
        device.activate(biller.code(biller.grant()))
        device.install(license=named)
        device.use(9, license_id=named)
        device.sync()
        (found,) = [each for each in biller.exceptions("unknown_token") if each["device"] == device.id]
        resolution = Resolution(how="x", outcome="release")
        assert refused(deciding.resolve, biller.server, found["id"], resolution) == "state_conflict"
    assert biller.units(other) == 0


def test_no_sum_is_released_that_nobody_could_read(biller):
    device = biller.device(biller.grant(token_units_max=None))
    for _ in range(2):
        device.reset()
        device.install()
        device.use(2**53 - 1, count_from=0, count_to=2**53 - 1)
        device.sync()
    first, found = biller.exceptions("implausible_rate")
    resolution = Resolution(how="x", outcome="release")
    deciding.resolve(biller.server, first["id"], resolution)
    assert refused(deciding.resolve, biller.server, found["id"], resolution) == "too_large"
    assert (of_one(biller)["units"], of_one(biller)["quarantined"]) == (2**53 - 1, 2**53 - 1)


def test_a_release_stands_when_its_exception_is_opened_again(biller, quarantined):
    released = decide(biller, "implausible_rate", "release")
    deciding.reopen(biller.server, released["id"], how="second thoughts")
    resolution = Resolution(how="x", outcome="keep")
    assert refused(deciding.resolve, biller.server, released["id"], resolution) == "state_conflict"
    before = of_one(biller), accepted(biller, quarantined.token.license_id)
    decide(biller, "implausible_rate", "release")  # again: nothing is counted twice
    assert (of_one(biller), accepted(biller, quarantined.token.license_id)) == before


@pytest.fixture
def forked(biller):
    """A fork: 10 units in common, 5 on one branch, 7 and 2 unsettled on the other."""
    device = biller.device(biller.grant(token_units_max=1_000, pool_units=100_000))
    biller.use(device, 10, at("2026-01-05"))
    twin = device.clone()
    biller.use(device, 5, at("2026-01-06"))
    biller.use(twin, 7, at("2026-01-07"), unsettled=2)
    return device, twin


def test_a_dismissed_branch_leaves_the_sums_and_the_rule_makes_the_credit(biller, forked):
    device, twin = forked
    assert billed(biller, FEBRUARY) == 22
    shown = deciding.show(biller.server, biller.exceptions("fork")[0]["id"])
    assert {each["head"] for each in shown["branches"]} == {device.position.head, twin.position.head}
    found = decide(biller, "fork", "dismiss_branch", twin.position.head)
    assert [each["dismissed"] for each in found["branches"] if each["head"] == twin.position.head] == [True]
    assert of_one(biller) == {"units": 15, "unsettled": 0, "quarantined": 0, "dismissed": 9}
    assert accepted(biller, device.token.license_id) == {0: (15, 0)}
    biller.use(device, 20, at("2026-02-03"))
    biller.clock.now = MARCH
    (draft,) = biller.run()
    lines = [(line["quantity"], line["amount"]) for line in draft["lines"]]
    assert lines == [(15, "-0.07"), (20, "0.20")]
    assert [each["dismissed"] for each in draft["beside"]] == [9]
    final = biller.finalize(draft["id"])
    cited = {each["head"] for line in final["lines"] for each in line["records"]}
    assert cited == {device.position.head}
    result = biller.audit(draft["id"])
    assert (result.findings, result.pinned) == ((), True)


def test_what_a_dismissed_branch_reports_later_counts_until_it_is_decided_too(biller, forked):
    _, twin = forked
    found = decide(biller, "fork", "dismiss_branch", twin.position.head)
    biller.use(twin, 30, at("2026-01-08"))
    assert of_one(biller) == {"units": 45, "unsettled": 0, "quarantined": 0, "dismissed": 9}
    deciding.reopen(biller.server, found["id"], how="it is still running")
    decide(biller, "fork", "dismiss_branch", twin.position.head)
    assert of_one(biller) == {"units": 15, "unsettled": 0, "quarantined": 0, "dismissed": 39}
    assert billed(biller, FEBRUARY) == 15
    shown = deciding.show(biller.server, found["id"])["decisions"]
    assert [each["action"] for each in shown] == ["resolve", "reopen", "resolve"]


def test_a_forks_own_fork_is_dismissed_for_what_only_it_has(biller, forked):
    device, twin = forked
    third = twin.clone()
    biller.use(twin, 100, at("2026-01-08"))
    biller.use(third, 1_000, at("2026-01-09"))
    first, second = biller.exceptions("fork")
    resolution = Resolution(how="x", outcome="dismiss_branch", branch=third.position.head)
    deciding.resolve(biller.server, second["id"], resolution)
    assert (of_one(biller)["units"], of_one(biller)["dismissed"]) == (10 + 5 + 7 + 100, 1_000)
    resolution = Resolution(how="x", outcome="dismiss_branch", branch=device.position.head)
    deciding.resolve(biller.server, first["id"], resolution)
    assert (of_one(biller)["units"], of_one(biller)["dismissed"]) == (10 + 7 + 100, 1_005)
    assert billed(biller, FEBRUARY) == 117


def test_the_last_branch_a_dismissed_one_and_one_that_is_none_are_not_dismissed(biller, forked):
    device, twin = forked
    found = decide(biller, "fork", "dismiss_branch", twin.position.head)
    deciding.reopen(biller.server, found["id"], how="x")
    codes = {
        device.position.head: "state_conflict",
        twin.position.head: "state_conflict",
        device.at(3).head: "not_found",
    }
    for head, code in codes.items():
        resolution = Resolution(how="x", outcome="dismiss_branch", branch=head)
        assert refused(deciding.resolve, biller.server, found["id"], resolution) == code


def test_quarantined_records_of_a_dismissed_branch_are_in_no_sum_either_way(biller, forked):
    _, twin = forked
    biller.use(twin, IMPLAUSIBLE + 1, at("2026-01-08"))
    decide(biller, "fork", "dismiss_branch", twin.position.head)
    assert of_one(biller) == {"units": 15, "unsettled": 0, "quarantined": IMPLAUSIBLE + 1, "dismissed": 9}
    decide(biller, "implausible_rate", "release")
    assert of_one(biller) == {"units": 15, "unsettled": 0, "quarantined": 0, "dismissed": IMPLAUSIBLE + 10}
    assert accepted(biller, twin.token.license_id) == {0: (15, 0)}
    assert billed(biller, FEBRUARY) == 15


def test_outcomes_belong_to_their_kinds(biller, forked, quarantined):
    (fork,), (rate,) = biller.exceptions("fork"), biller.exceptions("implausible_rate")
    head = forked[1].position.head
    for found, outcome, branch in (
        (fork, "release", None),
        (fork, "closed", None),
        (fork, "dismiss_branch", None),
        (fork, "bill_both", head),
        (rate, "bill_both", None),
        (rate, "dismiss_branch", head),
    ):
        resolution = Resolution(how="x", outcome=outcome, branch=branch)
        assert refused(deciding.resolve, biller.server, found["id"], resolution) == "malformed_members"
    assert quarantined.token is not None


def test_an_acknowledged_exception_has_an_owner_and_waits_like_an_open_one(biller):
    device = biller.device(biller.grant(fork_policy="hold"))
    twin = device.clone()
    for units, each in enumerate((device, twin), 1):
        biller.use(each, units, at("2026-01-05"))
        each.use(2, flags=("over_limit",))
        each.sync()
    (fork,) = biller.exceptions("fork")
    seen = deciding.acknowledge(biller.server, fork["id"], owner="Ada", note="asked the customer")
    assert (seen["state"], seen["owner"], seen["note"]) == ("acknowledged", "Ada", "asked the customer")
    again = deciding.acknowledge(biller.server, fork["id"], note="no answer yet")
    assert (again["owner"], again["note"], len(again["decisions"])) == ("Ada", "no answer yet", 2)
    assert device.sync().token is None  # held, as before
    (limit,) = biller.exceptions("over_limit")
    deciding.acknowledge(biller.server, limit["id"])
    device.use(2, flags=("over_limit",))
    device.sync()
    assert len(biller.exceptions("over_limit")) == 1
    deciding.resolve(biller.server, fork["id"], Resolution(how="restored image"))
    device.use(1)
    assert device.sync().token is not None
    assert refused(deciding.acknowledge, biller.server, fork["id"]) == "state_conflict"
    assert refused(deciding.acknowledge, biller.server, "exc_none") == "not_found"
    assert refused(deciding.reopen, biller.server, limit["id"], how="x") == "state_conflict"


@pytest.mark.parametrize("seed", range(4))
def test_at_each_run_the_database_adds_up_as_the_core_does_by_the_decisions_known_then(biller, seed):
    chance = random.Random(seed)  # noqa: S311 - a test's, on purpose
    fee = {**biller.fee("1", due="arrears", per="device"), "interval": "month"}
    devices = [biller.device(biller.grant(plan=biller.plan_of(biller.calls("0.01"), fee))) for _ in range(2)]
    for _month in range(3):
        for _ in range(8):
            device = chance.choice(devices)
            device.use(chance.randint(1, 9) + IMPLAUSIBLE * chance.randint(0, 1), at=biller.clock.now)
            if chance.random() < 0.3:
                devices.append(device.clone())
            device.sync(first=1)
            biller.clock.advance(3_600 * chance.randint(1, 40))
        for found in biller.exceptions():
            outcome, branch = "closed", None
            if found["kind"] == "implausible_rate":
                outcome = chance.choice(["keep", "release"])
            if found["kind"] == "fork":
                branches = deciding.show(biller.server, found["id"])["branches"]
                branch = chance.choice([each["head"] for each in branches if not each["dismissed"]])
                outcome = "dismiss_branch"
            with contextlib.suppress(ServiceError):  # resolved already, or the last branch
                deciding.resolve(biller.server, found["id"], Resolution(how="x", outcome=outcome, branch=branch))
        biller.run()
    sums = []
    for number in range(5):
        run = Run(number=number, cut_off=biller.clock.now, acceptance_max=10**6)
        sums.append(biller.compare_sums(run))
    assert sums[3] == sums[4]
    assert len(set(sums)) > 2


def test_every_decision_is_in_the_audit_log(biller, forked):
    head = forked[1].position.head
    (fork,) = biller.exceptions("fork")
    deciding.acknowledge(biller.server, fork["id"], owner="Ada", who="key_a")
    deciding.resolve(
        biller.server, fork["id"], Resolution(how="image", outcome="dismiss_branch", branch=head), who="key_b"
    )
    deciding.reopen(biller.server, fork["id"], how="wrong one")
    logged = audit_log.page(biller.server, Page(), subject=fork["id"])["items"]
    assert [(each["who"], each["action"]) for each in logged] == [
        ("key_a", "exception.acknowledge"),
        ("key_b", "exception.resolve"),
        ("command", "exception.reopen"),
    ]
    body = logged[1]["body"]
    assert (body["outcome"], body["branch_head"], body["units"], body["since_run"]) == (
        "dismiss_branch", head, "9", 1,
    )  # fmt: skip
    assert audit_log.verify(biller.server)["holds"]


def forged(biller, invoice_id, **changed):
    """Audit an invoice whose decisions are others than those it was computed from."""
    _, data = billing.show_evidence(biller.server, invoice_id)
    bundle = evidence.read_zip(data)
    decided = json.loads(bundle.parts["decisions.json"])
    parts = {**bundle.parts, "decisions.json": to_bytes({**decided, **changed})}
    body = json.loads(parts["invoice.json"])
    parts["invoice.json"] = to_bytes({**body, "evidence": evidence.digest_of(parts)})
    claims = evidence.manifest_claims(
        issuer=biller.server.issuer, iat=body["finalized_at"], invoice=body["number"], parts=parts
    )
    manifest = biller.server.sign(envelopes.EVIDENCE, claims)
    return audit.recompute(evidence.Bundle(manifest=manifest, parts=parts), None).findings


def test_an_audit_believes_no_decision_that_the_chains_do_not_bear_out(biller, forked):
    device, twin = forked
    biller.use(device, IMPLAUSIBLE + 1, at("2026-01-08"))
    decide(biller, "fork", "dismiss_branch", twin.position.head)
    decide(biller, "implausible_rate", "release")
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    biller.finalize(draft["id"])
    assert forged(biller, draft["id"]) == ()
    _, data = billing.show_evidence(biller.server, draft["id"])
    decided = json.loads(evidence.read_zip(data).parts["decisions.json"])
    (dismissed,), (released,) = decided["dismissed"], decided["released"]
    assert released["since_run"] == dismissed["since_run"] == 1
    good = {"hash": device.at(4).head, "seq": 4}
    for changed, what in (
        ({"dismissed": []}, "quantity"),
        ({"dismissed": [{**dismissed, "since_run": 2}]}, "quantity"),
        ({"dismissed": [{**dismissed, "head": device.at(3).head, "seq": 3}]}, "no such branch"),
        ({"dismissed": [{**dismissed, "acceptance": 1}]}, "no such branch"),
        ({"released": []}, "quantity"),
        ({"released": [{**released, **good}]}, "was not set aside"),
    ):
        assert what in forged(biller, draft["id"], **changed)[0].what


def test_decisions_over_http_and_by_command_are_the_same(api, fleet):
    device = fleet.device(fleet.grant())
    twin = device.clone()
    device.use(5)
    twin.use(7)
    device.sync()
    twin.sync()
    (fork,) = api.get("/v1/exceptions", state="open")["items"]
    path = f"/v1/exceptions/{fork['id']}"
    api.post(f"{path}/acknowledge", {"owner": "Ada"}, expect=200)
    assert api.get("/v1/exceptions", state="acknowledged")["items"][0]["owner"] == "Ada"
    assert api.post(f"{path}/resolve", {"how": "x", "outcome": "nonsense"}, expect=422)["code"]
    body = {"how": "image", "outcome": "dismiss_branch", "branch": twin.position.head}
    assert api.post(f"{path}/resolve", body, expect=200)["outcome"] == "dismiss_branch"
    (item,) = api.get("/v1/usage", model=MODEL)["items"]
    assert (item["units"], item["dismissed"]) == (5, 7)
    assert api.post(f"{path}/reopen", {"how": "again"}, expect=200)["state"] == "open"

    def run(*arguments):
        result = fleet.invoke("--json", "exception", *arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert run("show", fork["id"]) == api.get(path)
    assert run("acknowledge", fork["id"], "--note", "n")["note"] == "n"
    assert run("resolve", fork["id"], "both", "--outcome", "bill_both")["outcome"] == "bill_both"
    assert run("reopen", fork["id"], "x")["state"] == "open"
    assert len(api.get(path)["decisions"]) == 6
