"""Lines that a customer disputes, and amounts that are let off (BILLING §3, §5).

A disputed line is not collected, and its key is not billed on until the dispute ends. It ends by nothing, by an
exclusion of records (a decision about an exception, which changes the units), or by a concession (which leaves
them): never by both. A case is a charge in a period, however many disputes and lines it has.
"""

from collections.abc import Mapping
from typing import Any

from licensing_server.accounts.service import read_amount
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import account_store, dispute_store, pending, store, ways
from licensing_server.billing import terms as customer_terms
from licensing_server.billing.service import find
from licensing_server.billing.store import Invoice
from licensing_server.customers import service as customers
from licensing_server.database import Connection, number_to_come, read
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit.errors import InputError, ServiceError
from meterkit.lines import Key, Line

OUTCOMES = ("stands", "excluded", "conceded")


def dispute(server: Server, invoice_id: str, *, line: int, note: str, once: Once = NO_KEY) -> Document:
    """Hold a line of an invoice: its amount is not collected, and its key waits.

    Raises:
        ServiceError: `not_found` for no such invoice or line; `state_conflict` for a draft, for what is paid or
            void, for a line below zero, or where its key is disputed already.
    """

    def make(connection: Connection) -> Document:
        invoice = find(connection, invoice_id)
        found = _line(connection, invoice, line)
        if invoice.state != "finalized" or found.amount_minor <= 0:
            raise ServiceError("state_conflict", f"{invoice.state}, {found.amount_minor} minor units")
        key = store.key_from_row(found)
        if dispute_store.open_dispute(connection, key) is not None:
            raise ServiceError("state_conflict", "it is disputed already")
        row = {
            "id": server.make_id("dsp"),
            "customer": invoice.customer,
            "invoice": invoice_id,
            "line": line,
            **dispute_store.key_to_row(key),
            "amount_minor": _gross(found),
            "note": note,
            "since_run": number_to_come(connection, "billing_run"),
            "until_run": None,
            "outcome": None,
            "created_at": server.clock(),
        }
        dispute_store.insert_dispute(connection, row)
        return _decided(server, connection, once, "dispute.open", row)

    return once.run(server, make)


def resolve(
    server: Server,
    dispute_id: str,
    *,
    outcome: str,
    note: str,
    amount: str | None = None,
    once: Once = NO_KEY,
) -> Document:
    """End a dispute: the line stands, its records were excluded, or an amount is conceded.

    Raises:
        InputError: `malformed_members` for an unknown outcome, or an amount where none is conceded.
        ServiceError: `not_found`; `state_conflict` for one that has ended, for more conceded than is billed, or
            where its charge and period took the other way: records excluded, or an amount let off.
    """
    if outcome not in OUTCOMES or (outcome == "conceded") != (amount is not None):
        raise InputError("malformed_members", f"outcome: one of {', '.join(OUTCOMES)}; an amount where conceded")

    def make(connection: Connection) -> Document:
        found = dispute_store.find_dispute(connection, dispute_id)
        if found is None:
            raise ServiceError("not_found", "dispute")
        if found.outcome is not None:
            raise ServiceError("state_conflict", found.outcome)
        until_run = number_to_come(connection, "billing_run")
        if outcome == "excluded" and dispute_store.is_conceded(connection, store.key_from_row(found)):
            raise ServiceError("state_conflict", "an amount was let off on it: records are not excluded as well")
        if amount is not None:
            invoice = find(connection, found.invoice)
            _concede(server, connection, found, amount, note, invoice=invoice)
        dispute_store.end_dispute(connection, dispute_id, outcome=outcome, until_run=until_run)
        row = {"id": dispute_id, "customer": found.customer, "outcome": outcome, "until_run": until_run}
        return _decided(server, connection, once, "dispute.resolve", {**row, "note": note})

    return once.run(server, make)


def concede(
    server: Server, invoice_id: str, *, line: int, amount: str, note: str, once: Once = NO_KEY
) -> Document:
    """Let off an amount on a line, whatever was used: the next run has it as a line of its own, below zero.

    Raises:
        ServiceError: `not_found`; `state_conflict` for a draft or a void document, while the line is disputed,
            for more than is billed on its charge and period, or where records of these were excluded.
    """

    def make(connection: Connection) -> Document:
        invoice = find(connection, invoice_id)
        found = _line(connection, invoice, line)
        if invoice.state not in ("finalized", "paid"):
            raise ServiceError("state_conflict", invoice.state)
        if dispute_store.open_dispute(connection, store.key_from_row(found)) is not None:
            raise ServiceError("state_conflict", "it is disputed; end the dispute by a concession")
        row = _concede(server, connection, found, amount, note, invoice=invoice)
        return _decided(server, connection, once, "concession.grant", row)

    return once.run(server, make)


def _concede(
    server: Server, connection: Connection, about: Any, amount: str, note: str, *, invoice: Invoice
) -> Document:
    key = store.key_from_row(about)
    amount_minor = read_amount(amount, invoice.currency)
    if ways.is_excluded(connection, key):
        raise ServiceError("state_conflict", "records of it were excluded: nothing is let off as well")
    if not customer_terms.counts(connection, invoice.customer, key):
        raise ServiceError("state_conflict", "a correction withdraws it: nothing is let off as well")
    if amount_minor > dispute_store.billed_on(connection, key):
        raise ServiceError("state_conflict", "not more can be conceded than is billed")
    row = {
        "id": server.make_id("con"),
        "customer": invoice.customer,
        **dispute_store.key_to_row(key),
        "kind": "concession",
        "amount_minor": amount_minor,
        "note": note,
        "since_run": number_to_come(connection, "billing_run"),
        "created_at": server.clock(),
    }
    dispute_store.insert_concession(connection, row)
    return row


def _line(connection: Connection, invoice: Invoice, place: int) -> Any:
    found = dispute_store.find_line(connection, invoice.id, place)
    if found is None:
        raise ServiceError("not_found", "line")
    return found


def _gross(line: Any) -> int:
    """A line with its tax: neither is collected while it is disputed."""
    tax = account_store.tax_of(line)
    return int(line.amount_minor) + (tax.on(line.amount_minor) if tax else 0)


def _decided(server: Server, connection: Connection, once: Once, action: str, row: Document) -> Document:
    """Withdraw the draft that does not know of it, and log it."""
    store.delete_drafts(connection, [row["customer"]])
    audit_log.append(server, connection, who=once.who, action=action, subject=row["id"], body=row)
    return row


def show(server: Server, customer_id: str) -> Document:
    """Show a customer's disputes and concessions; with a dispute that has not ended, what waits for its end.

    Raises:
        ServiceError: `not_found`.
    """
    with read(server) as connection:
        customers.find(connection, customer_id)
        held = dispute_store.list_disputes(connection, customer_id)
        conceded = dispute_store.list_concessions(connection, customer_id)
    waits = pending.of_disputes(server, customer_id) if any(row["outcome"] is None for row in held) else {}
    return {"disputes": [_with_pending(row, waits) for row in held], "concessions": conceded}


def _with_pending(row: Document, waits: Mapping[Key, Line]) -> Document:
    """A dispute with what waits for its end, None where nothing does, in units and minor units."""
    line = waits.get(dispute_store.key_of(row)) if row["outcome"] is None else None
    if line is None:
        return {**row, "pending_quantity": None, "pending_minor": None}
    return {
        **row,
        "pending_quantity": line.quantity - line.quantity_before,
        "pending_minor": line.amount_minor,
    }
