"""What becomes of documents: paid, void, and what is paid back of a balance (BILLING §5).

A decision that changes what a customer's next document would say withdraws the draft that says otherwise; a draft
bills nothing, and the next run makes another.
"""

from dataclasses import replace

from licensing_server.accounts import journal
from licensing_server.accounts import store as accounts
from licensing_server.accounts.journal import BALANCE, CASH, RECEIVABLE, About
from licensing_server.accounts.service import read_amount
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import account_store, booking, dispute_store, store
from licensing_server.billing.service import find
from licensing_server.billing.store import Invoice
from licensing_server.customers import service as customers
from licensing_server.database import Connection, number_to_come, read
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import money
from meterkit.documents import CREDIT_NOTE, INVOICE
from meterkit.errors import InputError, ServiceError


def pay(
    server: Server,
    invoice_id: str,
    *,
    reference: str,
    amount: str | None = None,
    paid_at: int | None = None,
    once: Once = NO_KEY,
) -> Document:
    """Note that an invoice was paid: whole, or a part of it. With the last part it is `paid`.

    Raises:
        InputError: `malformed_members` for no amount of its currency, or an instant still to come.
        ServiceError: `not_found`; `state_conflict` for a draft, a credit note, a void document, or more than is
            open: a line that is disputed is not collected.
    """

    def make(connection: Connection) -> Document:
        invoice = find(connection, invoice_id)
        open_minor = _open(connection, invoice)
        amount_minor = open_minor if amount is None else read_amount(amount, invoice.currency)
        if (invoice.kind, invoice.state) != (INVOICE, "finalized") or not 0 < amount_minor <= open_minor:
            shown = money.to_text(open_minor, invoice.currency)
            raise ServiceError("state_conflict", f"{invoice.state}, {shown} is open")
        now = server.clock()
        if paid_at is not None and paid_at > now:
            raise InputError("malformed_members", "paid_at: it is still to come")
        row = {
            "id": server.make_id("pay"),
            "invoice": invoice_id,
            "amount_minor": amount_minor,
            "reference": reference,
            "paid_at": now if paid_at is None else paid_at,
            "created_at": now,
        }
        account_store.insert_payment(connection, row)
        moved = {CASH: amount_minor, RECEIVABLE: -amount_minor}
        journal.post(connection, booking.about(invoice, now, "payment"), moved)
        if account_store.paid(connection, invoice_id) == invoice.due_minor:
            store.set_state(connection, invoice_id, "paid")
        _log(server, connection, once, f"{invoice.kind}.pay", row)
        return row

    return once.run(server, make)


def _open(connection: Connection, invoice: Invoice) -> int:
    """What is to be collected: what is due, less what was paid and what is disputed."""
    settled = account_store.paid(connection, invoice.id) + dispute_store.withheld(connection, invoice.id)
    return max(0, invoice.due_minor - settled)


def void(server: Server, invoice_id: str, *, note: str, once: Once = NO_KEY) -> Document:
    """Take a document back: it keeps its number, and its lines count as never billed from the next run on.

    The next run bills what is owed anew, in a document that says which one it replaces. What prepaid credits and
    the balance had met goes back to them, also where they had met it whole: no payment is noted, so none is lost.

    Raises:
        ServiceError: `not_found`; `state_conflict` for a draft, for what payments are noted on, for a document
            that a later one lowers, for a line in dispute, or where what a credit note gave, to the balance or to
            a prepaid credit, is used up.
    """

    def make(connection: Connection) -> Document:
        invoice = find(connection, invoice_id)
        _check_voidable(connection, invoice)
        since_run = number_to_come(connection, "billing_run")
        store.set_state(connection, invoice_id, "void", void_run=since_run)
        about = booking.about(invoice, server.clock(), "void")
        journal.reverse(connection, about, (INVOICE, CREDIT_NOTE))
        booking.check_funds(connection, invoice)
        store.delete_drafts(connection, [invoice.customer])
        body = {"number": invoice.number, "note": note, "since_run": since_run}
        audit_log.append(
            server, connection, who=once.who, action=f"{invoice.kind}.void", subject=invoice_id, body=body
        )
        return replace(invoice, state="void", void_run=since_run).to_document()

    return once.run(server, make)


def _check_voidable(connection: Connection, invoice: Invoice) -> None:
    if invoice.state not in ("finalized", "paid") or account_store.paid(connection, invoice.id):
        raise ServiceError("state_conflict", "only what is final and has no payment, not even a part, can be void")
    lowered = account_store.lowered_by(connection, invoice.number or "")
    if lowered is not None:
        raise ServiceError("state_conflict", f"{lowered} lowers it")
    if dispute_store.withheld(connection, invoice.id):
        raise ServiceError("state_conflict", "a line of it is disputed")


def refund(
    server: Server, customer_id: str, *, currency: str, amount: str, reference: str, once: Once = NO_KEY
) -> Document:
    """Note that a part of a customer's balance was paid back by hand.

    Raises:
        InputError: `malformed_members` for no amount of the currency.
        ServiceError: `not_found`, `currency_wrong`; `state_conflict` for more than the balance.
    """
    amount_minor = read_amount(amount, currency)

    def make(connection: Connection) -> Document:
        customers.find(connection, customer_id)
        held = journal.balance(connection, customer_id, currency)
        if amount_minor > held:
            raise ServiceError("state_conflict", f"the balance is {money.to_text(held, currency)}")
        now = server.clock()
        refund_id = server.make_id("ref")
        row = {
            "id": refund_id,
            "customer": customer_id,
            "currency": currency,
            "amount_minor": amount_minor,
            "reference": reference,
            "since_run": number_to_come(connection, "billing_run"),
            "created_at": now,
        }
        accounts.insert_refund(connection, row)
        about = About(at=now, kind="refund", subject=refund_id, customer=customer_id, currency=currency)
        journal.post(connection, about, {BALANCE: amount_minor, CASH: -amount_minor})
        store.delete_drafts(connection, [customer_id])
        _log(server, connection, once, "balance.refund", row)
        return row

    return once.run(server, make)


def show_payments(server: Server, invoice_id: str) -> Document:
    """Show what was paid on an invoice, what is disputed, and what is open."""
    with read(server) as connection:
        invoice = find(connection, invoice_id)
        is_open = invoice.state == "finalized"
        return {
            "invoice": invoice_id,
            "state": invoice.state,
            "due_minor": invoice.due_minor,
            "paid_minor": account_store.paid(connection, invoice_id),
            "disputed_minor": dispute_store.withheld(connection, invoice_id),
            "open_minor": _open(connection, invoice) if is_open else 0,
            "replaced_by": account_store.replacement_of(connection, invoice.number or ""),
            "items": account_store.read_payments(connection, invoice_id),
        }


def _log(server: Server, connection: Connection, once: Once, action: str, row: Document) -> None:
    audit_log.append(server, connection, who=once.who, action=action, subject=row["id"], body=row)
