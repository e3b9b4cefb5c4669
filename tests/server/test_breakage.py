"""What is left of a prepaid credit, when nothing can be paid from it any more, is booked as breakage, once."""

import json

import pytest
import sqlalchemy as sa
from account_ways import bill_at, credit, falling, refused, unbalanced
from billing_fleet import DAY, FEBRUARY, JANUARY, at
from fastapi.testclient import TestClient
from fleet import Api

from licensing_server.accounts import journal
from licensing_server.accounts import service as accounts
from licensing_server.app import create_app
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import service, settling
from licensing_server.database import read
from licensing_server.pages import Page

OVER = FEBRUARY + 90 * DAY  # of a credit that is valid until February


@pytest.fixture
def biller(biller):
    yield biller
    assert unbalanced(biller) == []


def stands(biller) -> tuple[str, str]:
    (item,) = accounts.show(biller.server, biller.customer)["items"]
    return item["prepaid"], item["breakage"]


def broken(biller) -> list[tuple[str, str, int]]:
    """What was booked, account by account."""
    table = journal.journal.c
    chosen = sa.select(table.subject, table.account, table.amount_minor).where(table.kind == "breakage")
    with read(biller.server) as connection:
        return [tuple(row) for row in connection.execute(chosen.order_by(table.number, table.account))]


def run_at(biller, instant: int, **named) -> None:
    biller.clock.now = max(biller.clock.now, instant)
    service.run(biller.server, cut_off=instant, **named)


@pytest.fixture
def device(biller):
    return biller.device(biller.grant())


@pytest.fixture
def held(biller, device) -> str:
    """Of 5.00, valid until February, one was used in January."""
    made = credit(biller, "5", starts_at=0, expires_at=FEBRUARY)
    biller.use(device, 100, at("2026-01-05"))
    assert bill_at(biller, FEBRUARY)["credits"] == [{"credit": made, "amount_minor": 100}]
    return made


def test_it_is_booked_to_the_second_and_once(biller, held):
    run_at(biller, OVER - 1)
    assert stands(biller) == ("4.00", "0.00")
    biller.clock.now = OVER
    service.dry_run(biller.server)
    assert stands(biller) == ("4.00", "0.00")
    run_at(biller, OVER)
    assert stands(biller) == ("0.00", "4.00")
    wanted = [(held, "breakage", -400), (held, "prepaid", 400)]
    assert broken(biller) == wanted
    run_at(biller, OVER)  # asked again
    run_at(biller, OVER + DAY)
    assert broken(biller) == wanted
    (entry,) = audit_log.page(biller.server, Page(limit=200), subject=held, action="credit.breakage")["items"]
    assert (entry["who"], entry["body"]["amount_minor"]) == (audit_log.SERVER, 400)


@pytest.mark.parametrize("expires_at", [None, FEBRUARY + DAY])
def test_what_can_be_used_is_not(biller, expires_at):
    credit(biller, "5", starts_at=0, expires_at=expires_at)
    run_at(biller, OVER)
    assert stands(biller) == ("5.00", "0.00")


def test_it_is_booked_too_for_who_has_no_license_and_only_for_whom_a_run_is_about(biller, held):
    other = biller.add_customer()
    accounts.add_credit(biller.server, other, currency="JPY", amount="700", starts_at=0, expires_at=JANUARY)
    run_at(biller, OVER, customer=biller.customer)
    assert [subject for subject, _, _ in broken(biller)] == [held, held]
    run_at(biller, OVER + 1)
    (item,) = accounts.show(biller.server, other)["items"]
    assert (item["currency"], item["prepaid"], item["breakage"]) == ("JPY", "0", "700")


def test_what_is_given_back_to_it_later_is_booked_by_the_next_run(biller):
    """100.00 were paid from it. The 101st call, late: 49.50 are given back, to what nothing is paid from."""
    device = falling(biller)
    held = credit(biller, "120", starts_at=0, expires_at=FEBRUARY)
    biller.use(device, 100, at("2026-01-05"))
    bill_at(biller, FEBRUARY)
    run_at(biller, OVER)
    assert stands(biller) == ("0.00", "20.00")
    biller.use(device, 1, at("2026-01-06"))
    note = bill_at(biller, OVER + DAY)
    assert note["credits"] == [{"credit": held, "amount_minor": -4950, "lowers": "INV-000001"}]
    assert stands(biller) == ("49.50", "20.00")
    run_at(biller, OVER + 2 * DAY)
    assert stands(biller) == ("0.00", "69.50")
    assert [amount for _, account, amount in broken(biller) if account == "prepaid"] == [2000, 4950]
    assert refused(settling.void, biller.server, note["id"], note="wrong") == "state_conflict"  # it is gone
    assert stands(biller) == ("0.00", "69.50")


def test_what_a_void_invoice_gives_back_is_booked_too_and_the_next_is_not_paid_from_it(biller, held):
    run_at(biller, OVER)
    (first,) = (each["id"] for each in service.page(biller.server, Page())["items"] if each["number"])
    settling.void(biller.server, first, note="wrong")
    assert stands(biller) == ("1.00", "4.00")
    again = bill_at(biller, OVER + DAY)
    assert (again["total"], again["due_minor"]) == ("1.00", 100)
    assert stands(biller) == ("0.00", "5.00")
    assert [subject for subject, _, _ in broken(biller)] == [held] * 4


def test_a_draft_of_before_does_not_use_what_was_booked(biller, device, held):
    device.use(50, at=at("2026-01-20"))
    biller.clock.now = OVER - DAY
    device.sync()
    (draft,) = biller.run(cut_off=OVER - DAY)
    assert [use["credit"] for use in draft["credits"]] == [held]
    run_at(biller, OVER)
    assert refused(biller.finalize, draft["id"]) == "not_found"  # the run made another
    (draft,) = biller.drafts()
    assert "credits" not in biller.finalize(draft["id"])
    assert stands(biller) == ("0.00", "4.00")


@pytest.mark.usefixtures("held")
def test_it_is_shown_over_http_and_by_command(biller):
    run_at(biller, OVER)
    with TestClient(create_app(biller.server)) as client:
        (item,) = Api(client, biller.made.api_key).get(f"/v1/customers/{biller.customer}/account")["items"]
    assert (item["breakage"], item["breakage_minor"]) == ("4.00", 400)
    ran = biller.invoke("--json", "account", "show", biller.customer)
    assert json.loads(ran.stdout)["items"] == [item]
