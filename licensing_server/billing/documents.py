"""What a run bills a customer, as documents: computed, drafted, frozen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import account_books, computing
from licensing_server.billing import evidence as gathering
from licensing_server.billing.account_books import Books
from licensing_server.billing.computing import Billing
from licensing_server.billing.store import Invoice
from licensing_server.customers.store import Customer
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import envelopes, evidence
from meterkit.accounts import Account, History
from meterkit.attribution import Run
from meterkit.canonical import to_bytes
from meterkit.documents import Bills, Settled, members, settle
from meterkit.terms import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a run bills a customer in one currency, the terms by which it does, and the account it draws on."""

    currency: str
    settled: Settled
    terms: tuple[Terms, ...]
    account: Account
    body: Document


def compute(connection: sa.Connection, customer: Customer, run: Run) -> list[Computed]:
    """Work out a customer's documents by the one rule, as known at a run: one per currency that has lines.

    Each line cites its records.
    """
    return _compute_all(connection, [customer], run, cited=True)[customer.id]


def draft_all(connection: sa.Connection, customers: Iterable[Customer], run: Run) -> dict[str, list[Computed]]:
    """Work out the same of several customers at once, but cite no records: a draft proves nothing yet."""
    found = _compute_all(connection, customers, run, cited=False)
    return {customer: [replace(made, body=_uncited(made.body)) for made in own] for customer, own in found.items()}


def _uncited(body: Document) -> Document:
    lines = [{name: value for name, value in line.items() if name != "records"} for line in body["lines"]]
    return {**body, "lines": lines}


def _compute_all(
    connection: sa.Connection, customers: Iterable[Customer], run: Run, *, cited: bool
) -> dict[str, list[Computed]]:
    every = list(computing.read_all(connection, customers, run, cited=cited))
    bills = {each.id: each.bills_by_currency() for each in every}
    with_books = [each for each in every if each.has_account or _lowers(bills[each.id])]
    decided = {each.id: each.decided for each in with_books}
    books = account_books.read(connection, [each.id for each in with_books], decided, run)
    return {
        each.id: [_settle(each, currency, own, books) for currency, own in bills[each.id].items()]
        for each in every
    }


def _lowers(bills: Mapping[str, Bills]) -> bool:
    """Whether any line is below zero, and so lowers one of an earlier document."""
    return any(line.amount_minor < 0 for own in bills.values() for line in own.lines)


def _settle(each: Billing, currency: str, bills: Bills, books: Books) -> Computed:
    """Make a customer's document in a currency."""
    run, account, history = each.runs[-1], Account(), History()
    if each.has_account or any(line.amount_minor < 0 for line in bills.lines):
        account, history = books.account(each.id, currency), books.history(each.id, currency)
    settled = settle(bills, run=run, account=account, history=history)
    body = members(settled, run=run, currency=currency)
    return Computed(currency=currency, settled=settled, terms=each.terms, account=account, body=body)


def figures(settled: Settled) -> dict[str, Any]:
    """What is kept of a document beside its bytes, to be asked for and summed."""
    return {
        "kind": settled.kind,
        "total_minor": settled.total_minor,
        "due_minor": settled.due_minor,
        "balance_minor": settled.balance_minor,
    }


def draft_bytes(invoice: Invoice, customer: Customer, made: Computed) -> bytes:
    """Write a draft: all that the invoice will say, but for number, date and evidence."""
    return to_bytes({**_head(invoice, customer), **made.body, "evidence": None})


def freeze(
    server: Server,
    connection: sa.Connection,
    invoice: Invoice,
    made: Computed,
    *,
    customer: Customer,
    run: Run,
) -> tuple[bytes, bytes]:
    """Write an invoice and its evidence, for good: the document's bytes, and the signed ZIP's."""
    if invoice.number is None or invoice.finalized_at is None:
        raise ValueError("an invoice is frozen when it has its number and date")
    parts = gathering.gather(server, connection, invoice, run, made.terms)
    if made.account != Account():
        parts[evidence.ACCOUNT] = to_bytes(made.account.to_claims())
    document = {**_head(invoice, customer), **made.body, "evidence": evidence.digest_of(parts)}
    evidence.INVOICE_SHAPE(document, "invoice")
    parts[evidence.INVOICE] = to_bytes(document)
    claims = evidence.manifest_claims(
        issuer=server.issuer, iat=invoice.finalized_at, invoice=invoice.number, parts=parts
    )
    bundle = evidence.Bundle(manifest=server.sign(envelopes.EVIDENCE, claims), parts=parts)
    return parts[evidence.INVOICE], evidence.write_zip(bundle)


def announced(invoice: Invoice) -> Document:
    """What is told of an invoice to who asked to be told."""
    told = ("number", "kind", "customer", "currency", "run", "total_minor", "due_minor")
    return {"invoice": invoice.id, **{name: getattr(invoice, name) for name in told}}


def _head(invoice: Invoice, customer: Customer) -> Document:
    return {
        "v": 1,
        "id": invoice.id,
        "number": invoice.number,
        "customer": customer.id,
        "customer_name": customer.name,
        "time_zone": customer.time_zone,
        "finalized_at": invoice.finalized_at,
    }
