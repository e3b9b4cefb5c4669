"""What a run bills a customer, as documents: computed, drafted, frozen."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import account_books, account_store, dispute_store, lateness, run_store, store, sums
from licensing_server.billing import evidence as gathering
from licensing_server.billing import terms as customer_terms
from licensing_server.billing.account_books import Books
from licensing_server.billing.store import Invoice
from licensing_server.customers.store import Customer
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import envelopes, evidence, invoices
from meterkit.accounts import Account, History
from meterkit.attribution import Run, Slot, Usage
from meterkit.canonical import to_bytes
from meterkit.documents import Bills, Settled, members, settle
from meterkit.lateness import closed_by, deadlines
from meterkit.lines import Beside, Bill, Billed, Key, Line, of_license
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
    every = list(read_all(connection, customers, run, cited=cited))
    bills = {each.id: each.bills_by_currency() for each in every}
    with_books = [each for each in every if each.has_account or _lowers(bills[each.id])]
    decided = {each.id: each.decided for each in with_books}
    books = account_books.read(connection, [each.id for each in with_books], decided, run)
    return {
        each.id: [each.settled(currency, own, books) for currency, own in bills[each.id].items()] for each in every
    }


def _lowers(bills: Mapping[str, Bills]) -> bool:
    """Whether any line is below zero, and so lowers one of an earlier document."""
    return any(line.amount_minor < 0 for own in bills.values() for line in own.lines)


def pending_all(connection: sa.Connection, customers: Iterable[Customer], run: Run) -> dict[str, list[Line]]:
    """What waits at a run, customer by customer, because its key is disputed: the lines that it would be."""
    return {each.id: each.pending() for each in read_all(connection, customers, run)}


def read_all(
    connection: sa.Connection, customers: Iterable[Customer], run: Run, *, cited: bool = False
) -> Iterator["Billing"]:
    """Read what several customers are billed by, at once; with the records of each sum, if they are to be cited."""
    terms = customer_terms.read_all(connection, {each.id: each.zone for each in customers}, run)
    every = [each for own in terms.values() for each in own]
    usage = sums.read(connection, run, every, cited=cited)
    billed: dict[str, dict[Key, Billed]] = {}
    for key, before in store.read_billed(connection, [each.license_id for each in every], run.number).items():
        billed.setdefault(key.license_id, {})[key] = before
    runs = run_store.runs_of_all(connection, terms, run.number)
    with_account = account_store.with_account(connection, terms)
    decided = dispute_store.read_decided(connection, with_account)
    for customer, own in terms.items():
        yield Billing(
            connection=connection,
            id=customer,
            runs=runs[customer],
            has_account=customer in with_account,
            decided=decided.get(customer, Account()),
            terms=own,
            usage=usage,
            billed=billed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """One customer at the last of its `runs`, and what it is billed by.

    `has_account` where anything was decided about its account; `decided` is what of it is about lines. `usage` and
    `billed` are by license.
    """

    connection: sa.Connection
    id: str
    runs: Sequence[Run]
    has_account: bool
    decided: Account
    terms: list[Terms]
    usage: Mapping[str, Usage]
    billed: Mapping[str, Mapping[Key, Billed]]

    def bills_by_currency(self) -> dict[str, Bills]:
        """Bill its licenses; gives what makes a document, in each currency that has lines."""
        lines: dict[str, list[Line]] = {}
        beside: list[Beside] = []
        for made in self._bills():
            beside += made.beside
            for line in made.lines:
                lines.setdefault(line.currency, []).append(line)
        return {
            currency: Bills(
                lines=tuple(sorted(lines[currency], key=lambda line: line.key)), beside=tuple(sorted(beside))
            )
            for currency in sorted(lines)
        }

    def pending(self) -> list[Line]:
        """What waits."""
        return sorted((line for made in self._bills() for line in made.pending), key=lambda line: line.key)

    def _bills(self) -> Iterator[Bill]:
        """What each of its licenses is billed."""
        run = self.runs[-1]
        conceded, disputed = self.decided.conceded(run), self.decided.disputed(run)
        for each in self.terms:
            closed = self._closed(each)
            yield invoices.bill(
                each,
                self._in_time(each, closed),
                self.billed.get(each.license_id, {}),
                self.runs,
                closed=closed,
                conceded=of_license(conceded, each.license_id),
                disputed=disputed,
            )

    def usages(self) -> Iterator[tuple[Terms, Usage]]:
        """What the periods of each of its licenses hold."""
        for each in self.terms:
            yield each, self._in_time(each, self._closed(each))

    def _closed(self, terms: Terms) -> dict[Slot, Run]:
        """Which of its runs first found each period of a license closed."""
        return closed_by(terms, self.runs, lateness.fleet(self.connection, terms, self.runs[-1]))

    def _in_time(self, terms: Terms, closed: Mapping[Slot, Run]) -> Usage:
        """The usage by the contract's own deadlines, where it has any."""
        run, usage = self.runs[-1], self.usage.get(terms.license_id, Usage())
        late = deadlines(terms, closed, run)
        if not late:
            return usage
        return replace(usage, measured=lateness.measure(self.connection, terms, run, late))

    def settled(self, currency: str, bills: Bills, books: Books) -> Computed:
        """Make its document in a currency."""
        run, account, history = self.runs[-1], Account(), History()
        if self.has_account or any(line.amount_minor < 0 for line in bills.lines):
            account, history = books.account(self.id, currency), books.history(self.id, currency)
        settled = settle(bills, run=run, account=account, history=history)
        body = members(settled, run=run, currency=currency)
        return Computed(currency=currency, settled=settled, terms=tuple(self.terms), account=account, body=body)


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
