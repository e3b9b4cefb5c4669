"""What a run bills a customer, as documents: computed, drafted, frozen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import (
    account_store,
    dispute_store,
    estimating,
    lateness,
    run_store,
    store,
    sums,
)
from licensing_server.billing import evidence as gathering
from licensing_server.billing import terms as customer_terms
from licensing_server.billing.store import Invoice
from licensing_server.customers.store import Customer
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import envelopes, estimates, evidence, invoices
from meterkit.accounts import Account, History
from meterkit.attribution import Run, Slot, Usage
from meterkit.canonical import to_bytes
from meterkit.documents import Bills, Settled, members, settle
from meterkit.estimates import Estimates
from meterkit.lateness import closed_by, deadlines
from meterkit.lines import Beside, Billed, Key, Line, of_license
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
    terms = customer_terms.read_all(connection, {each.id: each.zone for each in customers}, run)
    runs = run_store.runs_of_all(connection, terms, run.number)
    licensed = _licensed(connection, terms, runs, run, cited=cited)
    decided = account_store.with_account(connection, terms)
    return {
        customer: _Customer(connection, customer, runs[customer], customer in decided).compute(licensed[customer])
        for customer in terms
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Licensed:
    """What is known of one license at a run: which of its periods are closed, and what was used, is missing, was
    billed.
    """

    terms: Terms
    closed: Mapping[Slot, Run]
    usage: Usage
    estimated: Estimates
    billed: Mapping[Key, Billed]


def _licensed(
    connection: sa.Connection,
    terms: Mapping[str, list[Terms]],
    runs: Mapping[str, list[Run]],
    run: Run,
    *,
    cited: bool,
) -> dict[str, list[_Licensed]]:
    """Read what is known of customers' licenses, for all of them at once."""
    every = [each for own in terms.values() for each in own]
    usage = sums.read(connection, run, every, cited=cited)
    billed: dict[str, dict[Key, Billed]] = {}
    for key, before in store.read_billed(connection, [each.license_id for each in every], run.number).items():
        billed.setdefault(key.license_id, {})[key] = before
    fleets = lateness.fleets(connection, every, run)
    closed = {
        each.license_id: closed_by(each, runs[customer], fleets.get(each.license_id, ()))
        for customer, own in terms.items()
        for each in own
    }
    gaps = {
        each.license_id: estimates.gaps(each, closed[each.license_id], run, fleets.get(each.license_id, ()))
        for each in every
    }
    estimated = estimating.read(connection, run, every, gaps)
    return {
        customer: [
            _Licensed(
                terms=each,
                closed=closed[each.license_id],
                usage=usage.get(each.license_id, Usage()),
                estimated=estimated.get(each.license_id, {}),
                billed=billed.get(each.license_id, {}),
            )
            for each in own
        ]
        for customer, own in terms.items()
    }


@dataclass(frozen=True, slots=True)
class _Customer:
    """One customer at the last of its `runs`; `has_account` where anything was decided about its account."""

    connection: sa.Connection
    id: str
    runs: Sequence[Run]
    has_account: bool

    def compute(self, licensed: list[_Licensed]) -> list[Computed]:
        """Bill its licenses, and make a document in each currency that has lines."""
        run = self.runs[-1]
        decided = dispute_store.read_decided(self.connection, self.id) if self.has_account else Account()
        conceded, disputed = decided.conceded(run), decided.disputed(run)
        lines: dict[str, list[Line]] = {}
        beside: list[Beside] = []
        for each in licensed:
            made = invoices.bill(
                each.terms,
                self._in_time(each),
                each.billed,
                self.runs,
                closed=each.closed,
                estimated=each.estimated,
                conceded=of_license(conceded, each.terms.license_id),
                disputed=disputed,
            )
            beside += made.beside
            for line in made.lines:
                lines.setdefault(line.currency, []).append(line)
        found = []
        for currency in sorted(lines):
            own = tuple(sorted(lines[currency], key=lambda line: line.key))
            bills = Bills(lines=own, beside=tuple(sorted(beside)))
            found.append(self._settled(currency, bills, [each.terms for each in licensed]))
        return found

    def _in_time(self, each: _Licensed) -> Usage:
        """The usage by the contract's own deadlines, where it has any."""
        run = self.runs[-1]
        late = deadlines(each.terms, each.closed, run)
        if not late:
            return each.usage
        return replace(each.usage, measured=lateness.measure(self.connection, each.terms, run, late))

    def _settled(self, currency: str, bills: Bills, terms: list[Terms]) -> Computed:
        run, account, history = self.runs[-1], Account(), History()
        if self.has_account or any(line.amount_minor < 0 for line in bills.lines):
            account = account_store.read_account(self.connection, self.id, currency, run)
            history = account_store.read_history(self.connection, self.id, currency, run)
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
