"""No account gives what is not there: to two who ask at once, to a run that was interrupted, or by a void."""

import threading

import pytest
from account_life import Life
from account_ways import APRIL, FALLING, bill_at, credit, falling, refused, stands, tax, unbalanced
from billing_fleet import DAY, FEBRUARY, JANUARY, MARCH, at
from killing import Killed, kill_at

from licensing_server.billing import disputing, service, settling
from licensing_server.billing.store import invoices
from licensing_server.database import write
from licensing_server.pages import Page
from meterkit.errors import ServiceError


@pytest.fixture
def biller(biller):
    yield biller
    assert unbalanced(biller) == []


def with_note(biller) -> tuple:
    """A device, its invoice of 100.00, and the credit note of 49.50 that lowers it."""
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    return device, invoice, bill_at(biller, FEBRUARY + DAY)


def let_a_run_die(biller) -> None:
    """Its limits are stored, and nobody is billed yet."""
    with write(biller.server) as connection:
        service._start(biller.server, connection, None, None, "test")


def test_a_credit_note_is_not_void_once_a_credit_has_used_what_it_got_back(biller):
    """A credit of 60.00 paid for January, got 49.50 back, and paid 49.50 for February: void, it would have paid
    109.50."""
    held = credit(biller, "60", starts_at=0)
    device, _, note = with_note(biller)
    assert note["credits"] == [{"credit": held, "amount_minor": -4950, "lowers": "INV-000001"}]
    biller.use(device, 60, at("2026-02-05"))
    assert bill_at(biller, MARCH)["credits"] == [{"credit": held, "amount_minor": 4950}]
    assert refused(settling.void, biller.server, note["id"], note="wrong") == "state_conflict"
    assert stands(biller)["prepaid"] == "0.00"


def test_a_run_that_was_interrupted_does_not_use_what_was_paid_back_since(biller):
    device, _, _ = with_note(biller)
    biller.use(device, 60, at("2026-02-05"))
    biller.clock.now = MARCH
    let_a_run_die(biller)
    settling.refund(biller.server, biller.customer, currency="EUR", amount="49.50", reference="SEPA 1")
    service._finish_open(biller.server)
    (draft,) = biller.drafts()
    assert draft["balance_minor"] == 4950
    assert refused(biller.finalize, draft["id"]) == "state_conflict"
    assert stands(biller)["balance"] == "0.00"
    final = bill_at(biller, MARCH + DAY)
    assert (final["number"], final["due_minor"]) == ("INV-000002", 6000)


@pytest.mark.parametrize("paid_ahead", [None, "60"])
def test_nor_what_a_void_document_took_back(biller, paid_ahead):
    if paid_ahead:
        credit(biller, paid_ahead, starts_at=0)
    device, _, note = with_note(biller)
    biller.use(device, 60, at("2026-02-05"))
    biller.clock.now = MARCH
    let_a_run_die(biller)
    settling.void(biller.server, note["id"], note="wrong")
    service._finish_open(biller.server)
    (draft,) = biller.drafts()
    assert refused(biller.finalize, draft["id"]) == "state_conflict"
    final = bill_at(biller, MARCH + DAY)
    assert (final["number"], final["total"], final["replaces"]) == ("INV-000002", "10.50", ["CN-000001"])


def test_an_invoice_that_is_lowered_is_not_void_though_it_has_no_tax(biller):
    _, invoice, note = with_note(biller)
    assert refused(settling.void, biller.server, invoice["id"], note="wrong") == "state_conflict"
    settling.void(biller.server, note["id"], note="first")
    settling.void(biller.server, invoice["id"], note="then")


def test_nor_where_a_later_invoice_lowers_it(biller):
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    biller.use(device, 90, at("2026-02-05"))
    second = bill_at(biller, MARCH)
    assert (second["kind"], second["lines"][0]["lowers"]) == ("invoice", invoice["number"])
    assert refused(settling.void, biller.server, invoice["id"], note="wrong") == "state_conflict"
    settling.void(biller.server, second["id"], note="first")
    settling.void(biller.server, invoice["id"], note="then")
    assert bill_at(biller, APRIL)["total"] == "140.50"


def test_the_tax_of_a_disputed_line_is_not_collected_either(biller):
    """Two lines of 1.00 with 19 %: one is disputed, so 1.19 of 2.38 are open."""
    tax(biller, "19")
    for device in [biller.device(biller.grant()) for _ in range(2)]:
        biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    held = disputing.dispute(biller.server, invoice["id"], line=2, note="not ours")
    shown = settling.show_payments(biller.server, invoice["id"])
    assert (shown["due_minor"], shown["disputed_minor"], shown["open_minor"]) == (238, 119, 119)
    settling.pay(biller.server, invoice["id"], reference="SEPA 1")
    assert service.show(biller.server, invoice["id"])["state"] == "finalized"
    disputing.resolve(biller.server, held["id"], outcome="stands", note="theirs")
    settling.pay(biller.server, invoice["id"], reference="SEPA 2")
    assert service.show(biller.server, invoice["id"])["state"] == "paid"


def test_an_excluded_outcome_ends_a_dispute_and_changes_no_unit(biller):
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    held = disputing.dispute(biller.server, invoice["id"], line=1, note="not ours")
    disputing.resolve(biller.server, held["id"], outcome="excluded", note="see the exception")
    biller.clock.now += DAY
    assert biller.run() == []


# -- who asks at once


def at_once(*acts) -> list:
    """Let each act begin at the same moment; gives what each made, or the code by which it was refused."""
    ready, found = threading.Barrier(len(acts)), [None] * len(acts)

    def ask(place: int) -> None:
        ready.wait(20)
        try:
            found[place] = acts[place]()
        except ServiceError as error:
            found[place] = error.code

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(acts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert None not in found
    return found


def test_two_who_finalize_one_draft_get_one_invoice(biller):
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    found = at_once(*[lambda: service.finalize(biller.server, draft["id"])] * 4)
    assert [each["number"] for each in found] == ["INV-000001"] * 4
    assert found[0] == found[1] == found[2] == found[3]
    assert stands(biller)["owes"] == "1.00"


@pytest.mark.parametrize("how", ["refund", "void"])
def test_a_balance_is_given_once(biller, how):
    """A draft takes the balance; at the same time it is paid back, or the credit note that gave it is void."""
    device, _, note = with_note(biller)
    biller.use(device, 60, at("2026-02-05"))
    biller.clock.now = MARCH
    (draft,) = biller.run()
    other = {
        "refund": lambda: settling.refund(
            biller.server, biller.customer, currency="EUR", amount="49.50", reference="x"
        ),
        "void": lambda: settling.void(biller.server, note["id"], note="wrong"),
    }[how]
    final, given = at_once(lambda: service.finalize(biller.server, draft["id"]), other)
    assert (final in ("not_found", "state_conflict")) != (given == "state_conflict")
    assert stands(biller)["balance"] == "0.00"


def test_a_line_is_disputed_once_and_a_payment_is_noted_once(biller):
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    acts = [lambda: disputing.dispute(biller.server, invoice["id"], line=1, note="x")] * 2
    acts += [lambda: settling.pay(biller.server, invoice["id"], reference="x")] * 2
    found = at_once(*acts)
    assert sum(isinstance(each, dict) for each in found) == 1  # what is paid is not disputed, nor the reverse


def test_two_runs_at_once_bill_once(biller):
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    biller.clock.now = MARCH
    found = at_once(*[lambda day=day: service.run(biller.server, cut_off=FEBRUARY + day * DAY) for day in (0, 1)])
    assert all(made == "run_superseded" or made["state"] == "done" for made in found)
    (draft,) = biller.drafts()
    assert draft["total"] == "1.00"


# -- who dies


def settle_all(biller) -> None:
    service.run(biller.server, cut_off=MARCH)
    for item in service.page(biller.server, Page(limit=200))["items"]:
        service.finalize(biller.server, item["id"])


def all_of(biller) -> list[tuple]:
    life = Life.__new__(Life)
    life.biller, life.currency, life.frozen = biller, "EUR", {}
    life.check()
    return [(row.number, row.state, row.total_minor, row.due_minor, row.balance_minor) for row in life.final()]


def test_killed_at_any_statement_of_a_credit_note_it_is_numbered_and_booked_once(biller, tmp_path):
    tax(biller, "19")
    credit(biller, "50", starts_at=0)
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    biller.clock.now = MARCH
    biller.close()
    whole = biller.copy(tmp_path / "whole", seed=9)
    settle_all(whole)
    expected = all_of(whole)
    assert expected == [("INV-000001", "finalized", 11900, 6900, 0), ("CN-000001", "finalized", -5891, 0, -891)]
    whole.remove()
    stride = 5 if biller.cluster else 2  # each takes a second or so
    nth, died = 30, True  # what comes before is the run's, see test_billing_faults.py
    while died:
        nth += stride
        again = biller.copy(tmp_path / str(nth), seed=9)
        kill_at(again.server.engine, nth)
        try:
            settle_all(again)
            died = False
        except Killed:
            again.reopen()
            settle_all(again)
        again.reopen()
        assert all_of(again) == expected, f"killed at statement {nth}"
        again.remove()
    assert nth > 50


def test_the_rate_that_begins_with_a_month_is_not_the_one_before_s(biller):
    tax(biller, "19")
    tax(biller, "16", starts_at=FEBRUARY)
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls_at(FALLING))))
    biller.use(device, 50, JANUARY + DAY)
    assert bill_at(biller, FEBRUARY)["taxes"][0]["percent"] == "19"
    biller.use(device, 50, FEBRUARY + DAY)
    assert bill_at(biller, MARCH)["taxes"][0]["percent"] == "16"


def test_no_state_is_left_by_what_is_refused(biller):
    """A refused void changes neither the document nor the journal, nor is a draft withdrawn."""
    device, invoice, _ = with_note(biller)
    biller.use(device, 60, at("2026-02-05"))
    biller.clock.now = MARCH
    (draft,) = biller.run()
    before = stands(biller)
    assert refused(settling.void, biller.server, invoice["id"], note="wrong") == "state_conflict"
    assert (stands(biller), [each["id"] for each in biller.drafts()]) == (before, [draft["id"]])
    life = Life.__new__(Life)
    life.biller = biller
    assert {row.state for row in life.rows(invoices)} == {"finalized", "draft"}
