"""Billing that is interrupted, anywhere: it goes on, and nothing is billed twice (BILLING §3)."""

import pytest
import sqlalchemy as sa
from billing_fleet import FEBRUARY, MARCH, at
from killing import Killed, kill_at

from licensing_server.billing import service
from licensing_server.billing.store import invoice_lines, invoices
from licensing_server.database import read
from licensing_server.pages import Page


def all_lines(biller) -> list[tuple]:
    with read(biller.server) as connection:
        chosen = sa.select(
            invoices.c.number, invoice_lines.c.charge, invoice_lines.c.start_at, invoice_lines.c.amount_minor
        ).join(invoices, invoices.c.id == invoice_lines.c.invoice)
        return [
            tuple(row) for row in connection.execute(chosen.order_by(invoices.c.number, invoice_lines.c.place))
        ]


def bill_all(biller) -> None:
    """Run, and finalize what was drafted."""
    made = service.run(biller.server, cut_off=FEBRUARY)
    assert made["state"] == "done"
    for item in service.page(biller.server, Page(limit=200))["items"]:
        service.finalize(biller.server, item["id"])


def test_killed_at_any_statement_it_goes_on_and_bills_once(biller, tmp_path):
    biller.use(biller.device(biller.grant()), 150, at("2026-01-05"))
    biller.clock.now = MARCH
    biller.close()
    whole = biller.copy(tmp_path / "whole", seed=9)
    bill_all(whole)
    expected = all_lines(whole)
    assert len(expected) == 1

    stride = 4 if biller.cluster else 1  # to copy a database takes PostgreSQL a second
    nth, died = 0, True
    while died:
        nth += stride
        again = biller.copy(tmp_path / str(nth), seed=9)
        kill_at(again.server.engine, nth)
        try:
            bill_all(again)
            died = False
        except Killed:
            again.reopen()
            bill_all(again)
        again.reopen()
        assert all_lines(again) == expected, f"killed at statement {nth}"
        again.remove()
    whole.remove()
    assert nth > 40


def test_an_interrupted_run_is_finished_before_the_next_begins(biller):
    device = biller.device(biller.grant())
    biller.use(device, 150, at("2026-01-05"))
    biller.clock.now = MARCH
    kill_at(biller.server.engine, 16)
    with pytest.raises(Killed):
        service.run(biller.server, cut_off=FEBRUARY)
    biller.reopen()
    assert service.show_run(biller.server, 1)["state"] == "open"
    service.run(biller.server, cut_off=MARCH)
    assert service.show_run(biller.server, 1)["state"] == "done"
    assert [item["run"] for item in service.page(biller.server, Page())["items"]] == [2]


def test_one_customer_who_cannot_be_billed_holds_up_nobody(biller):
    other = biller.add_customer()
    for customer in (biller.customer, other):
        device = biller.device(biller.grant(customer=customer, plan=biller.plan_of(biller.calls("1"))))
        biller.use(device, 2, at("2026-01-01T10:00"))
    biller.spoil_plan(customer=other)
    biller.clock.now = FEBRUARY
    made = service.run(biller.server)
    assert made["failed"] == [{"customer": other, "code": "malformed_plan"}]
    assert made["state"] == "open"
    (invoice_id,) = made["invoices"]
    assert service.finalize(biller.server, invoice_id)["total"] == "2.00"
    biller.mend_plans()
    biller.clock.now = MARCH
    made = service.run(biller.server)
    assert service.show_run(biller.server, 1)["state"] == "done"
    (invoice_id,) = made["invoices"]
    assert service.show(biller.server, invoice_id)["customer"] == other
