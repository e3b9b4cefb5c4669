"""Taxes, credit notes, prepaid credits, payments, voids, disputes: on a real server, each proved by its audit."""

import pytest
from account_ways import APRIL, bill_at, credit, falling, refused, stands, tax, unbalanced
from billing_fleet import DAY, FEBRUARY, JANUARY, MARCH, at

from licensing_server.accounts import service as accounts
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import disputing, service, settling
from licensing_server.licenses import service as licenses
from licensing_server.pages import Page


@pytest.fixture
def biller(biller):
    yield biller
    assert unbalanced(biller) == []


def test_tax_is_on_top_summed_per_rate_and_rounded_once(biller):
    """Three lines of 0.02 at 19 %: of 0.06 that is 0.0114, 0.01; line by line it would be nothing."""
    tax(biller, "19")
    for device in [biller.device(biller.grant()) for _ in range(3)]:
        biller.use(device, 2, at("2026-01-05"))
    final = bill_at(biller, FEBRUARY)
    assert [line["tax"] for line in final["lines"]] == [{"name": "VAT", "percent": "19"}] * 3
    assert final["taxes"] == [{"name": "VAT", "percent": "19", "base_minor": 6, "tax_minor": 1}]
    assert (final["total"], final["due_minor"]) == ("0.07", 7)
    assert stands(biller) == {"owes": "0.07", "prepaid": "0.00", "balance": "0.00"}


def test_the_rate_is_the_one_in_force_where_the_period_ends(biller):
    tax(biller, "19")
    tax(biller, "16", starts_at=FEBRUARY)
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    biller.use(device, 100, at("2026-02-05"))
    final = bill_at(biller, MARCH)
    assert [line["tax"]["percent"] for line in final["lines"]] == ["19", "16"]
    assert [(each["percent"], each["base_minor"], each["tax_minor"]) for each in final["taxes"]] == [
        ("16", 100, 16),
        ("19", 100, 19),
    ]


def test_a_tax_that_changes_for_all_who_pay_it(biller):
    other = biller.add_customer()
    tax(biller, "19")
    made = accounts.set_tax_rate(biller.server, name="VAT", percent="16", starts_at=FEBRUARY)
    assert made["customers"] == 1
    assert [each["percent"] for each in accounts.show_tax_rates(biller.server, biller.customer)["items"]] == [
        "19",
        "16",
    ]
    assert accounts.show_tax_rates(biller.server, other)["items"] == []


def test_a_rate_set_after_a_run_leaves_its_draft_as_it_is(biller):
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    tax(biller, "19")
    final = biller.finalize(draft["id"])
    assert "taxes" not in final
    assert biller.audit(draft["id"]).findings == ()


def test_below_zero_it_is_a_credit_note_and_the_balance_pays_the_next(biller):
    """100 calls at 1 are 100; the 101st makes all of them cost 0.50: 50.50, so 49.50 are given back."""
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    note = bill_at(biller, FEBRUARY + DAY)
    assert (note["number"], note["kind"], note["total"]) == ("CN-000001", "credit_note", "-49.50")
    assert [line["lowers"] for line in note["lines"]] == [invoice["number"]]
    assert (note["balance_minor"], note["due_minor"]) == (-4950, 0)
    assert stands(biller) == {"owes": "100.00", "prepaid": "0.00", "balance": "49.50"}
    biller.use(device, 30, at("2026-02-05"))
    third = bill_at(biller, MARCH)
    assert (third["total"], third["balance_minor"], third["due"]) == ("30.00", 3000, "0.00")
    biller.use(device, 30, at("2026-03-05"))
    fourth = bill_at(biller, APRIL)
    assert (fourth["number"], fourth["balance_minor"], fourth["due"]) == ("INV-000003", 1950, "10.50")
    assert [each["number"] for each in service.page(biller.server, Page(), kind="credit_note")["items"]] == [
        "CN-000001"
    ]


def test_a_credit_note_takes_the_rate_of_what_it_lowers_and_rounds_over_all_credited(biller):
    """100.00 at 19 % were billed with 19.00. Then the rate is 16 %. Of 49.50 credited the tax is 9.405: 9.41."""
    tax(biller, "19")
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    assert invoice["total"] == "119.00"
    tax(biller, "16")
    biller.use(device, 1, at("2026-01-06"))
    note = bill_at(biller, FEBRUARY + DAY)
    assert note["taxes"] == [
        {"name": "VAT", "percent": "19", "base_minor": -4950, "tax_minor": -941, "lowers": invoice["number"]}
    ]
    assert note["total"] == "-58.91"


def test_a_balance_is_paid_back_once_and_no_further(biller):
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    bill_at(biller, FEBRUARY + DAY)
    back = {"currency": "EUR", "reference": "SEPA 1"}
    assert refused(settling.refund, biller.server, biller.customer, amount="49.51", **back) == "state_conflict"
    settling.refund(biller.server, biller.customer, amount="40", **back)
    assert refused(settling.refund, biller.server, biller.customer, amount="9.51", **back) == "state_conflict"
    biller.use(device, 30, at("2026-02-05"))
    final = bill_at(biller, MARCH)
    assert (final["balance_minor"], final["due"]) == (950, "20.50")


def test_a_refund_withdraws_the_draft_that_would_have_used_it(biller):
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    bill_at(biller, FEBRUARY + DAY)
    biller.use(device, 30, at("2026-02-05"))
    biller.clock.now = MARCH
    (draft,) = biller.run()
    assert draft["due"] == "0.00"
    settling.refund(biller.server, biller.customer, currency="EUR", amount="49.50", reference="SEPA 1")
    assert refused(biller.finalize, draft["id"]) == "not_found"
    assert bill_at(biller, MARCH + DAY)["due_minor"] == 3000


def test_prepaid_credits_pay_in_their_order_for_what_they_cover(biller):
    """Of 1.00 of January and 1.00 of February: the one that expires first pays for January only, though it has 5;
    then the one of priority 0, then the one of priority 1."""
    device = biller.device(biller.grant())
    last = credit(biller, "0.30", starts_at=0, priority=1)
    middle = credit(biller, "0.80", starts_at=0)
    first = credit(biller, "5", starts_at=JANUARY - 1, expires_at=FEBRUARY)
    biller.use(device, 100, at("2026-01-05"))
    biller.use(device, 100, at("2026-02-05"))
    final = bill_at(biller, MARCH)
    assert final["credits"] == [
        {"credit": first, "amount_minor": 100},
        {"credit": middle, "amount_minor": 80},
        {"credit": last, "amount_minor": 20},
    ]
    assert final["due"] == "0.00"
    assert stands(biller) == {"owes": "0.00", "prepaid": "4.10", "balance": "0.00"}


def test_an_expired_credit_pays_for_late_usage_of_its_time_for_90_days(biller):
    device = biller.device(biller.grant())
    held = credit(biller, "5", starts_at=0, expires_at=FEBRUARY)
    biller.use(device, 100, at("2026-01-05"))
    bill_at(biller, FEBRUARY)
    device.use(50, at=at("2026-01-06"))
    biller.clock.now = FEBRUARY + 89 * DAY
    device.sync()
    final = bill_at(biller, FEBRUARY + 90 * DAY - 1)
    assert final["credits"] == [{"credit": held, "amount_minor": 50}]
    device.use(50, at=at("2026-01-07"))
    biller.clock.now += DAY
    device.sync()
    assert "credits" not in bill_at(biller, FEBRUARY + 90 * DAY)


def test_what_a_credit_paid_goes_back_to_it_the_last_one_first(biller):
    """Invoiced 100.00: 60 from the first credit, 30 from the second, 10 due. 49.50 are credited: 30 to the second,
    19.50 to the first, nothing to the balance."""
    device = falling(biller)
    one, two = credit(biller, "60", starts_at=0), credit(biller, "30", starts_at=0, priority=1)
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    assert invoice["due"] == "10.00"
    biller.use(device, 1, at("2026-01-06"))
    note = bill_at(biller, FEBRUARY + DAY)
    assert note["credits"] == [
        {"credit": two, "amount_minor": -3000, "lowers": invoice["number"]},
        {"credit": one, "amount_minor": -1950, "lowers": invoice["number"]},
    ]
    assert note["due_minor"] == 0
    assert "balance_minor" not in note
    assert stands(biller) == {"owes": "10.00", "prepaid": "49.50", "balance": "0.00"}


def test_an_invoice_is_paid_in_parts_and_then_is_not_voided(biller):
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    pay = {"reference": "SEPA 7"}
    assert refused(settling.pay, biller.server, invoice["id"], amount="1.01", **pay) == "state_conflict"
    assert refused(settling.pay, biller.server, invoice["id"], amount="0.001", **pay) == "malformed_members"
    settling.pay(biller.server, invoice["id"], amount="0.40", **pay)
    assert service.show(biller.server, invoice["id"])["state"] == "finalized"
    assert refused(settling.void, biller.server, invoice["id"], note="wrong") == "state_conflict"
    settling.pay(biller.server, invoice["id"], **pay)
    assert service.show(biller.server, invoice["id"])["state"] == "paid"
    assert refused(settling.pay, biller.server, invoice["id"], **pay) == "state_conflict"
    assert stands(biller)["owes"] == "0.00"
    assert biller.audit(invoice["id"]).findings == ()


@pytest.mark.parametrize(("paid_ahead", "state"), [("1.19", "paid"), ("1.18", "finalized")])
def test_what_credits_have_met_whole_is_paid_when_it_is_final(biller, paid_ahead, state):
    tax(biller, "19")
    credit(biller, paid_ahead, starts_at=0)
    biller.use(biller.device(biller.grant()), 100, at("2026-01-05"))
    final = bill_at(biller, FEBRUARY)
    assert (final["state"], service.show(biller.server, final["id"])["state"]) == (state, state)
    assert service.finalize(biller.server, final["id"]) == final
    shown = settling.show_payments(biller.server, final["id"])
    due = final["due_minor"]
    assert (shown["state"], shown["open_minor"], shown["paid_minor"], shown["items"]) == (state, due, 0, [])
    (logged,) = audit_log.page(biller.server, Page(), subject=final["id"])["items"]
    assert (logged["action"], logged["body"]["state"]) == ("invoice.finalize", state)
    if state == "paid":
        assert refused(settling.pay, biller.server, final["id"], reference="SEPA 1") == "state_conflict"
        assert refused(disputing.dispute, biller.server, final["id"], line=1, note="no") == "state_conflict"


def test_what_the_balance_has_met_whole_is_paid_and_a_credit_note_never_is(biller):
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    first = bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    note = bill_at(biller, FEBRUARY + DAY)
    biller.use(device, 49, at("2026-02-05"))
    met = bill_at(biller, MARCH)
    assert [each["state"] for each in (first, note, met)] == ["finalized", "finalized", "paid"]
    assert stands(biller) == {"owes": "100.00", "prepaid": "0.00", "balance": "0.50"}


def test_what_credits_alone_have_paid_can_be_void_and_they_have_it_back(biller):
    """No payment is noted on it, so none is lost; with one cent of one it stands."""
    one, two = credit(biller, "0.60", starts_at=0), credit(biller, "5", starts_at=0, priority=1)
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    first = bill_at(biller, FEBRUARY)
    assert (first["state"], stands(biller)["prepaid"]) == ("paid", "4.60")
    settling.void(biller.server, first["id"], note="wrong address")
    assert stands(biller) == {"owes": "0.00", "prepaid": "5.60", "balance": "0.00"}
    again = bill_at(biller, FEBRUARY + DAY)
    assert (again["state"], again["replaces"]) == ("paid", [first["number"]])
    assert again["credits"] == [{"credit": one, "amount_minor": 60}, {"credit": two, "amount_minor": 40}]
    disputing.concede(biller.server, again["id"], line=1, amount="0.50", note="for the outage")
    note = bill_at(biller, FEBRUARY + 2 * DAY)
    assert [(each["credit"], each["amount_minor"]) for each in note["credits"]] == [(two, -40), (one, -10)]
    assert refused(settling.void, biller.server, again["id"], note="too late") == "state_conflict"


def test_a_void_invoice_counts_as_never_billed_and_the_next_replaces_it(biller):
    tax(biller, "19")
    held = credit(biller, "0.50", starts_at=0)
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    first = bill_at(biller, FEBRUARY)
    assert (first["total"], first["due"]) == ("1.19", "0.69")
    gone = settling.void(biller.server, first["id"], note="wrong address")
    assert (gone["state"], gone["number"]) == ("void", first["number"])
    assert stands(biller) == {"owes": "0.00", "prepaid": "0.50", "balance": "0.00"}
    assert refused(settling.void, biller.server, first["id"], note="again") == "state_conflict"
    again = bill_at(biller, FEBRUARY + DAY)
    assert (again["number"], again["replaces"]) == ("INV-000002", ["INV-000001"])
    assert again["lines"] == [{**first["lines"][0], "late": True, "invoice_at": FEBRUARY + DAY}]
    assert again["credits"] == [{"credit": held, "amount_minor": 50}]
    assert settling.show_payments(biller.server, first["id"])["replaced_by"] == "INV-000002"
    biller.use(device, 100, at("2026-02-05"))
    third = bill_at(biller, MARCH)
    assert "replaces" not in third
    assert third["total"] == "1.19"
    assert biller.audit(first["id"]).findings == ()  # as it was then


def test_an_invoice_whose_credits_were_given_back_is_not_voided(biller):
    device = falling(biller)
    credit(biller, "60", starts_at=0)
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    note = bill_at(biller, FEBRUARY + DAY)
    assert refused(settling.void, biller.server, invoice["id"], note="wrong") == "state_conflict"
    settling.void(biller.server, note["id"], note="first")
    settling.void(biller.server, invoice["id"], note="then")
    again = bill_at(biller, FEBRUARY + 2 * DAY)
    assert (again["total"], again["replaces"]) == ("50.50", ["CN-000001", "INV-000001"])
    assert again["due"] == "0.00"
    assert stands(biller) == {"owes": "0.00", "prepaid": "9.50", "balance": "0.00"}


def test_a_credit_note_whose_balance_is_used_is_not_voided(biller):
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    bill_at(biller, FEBRUARY)
    biller.use(device, 1, at("2026-01-06"))
    note = bill_at(biller, FEBRUARY + DAY)
    biller.use(device, 30, at("2026-02-05"))
    bill_at(biller, MARCH)
    assert refused(settling.void, biller.server, note["id"], note="wrong") == "state_conflict"
    assert service.show(biller.server, note["id"])["state"] == "finalized"


def test_a_disputed_line_waits_and_is_not_collected(biller):
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    held = disputing.dispute(biller.server, invoice["id"], line=1, note="not ours")
    assert settling.show_payments(biller.server, invoice["id"])["open_minor"] == 0
    assert refused(settling.pay, biller.server, invoice["id"], reference="x") == "state_conflict"
    assert refused(settling.void, biller.server, invoice["id"], note="x") == "state_conflict"
    biller.use(device, 10, at("2026-01-06"))
    biller.use(device, 10, at("2026-02-05"))
    second = bill_at(biller, MARCH)
    assert [(line["service_start_at"], line["quantity"]) for line in second["lines"]] == [(FEBRUARY, 10)]
    disputing.resolve(biller.server, held["id"], outcome="stands", note="it was theirs")
    assert refused(disputing.resolve, biller.server, held["id"], outcome="stands", note="x") == "state_conflict"
    third = bill_at(biller, MARCH + DAY)
    assert [(line["quantity"], line["amount"]) for line in third["lines"]] == [(110, "0.10")]
    settling.pay(biller.server, invoice["id"], reference="SEPA 9")
    assert service.show(biller.server, invoice["id"])["state"] == "paid"


def test_a_concession_is_a_line_of_its_own_and_never_more_than_was_billed(biller):
    tax(biller, "19")
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    asked = {"line": 1, "note": "for the outage"}
    assert refused(disputing.concede, biller.server, invoice["id"], amount="1.01", **asked) == "state_conflict"
    disputing.concede(biller.server, invoice["id"], amount="0.30", **asked)
    assert refused(disputing.concede, biller.server, invoice["id"], amount="0.71", **asked) == "state_conflict"
    biller.use(device, 100, at("2026-02-05"))
    second = bill_at(biller, MARCH)
    assert [(line["kind"], line["amount"], line.get("lowers")) for line in second["lines"]] == [
        ("concession", "-0.30", invoice["number"]),
        ("measured", "1.00", None),
    ]
    assert second["total"] == "0.83"
    disputing.concede(biller.server, invoice["id"], amount="0.70", **asked)
    note = bill_at(biller, MARCH + DAY)
    assert (note["kind"], note["total"]) == ("credit_note", "-0.83")
    assert [(line["owed_minor"], line["billed_before_minor"]) for line in note["lines"]] == [(-100, -30)]


def test_a_dispute_ends_in_a_concession(biller):
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    held = disputing.dispute(biller.server, invoice["id"], line=1, note="not ours")
    refusal = refused(disputing.concede, biller.server, invoice["id"], line=1, amount="0.10", note="x")
    assert refusal == "state_conflict"
    for wrong in ({"outcome": "conceded"}, {"outcome": "stands", "amount": "1"}, {"outcome": "lost"}):
        assert refused(disputing.resolve, biller.server, held["id"], note="x", **wrong) == "malformed_members"
    disputing.resolve(biller.server, held["id"], outcome="conceded", amount="0.25", note="half of a half")
    note = bill_at(biller, FEBRUARY + DAY)
    assert (note["number"], note["total"]) == ("CN-000001", "-0.25")
    shown = disputing.show(biller.server, biller.customer)
    assert [each["outcome"] for each in shown["disputes"]] == ["conceded"]
    assert [each["amount_minor"] for each in shown["concessions"]] == [25]


def disputed(biller, invoice, line: int = 1) -> dict:
    """Dispute a line; gives how its dispute can be ended."""
    held = disputing.dispute(biller.server, invoice["id"], line=line, note="not ours")
    return {"server": biller.server, "dispute_id": held["id"], "note": "so"}


def test_what_a_concession_ended_is_not_excluded_as_well(biller):
    """The second dispute is about the same line, the third about a later one of the same charge and period."""
    device = biller.device(biller.grant())
    biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    disputing.resolve(**disputed(biller, invoice), outcome="conceded", amount="0.10")
    again = disputed(biller, invoice)
    assert refused(disputing.resolve, **again, outcome="excluded") == "state_conflict"
    disputing.resolve(**again, outcome="conceded", amount="0.10")
    biller.use(device, 100, at("2026-01-06"))
    biller.use(device, 100, at("2026-02-05"))
    later = bill_at(biller, MARCH)
    kinds = [(line["kind"], line["service_start_at"]) for line in later["lines"]]
    assert kinds == [("concession", JANUARY), ("measured", JANUARY), ("measured", FEBRUARY)]
    third = disputed(biller, later, line=2)
    assert refused(disputing.resolve, **third, outcome="excluded") == "state_conflict"
    assert [each["outcome"] for each in disputing.show(biller.server, biller.customer)["disputes"]].count(
        None
    ) == 1
    disputing.resolve(**third, outcome="stands")
    disputing.resolve(**disputed(biller, later, line=3), outcome="excluded")  # another period, another case


def test_what_an_exclusion_ended_is_not_let_off_as_well(biller):
    for device in [biller.device(biller.grant()) for _ in range(2)]:
        biller.use(device, 100, at("2026-01-05"))
    invoice = bill_at(biller, FEBRUARY)
    disputing.resolve(**disputed(biller, invoice), outcome="excluded")
    again = disputed(biller, invoice)
    assert refused(disputing.resolve, **again, outcome="conceded", amount="0.10") == "state_conflict"
    disputing.resolve(**again, outcome="excluded")
    asked = {"amount": "0.10", "note": "for the outage"}
    assert refused(disputing.concede, biller.server, invoice["id"], line=1, **asked) == "state_conflict"
    assert disputing.show(biller.server, biller.customer)["concessions"] == []
    disputing.concede(biller.server, invoice["id"], line=2, **asked)  # another license, another case
    held = disputed(biller, invoice, line=2)
    assert refused(disputing.resolve, **held, outcome="excluded") == "state_conflict"


def test_each_currency_has_an_account_of_its_own(biller):
    yen = biller.plan_of(biller.calls("100"), currency="JPY")
    here, there = biller.device(biller.grant()), biller.device(biller.grant(plan=yen))
    biller.use(here, 100, at("2026-01-05"))
    biller.use(there, 3, at("2026-01-05"))
    credit(biller, "0.40", starts_at=0)
    biller.clock.now = FEBRUARY
    finals = [biller.finalize(draft["id"]) for draft in biller.run()]
    assert sorted((each["currency"], each["due_minor"]) for each in finals) == [("EUR", 60), ("JPY", 300)]
    for final in finals:
        assert biller.audit(final["id"]).findings == ()
    items = accounts.show(biller.server, biller.customer)["items"]
    assert [(item["currency"], item["owes"]) for item in items] == [("EUR", "0.60"), ("JPY", "300")]


def test_what_is_no_money_is_refused(biller):
    add = {"customer_id": biller.customer, "server": biller.server}
    for amount in ("0", "0.001", "-1", "1e3", "1,5", "٣"):
        assert refused(accounts.add_credit, currency="EUR", amount=amount, **add) == "malformed_members"
    assert refused(accounts.add_credit, currency="XYZ", amount="1", **add) == "currency_wrong"
    ends = {"starts_at": 10, "expires_at": 10}
    assert refused(accounts.add_credit, currency="EUR", amount="1", **ends, **add) == "malformed_members"


def test_a_license_that_ended_is_credited_to_its_customer(biller):
    """A yearly fee in advance is not given back: bounds once billed stay; what is let off is."""
    plan = biller.plan_of(biller.fee("12", due="advance"))
    license_id = biller.grant(plan=plan)
    biller.device(license_id)
    biller.clock.now = at("2026-01-10")
    (draft,) = biller.run()
    final = biller.finalize(draft["id"])
    licenses.change_state(biller.server, license_id, "ended")
    disputing.concede(biller.server, final["id"], line=1, amount="5", note="ended early")
    assert bill_at(biller, FEBRUARY)["total"] == "-5.00"
