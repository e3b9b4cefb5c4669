"""Billing runs and invoices in the database."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.customers.store import customers
from licensing_server.database import last_number, metadata, total
from licensing_server.licenses.store import licenses
from licensing_server.usage.store import ACCEPTANCE
from meterkit.attribution import Run
from meterkit.canonical import from_bytes
from meterkit.limits import FILE_BYTES_MAX
from meterkit.lines import Billed, Key, Line

RUN_SCOPE = "all"  # the scope of a run that bills every customer

billing_runs = sa.Table(
    "billing_runs",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("cut_off", sa.BigInteger, nullable=False),
    sa.Column("acceptance_max", sa.BigInteger, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),  # a customer, or all of them
    sa.Column("state", sa.Text, nullable=False),  # open | done
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("scope", "cut_off", name="billing_runs_once"),
)
billing_run_customers = sa.Table(
    "billing_run_customers",
    metadata,
    sa.Column("run", sa.BigInteger, sa.ForeignKey("billing_runs.number"), primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
)
invoices = sa.Table(
    "invoices",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), nullable=False, index=True),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("run", sa.BigInteger, sa.ForeignKey("billing_runs.number"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False, server_default="invoice"),  # invoice | credit_note
    sa.Column("state", sa.Text, nullable=False),  # draft | finalized | paid | void
    sa.Column("number", sa.Text, unique=True),
    sa.Column("total_minor", sa.BigInteger, nullable=False),
    sa.Column("due_minor", sa.BigInteger, nullable=False, server_default="0"),  # what credits and balance leave
    sa.Column("balance_minor", sa.BigInteger, nullable=False, server_default="0"),  # taken from the balance
    sa.Column("void_run", sa.BigInteger),  # the first billing run for which it was never billed
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("finalized_at", sa.BigInteger),
    sa.Column("body", sa.LargeBinary, nullable=False),  # the document, byte for byte
    sa.Column("evidence", sa.LargeBinary),  # its ZIP, frozen when it was finalized
    sa.UniqueConstraint("customer", "currency", "run", name="invoices_once"),
)
sa.Index(
    "invoices_one_draft",
    invoices.c.customer,
    invoices.c.currency,
    unique=True,
    sqlite_where=invoices.c.state == "draft",
    postgresql_where=invoices.c.state == "draft",
)
invoice_lines = sa.Table(
    "invoice_lines",
    metadata,
    sa.Column("invoice", sa.Text, sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("license", sa.Text, nullable=False, index=True),
    sa.Column("start_at", sa.BigInteger, nullable=False),
    sa.Column("end_at", sa.BigInteger, nullable=False),
    sa.Column("charge", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("quantity_change", sa.BigInteger, nullable=False),  # summed, it is the key's quantity
    sa.Column("tax_name", sa.Text),
    sa.Column("tax_percent", sa.Text),
    sa.Column("lowers", sa.Text, index=True),  # the number of the document whose line this one lowers
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A billing run: its number, its limits, whom it bills, and whether it has come to its end."""

    number: int
    cut_off: int
    acceptance_max: int
    scope: str
    state: str
    created_at: int

    @property
    def limits(self) -> Run:
        """The run as the core knows it."""
        return Run(number=self.number, cut_off=self.cut_off, acceptance_max=self.acceptance_max)

    def to_document(self) -> pages.Document:
        """Show the run to people."""
        return {
            **self.limits.to_claims(),
            "customer": None if self.scope == RUN_SCOPE else self.scope,
            "state": self.state,
            "created_at": self.created_at,
        }


def run_from_row(row: Any) -> StoredRun:
    """Read a run's row."""
    return StoredRun(**{column.name: getattr(row, column.name) for column in billing_runs.columns})


def insert_run(connection: sa.Connection, run: StoredRun) -> None:
    """Store a new run with its limits; they never change."""
    row = {column.name: getattr(run, column.name) for column in billing_runs.columns}
    connection.execute(sa.insert(billing_runs), [row])


def find_run(connection: sa.Connection, number: int) -> StoredRun | None:
    """Find a run."""
    row = connection.execute(sa.select(billing_runs).where(billing_runs.c.number == number)).one_or_none()
    return run_from_row(row) if row else None


def find_same_run(connection: sa.Connection, scope: str, cut_off: int) -> StoredRun | None:
    """Find the run that was asked for with this scope and cut-off."""
    table = billing_runs.c
    chosen = sa.select(billing_runs).where(table.scope == scope, table.cut_off == cut_off)
    row = connection.execute(chosen).one_or_none()
    return run_from_row(row) if row else None


def _covering(scope: str) -> sa.ColumnElement[bool]:
    """Which runs bill a customer, or, for the scope of all, any customer."""
    return sa.true() if scope == RUN_SCOPE else billing_runs.c.scope.in_([RUN_SCOPE, scope])


def newest_cut_off(connection: sa.Connection, scope: str) -> int | None:
    """The latest cut-off of the runs that billed anyone in a scope."""
    return connection.execute(sa.select(sa.func.max(billing_runs.c.cut_off)).where(_covering(scope))).scalar()


def runs_of(connection: sa.Connection, customer: str, upto: int) -> list[Run]:
    """The runs that covered a customer, up to one of them, in order."""
    chosen = sa.select(billing_runs).where(_covering(customer), billing_runs.c.number <= upto)
    return [run_from_row(row).limits for row in connection.execute(chosen.order_by(billing_runs.c.number))]


def open_runs(connection: sa.Connection) -> list[int]:
    """The runs that have not come to their end, oldest first."""
    chosen = sa.select(billing_runs.c.number).where(billing_runs.c.state == "open")
    return list(connection.execute(chosen.order_by(billing_runs.c.number)).scalars())


def finish_run(connection: sa.Connection, number: int) -> None:
    """Note that a run has billed everyone in its scope."""
    connection.execute(sa.update(billing_runs).where(billing_runs.c.number == number).values(state="done"))


def newest_acceptance(connection: sa.Connection) -> int:
    """The number of the last accepted batch: they are given in commit order, so none below it is in flight."""
    return last_number(connection, ACCEPTANCE)


def customers_in(connection: sa.Connection, scope: str) -> list[str]:
    """The customers of a scope that have a license."""
    licensed = sa.select(customers.c.id).where(customers.c.id.in_(sa.select(licenses.c.customer)))
    if scope != RUN_SCOPE:
        licensed = licensed.where(customers.c.id == scope)
    return list(connection.execute(licensed.order_by(customers.c.id)).scalars())


def mark_billed(connection: sa.Connection, number: int, customer: str) -> None:
    """Note that a run has billed a customer."""
    connection.execute(sa.insert(billing_run_customers), [{"run": number, "customer": customer}])


def last_billed_by(connection: sa.Connection, customer: str) -> int:
    """The newest run that has billed a customer, 0 if there is none."""
    table = billing_run_customers.c
    newest = sa.select(sa.func.max(table.run)).where(table.customer == customer)
    return connection.execute(newest).scalar() or 0


def page_runs(connection: sa.Connection, asked: pages.Page) -> pages.Document:
    """List runs."""
    return pages.fetch(
        connection,
        sa.select(billing_runs),
        asked,
        at=billing_runs.c.number,
        key=billing_runs.c.scope,
        to_document=lambda row: run_from_row(row).to_document(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice as it is stored. Once finalized, `body` never changes."""

    id: str
    customer: str
    currency: str
    run: int
    kind: str
    state: str
    number: str | None
    total_minor: int
    due_minor: int
    balance_minor: int
    void_run: int | None = None
    created_at: int
    finalized_at: int | None
    body: bytes

    def to_document(self) -> pages.Document:
        """Show the invoice to people, whole."""
        document: pages.Document = from_bytes(self.body, bytes_max=FILE_BYTES_MAX)
        shown = {"kind": self.kind, "due_minor": self.due_minor, "state": self.state}
        void = {} if self.void_run is None else {"void_run": self.void_run}
        return {**document, **shown, **void, "created_at": self.created_at}


_SHOWN = tuple(column for column in invoices.columns if column.name not in ("body", "evidence"))
_OWN = (*_SHOWN, invoices.c.body)


def invoice_from_row(row: Any) -> Invoice:
    """Read an invoice's row."""
    return Invoice(**{column.name: getattr(row, column.name) for column in _OWN})


def insert_invoice(connection: sa.Connection, invoice: Invoice) -> None:
    """Store a new draft."""
    connection.execute(sa.insert(invoices), [{column.name: getattr(invoice, column.name) for column in _OWN}])


def find_invoice(connection: sa.Connection, invoice_id: str) -> Invoice | None:
    """Find an invoice, with its document."""
    row = connection.execute(sa.select(*_OWN).where(invoices.c.id == invoice_id)).one_or_none()
    return invoice_from_row(row) if row else None


def invoice_ids(connection: sa.Connection, run: int) -> list[str]:
    """The invoices of a run, by id."""
    chosen = sa.select(invoices.c.id).where(invoices.c.run == run)
    return list(connection.execute(chosen.order_by(invoices.c.id)).scalars())


def delete_drafts(connection: sa.Connection, customer: str) -> None:
    """Remove a customer's drafts: the next run computes them anew."""
    this = sa.and_(invoices.c.customer == customer, invoices.c.state == "draft")
    connection.execute(sa.delete(invoices).where(this))


def finalize(connection: sa.Connection, invoice: Invoice, evidence: bytes, lines: Iterable[Line]) -> None:
    """Make a draft final: its number, its bytes, its evidence; its lines count as billed from here on."""
    values = {column.name: getattr(invoice, column.name) for column in _OWN} | {"evidence": evidence}
    connection.execute(sa.update(invoices).where(invoices.c.id == invoice.id).values(values))
    connection.execute(
        sa.insert(invoice_lines),
        [line_to_row(invoice.id, place, line) for place, line in enumerate(lines, start=1)],
    )


def set_state(connection: sa.Connection, invoice_id: str, state: str, *, void_run: int | None = None) -> None:
    """Note what became of a final document; its bytes stay."""
    this = sa.update(invoices).where(invoices.c.id == invoice_id)
    connection.execute(this.values(state=state, void_run=void_run))


def line_to_row(invoice_id: str, place: int, line: Line) -> dict[str, Any]:
    """Write what later runs must know of a line."""
    return {
        "invoice": invoice_id,
        "place": place,
        "license": line.key.license_id,
        "start_at": line.key.start_at,
        "end_at": line.key.end_at,
        "charge": line.key.charge,
        "plan": line.key.plan_id,
        "version": line.key.version,
        "kind": line.key.kind,
        "amount_minor": line.amount_minor,
        "quantity_change": line.quantity - line.quantity_before,
        "tax_name": line.tax.name if line.tax else None,
        "tax_percent": line.tax.percent if line.tax else None,
        "lowers": line.lowers,
    }


def counted(run_number: int) -> sa.ColumnElement[bool]:
    """Which documents a run builds on: finalized, of earlier runs, and not void as it knows them."""
    table = invoices.c
    standing = sa.or_(table.void_run.is_(None), table.void_run > run_number)
    return sa.and_(table.state != "draft", table.run < run_number, standing)


def key_from_row(row: Any) -> Key:
    """Read what a line's row is about."""
    return Key(
        license_id=row.license,
        start_at=row.start_at,
        end_at=row.end_at,
        charge=row.charge,
        plan_id=row.plan,
        version=row.version,
        kind=row.kind,
    )


def read_billed(connection: sa.Connection, license_ids: list[str], before_run: int) -> dict[Key, Billed]:
    """What finalized documents of earlier runs have billed, per key."""
    table = invoice_lines.c
    key = (table.license, table.start_at, table.end_at, table.charge, table.plan, table.version, table.kind)
    sums = (
        sa.select(
            *key,
            total(table.amount_minor).label("amount_minor"),
            total(table.quantity_change).label("quantity"),
        )
        .join(invoices, invoices.c.id == table.invoice)
        .where(table.license.in_(license_ids), counted(before_run))
        .group_by(*key)
    )
    return {
        key_from_row(row): Billed(amount_minor=int(row.amount_minor), quantity=int(row.quantity))
        for row in connection.execute(sums)
    }


def earlier_documents(connection: sa.Connection, invoice: Invoice) -> list[Invoice]:
    """The finalized documents of the same customer and currency, of earlier runs, in order; void ones, too."""
    chosen = sa.select(*_OWN).where(
        invoices.c.customer == invoice.customer,
        invoices.c.currency == invoice.currency,
        invoices.c.state != "draft",
        invoices.c.run < invoice.run,
    )
    return [invoice_from_row(row) for row in connection.execute(chosen.order_by(invoices.c.run))]


def find_evidence(connection: sa.Connection, invoice_id: str) -> bytes | None:
    """The frozen evidence of an invoice, or None before it is finalized."""
    chosen = sa.select(invoices.c.evidence).where(invoices.c.id == invoice_id)
    return connection.execute(chosen).scalar_one_or_none()


def page_invoices(
    connection: sa.Connection, asked: pages.Page, customer: str | None, kind: str | None
) -> pages.Document:
    """List documents, of one customer or one kind if named, without their lines."""
    chosen = sa.select(*_SHOWN)
    if kind is not None:
        chosen = chosen.where(invoices.c.kind == kind)
    if customer is not None:
        chosen = chosen.where(invoices.c.customer == customer)
    return pages.fetch(
        connection,
        chosen,
        asked,
        at=invoices.c.created_at,
        key=invoices.c.id,
        to_document=lambda row: {column.name: getattr(row, column.name) for column in _SHOWN},
    )


def is_billed(connection: sa.Connection, license_id: str, start_at: int, end_at: int) -> bool:
    """Tell whether a finalized document has a line of this license and period."""
    table = invoice_lines.c
    chosen = sa.select(table.invoice).where(
        table.license == license_id, table.start_at == start_at, table.end_at == end_at
    )
    return connection.execute(chosen.limit(1)).first() is not None
