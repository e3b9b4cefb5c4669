"""What a run bills a customer, as documents: computed, drafted, frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import account_store, dispute_store, lateness, store, sums
from licensing_server.billing import evidence as gathering
from licensing_server.billing import terms as customer_terms
from licensing_server.billing.store import Invoice
from licensing_server.customers.store import Customer
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import envelopes, evidence, invoices
from meterkit.accounts import Account
from meterkit.attribution import Run, Slot, Usage
from meterkit.canonical import to_bytes
from meterkit.documents import Bills, Settled, members, settle
from meterkit.lateness import closed_by, deadlines
from meterkit.lines import Beside, Line, of_license
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
    """Work out a customer's documents by the one rule, as known at a run: one per currency that has lines."""
    terms = customer_terms.read(connection, customer.id, customer.zone, run)
    usage = sums.read(connection, customer.id, run, terms)
    billed = store.read_billed(connection, [each.license_id for each in terms], run.number)
    runs = store.runs_of(connection, customer.id, run.number)
    decided = dispute_store.read_decided(connection, customer.id)
    conceded, disputed = decided.conceded(run), decided.disputed(run)
    lines: dict[str, list[Line]] = {}
    beside: list[Beside] = []
    for each in terms:
        closed = closed_by(each, runs, lateness.fleet(connection, each, run))
        made = invoices.bill(
            each,
            _in_time(
                connection,
                each,
                run,
                usage.get(each.license_id, Usage()),
                customer=customer.id,
                closed=closed,
            ),
            of_license(billed, each.license_id),
            runs,
            closed=closed,
            conceded=of_license(conceded, each.license_id),
            disputed=disputed,
        )
        beside += made.beside
        for line in made.lines:
            lines.setdefault(line.currency, []).append(line)
    found = []
    for currency in sorted(lines):
        own = sorted(lines[currency], key=lambda line: line.key)
        bills = Bills(lines=tuple(own), beside=tuple(sorted(beside)))
        found.append(_settled(connection, customer, currency, bills, terms=terms, run=run))
    return found


def _in_time(
    connection: sa.Connection, terms: Terms, run: Run, usage: Usage, *, customer: str, closed: Mapping[Slot, Run]
) -> Usage:
    """The usage by the contract's own deadlines, where it has any."""
    late = deadlines(terms, closed, run)
    if not late:
        return usage
    return lateness.with_late(usage, lateness.measure(connection, customer, terms, run, late))


def _settled(
    connection: sa.Connection, customer: Customer, currency: str, bills: Bills, *, terms: list[Terms], run: Run
) -> Computed:
    account = account_store.read_account(connection, customer.id, currency, run)
    history = account_store.read_history(connection, customer.id, currency, run)
    settled = settle(bills, run=run, account=account, history=history)
    body = members(settled, run=run, currency=currency)
    return Computed(currency=currency, settled=settled, terms=tuple(terms), account=account, body=body)


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
        "finalized_at": invoice.finalized_at,
    }
