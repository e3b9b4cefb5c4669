"""A charge in a period is corrected by an exclusion or by a concession, never by both, whichever came first."""

import pytest
from account_ways import bill_at, refused
from billing_fleet import DAY, FEBRUARY, JANUARY, MARCH, Biller, at
from fastapi.testclient import TestClient
from fleet import Api

from licensing_server.app import create_app
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import disputing
from licensing_server.pages import Page
from licensing_server.usage import deciding
from licensing_server.usage import service as usage
from licensing_server.usage.deciding import Resolution

LET_OFF = {"amount": "1", "note": "for the outage"}


class Forked:
    """A device with ten units in January, and a branch of its ledger with seven."""

    def __init__(self, biller: Biller) -> None:
        self.biller = biller
        self.device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"))))
        biller.use(self.device, 10, at("2026-01-05"))
        self.twin = self.device.clone()
        biller.use(self.twin, 7, at("2026-01-08"))

    def dismiss(self, branch=None):
        fork = self.biller.exceptions("fork")[0]["id"]
        head = (branch or self.twin).position.head
        return deciding.resolve(
            self.biller.server, fork, Resolution(how="a copy", outcome="dismiss_branch", branch=head)
        )

    def state(self):
        (item,) = usage.sum_usage(self.biller.server)["items"]
        shown = deciding.show(self.biller.server, self.biller.exceptions("fork")[0]["id"])
        return item["units"], item["dismissed"], shown["state"], shown["decisions"], self.logged()

    def logged(self):
        fork = self.biller.exceptions("fork")[0]["id"]
        return len(audit_log.page(self.biller.server, Page(limit=200), subject=fork)["items"])


@pytest.fixture
def forked(biller) -> Forked:
    made = Forked(biller)
    biller.use(made.device, 5, at("2026-02-05"))
    return made


def test_where_an_amount_was_let_off_no_branch_is_dismissed(biller, forked):
    invoice = bill_at(biller, FEBRUARY + 10 * DAY)
    assert invoice["total"] == "17.00"
    disputing.concede(biller.server, invoice["id"], line=1, **LET_OFF)
    before = forked.state()
    assert refused(forked.dismiss) == "state_conflict"
    assert forked.state() == before
    assert before[:3] == (22, 0, "open")
    final = bill_at(biller, MARCH)
    assert [line["kind"] for line in final["lines"]] == ["concession", "measured"]


def test_a_branch_of_another_period_is_another_case(biller, forked):
    invoice = bill_at(biller, FEBRUARY + 10 * DAY)
    disputing.concede(biller.server, invoice["id"], line=1, **LET_OFF)
    forked.dismiss(forked.device)  # of February alone: what is in January is on both branches
    assert forked.state()[:3] == (17, 5, "resolved")


def test_where_a_branch_was_dismissed_nothing_is_let_off(biller, forked):
    invoice = bill_at(biller, FEBRUARY + 10 * DAY)
    held = disputing.dispute(biller.server, invoice["id"], line=1, note="not ours")
    forked.dismiss()
    ended = {"server": biller.server, "dispute_id": held["id"], "note": "so"}
    assert refused(disputing.resolve, **ended, outcome="conceded", amount="1") == "state_conflict"
    disputing.resolve(**ended, outcome="stands")
    assert refused(disputing.concede, biller.server, invoice["id"], line=1, **LET_OFF) == "state_conflict"
    assert disputing.show(biller.server, biller.customer)["concessions"] == []
    final = bill_at(biller, MARCH)
    assert [(line["service_start_at"], line["amount"]) for line in final["lines"]] == [
        (JANUARY, "-7.00"),
        (FEBRUARY, "5.00"),
    ]
    disputing.concede(biller.server, final["id"], line=2, **LET_OFF)  # of February: another case


def test_another_license_is_another_case(biller):
    other = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"))))
    biller.use(other, 3, at("2026-01-04"))
    forked = Forked(biller)
    biller.use(forked.device, 5, at("2026-01-09"))
    invoice = bill_at(biller, FEBRUARY)
    place = next(n for n, line in enumerate(invoice["lines"], 1) if line["quantity"] == 3)
    disputing.concede(biller.server, invoice["id"], line=place, **LET_OFF)
    forked.dismiss()
    assert biller.exceptions("fork")[0]["state"] == "resolved"
    disputing.concede(biller.server, invoice["id"], line=place, **LET_OFF)


def test_records_that_were_in_no_sum_are_no_case(biller):
    """What was set aside on the branch was not billed: it leaves nothing, and an amount may be let off."""
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"))))
    biller.use(device, 10, at("2026-01-05"))
    twin = device.clone()
    biller.use(twin, 10**6 * 900 + 1, at("2026-01-08"))
    biller.use(device, 5, at("2026-01-09"))
    invoice = bill_at(biller, FEBRUARY)
    assert invoice["total"] == "15.00"
    disputing.concede(biller.server, invoice["id"], line=1, **LET_OFF)
    resolution = Resolution(how="a copy", outcome="dismiss_branch", branch=twin.position.head)
    deciding.resolve(biller.server, biller.exceptions("fork")[0]["id"], resolution)
    disputing.concede(biller.server, invoice["id"], line=1, **LET_OFF)


@pytest.mark.parametrize("let_off_on", ["January", "February"])
def test_what_was_carried_over_is_a_case_of_the_period_in_which_it_is_billed(biller, let_off_on):
    """Seven units of January came in February, and are billed there: January is another case."""
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"), late={"policy": "carry_over"})))
    biller.use(device, 10, at("2026-01-05"))
    twin = device.clone()
    january = bill_at(biller, FEBRUARY)
    twin.use(7, at=at("2026-01-08"))
    biller.clock.now = FEBRUARY + 5 * DAY
    twin.sync()
    biller.use(device, 5, at("2026-02-07"))
    february = bill_at(biller, MARCH)
    assert [line["quantity"] for line in february["lines"]] == [12]
    one, other = (january, february) if let_off_on == "January" else (february, january)
    disputing.concede(biller.server, one["id"], line=1, **LET_OFF)
    fork = biller.exceptions("fork")[0]["id"]
    resolution = Resolution(how="a copy", outcome="dismiss_branch", branch=twin.position.head)
    if one is february:
        assert refused(deciding.resolve, biller.server, fork, resolution) == "state_conflict"
        return
    deciding.resolve(biller.server, fork, resolution)
    assert refused(disputing.concede, biller.server, other["id"], line=1, **LET_OFF) == "state_conflict"
    disputing.concede(biller.server, one["id"], line=1, **LET_OFF)


def test_over_http(biller, forked):
    invoice = bill_at(biller, FEBRUARY + 10 * DAY)
    fork = biller.exceptions("fork")[0]["id"]
    body = {"how": "a copy", "outcome": "dismiss_branch", "branch": forked.twin.position.head}
    with TestClient(create_app(biller.server)) as client:
        api = Api(client, biller.made.api_key)
        api.post(f"/v1/invoices/{invoice['id']}/concessions", {"line": 1, **LET_OFF})
        refusal = api.post(f"/v1/exceptions/{fork}/resolve", body, expect=409)
        assert refusal["code"] == "state_conflict"
        api.post(f"/v1/exceptions/{fork}/resolve", {"how": "seen"}, expect=200)
