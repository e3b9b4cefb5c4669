"""What a run bills a customer, as documents: computed, drafted, frozen."""

from dataclasses import dataclass

import sqlalchemy as sa

from licensing_server.billing import evidence as gathering
from licensing_server.billing import store, sums
from licensing_server.billing import terms as customer_terms
from licensing_server.billing.store import Invoice
from licensing_server.customers.store import Customer
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import envelopes, evidence, invoices
from meterkit.attribution import Run, Usage
from meterkit.audit import Bills, document_members
from meterkit.canonical import to_bytes
from meterkit.invoices import Beside, Line, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a run bills a customer in one currency, and the terms by which it does."""

    currency: str
    bills: Bills
    terms: tuple[Terms, ...]
    body: Document


def compute(connection: sa.Connection, customer: Customer, run: Run) -> list[Computed]:
    """Work out a customer's documents by the one rule, as known at a run: one per currency that has lines."""
    terms = customer_terms.read(connection, customer.id, customer.zone, run)
    usage = sums.read(connection, customer.id, run, terms)
    billed = store.read_billed(connection, [each.license_id for each in terms], run.number)
    runs = store.runs_of(connection, customer.id, run.number)
    lines: dict[str, list[Line]] = {}
    beside: list[Beside] = []
    for each in terms:
        own = {key: before for key, before in billed.items() if key.license_id == each.license_id}
        made = invoices.bill(each, usage.get(each.license_id, Usage()), own, runs)
        beside += made.beside
        for line in made.lines:
            lines.setdefault(line.currency, []).append(line)
    return [_computed(currency, lines[currency], beside, terms, run) for currency in sorted(lines)]


def _computed(currency: str, lines: list[Line], beside: list[Beside], terms: list[Terms], run: Run) -> Computed:
    bills = Bills(lines=tuple(sorted(lines, key=lambda line: line.key)), beside=tuple(sorted(beside)))
    body = document_members(bills, run=run, currency=currency)
    return Computed(currency=currency, bills=bills, terms=tuple(terms), body=body)


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
    told = ("number", "customer", "currency", "run", "total_minor")
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
