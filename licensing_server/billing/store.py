"""Invoices, credit notes and their lines in the database."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import metadata, total
from meterkit.canonical import from_bytes
from meterkit.limits import FILE_BYTES_MAX
from meterkit.lines import Billed, Key, Line

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


def insert_invoices(connection: sa.Connection, drafts: Iterable[Invoice]) -> None:
    """Store new drafts."""
    rows = [{column.name: getattr(each, column.name) for column in _OWN} for each in drafts]
    if rows:
        connection.execute(sa.insert(invoices), rows)


def find_invoice(connection: sa.Connection, invoice_id: str) -> Invoice | None:
    """Find an invoice, with its document."""
    row = connection.execute(sa.select(*_OWN).where(invoices.c.id == invoice_id)).one_or_none()
    return invoice_from_row(row) if row else None


def invoice_ids(connection: sa.Connection, run: int) -> list[str]:
    """The invoices of a run, by id."""
    chosen = sa.select(invoices.c.id).where(invoices.c.run == run)
    return list(connection.execute(chosen.order_by(invoices.c.id)).scalars())


def delete_drafts(connection: sa.Connection, asked: Collection[str]) -> None:
    """Remove some customers' drafts: the next run computes them anew."""
    this = sa.and_(invoices.c.customer.in_(asked), invoices.c.state == "draft")
    connection.execute(sa.delete(invoices).where(this))


def finalize(connection: sa.Connection, invoice: Invoice, evidence: bytes, lines: Iterable[Line]) -> None:
    """Make a draft final, or paid: its number, bytes and evidence; its lines count as billed from here on."""
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
