"""What documents leave behind for later ones, and what was decided about them, in the database."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from licensing_server.accounts import journal
from licensing_server.accounts import store as accounts
from licensing_server.billing.dispute_store import concessions, disputes
from licensing_server.billing.store import invoice_lines, invoices
from licensing_server.database import metadata, pieces, total
from meterkit.documents import CREDIT_NOTE, Settled
from meterkit.taxes import Tax

invoice_taxes = sa.Table(
    "invoice_taxes",
    metadata,
    sa.Column("invoice", sa.Text, sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("percent", sa.Text, nullable=False),
    sa.Column("base_minor", sa.BigInteger, nullable=False),
    sa.Column("tax_minor", sa.BigInteger, nullable=False),
    sa.Column("lowers", sa.Text),  # the number of the invoice that a credit note lowers
)
credit_uses = sa.Table(
    "credit_uses",
    metadata,
    sa.Column("invoice", sa.Text, sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("credit", sa.Text, sa.ForeignKey("credits.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),  # below zero where it is given back
    sa.Column("lowers", sa.Text),
)
payments = sa.Table(
    "payments",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("invoice", sa.Text, sa.ForeignKey("invoices.id"), nullable=False, index=True),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("paid_at", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
invoice_replacements = sa.Table(
    "invoice_replacements",
    metadata,
    sa.Column("number", sa.Text, primary_key=True),  # of the void document
    sa.Column("invoice", sa.Text, sa.ForeignKey("invoices.id"), nullable=False, index=True),
)


def with_account(connection: sa.Connection, asked: Iterable[str]) -> set[str]:
    """Those of some customers about whose accounts anything was decided, or who have a credit note."""
    found: set[str] = set()
    for some in pieces(asked):
        decided = (
            sa.select(table.c.customer).where(table.c.customer.in_(some))
            for table in (accounts.tax_rates, accounts.credits, accounts.refunds, concessions, disputes)
        )
        table = invoices.c
        noted = sa.or_(table.kind == CREDIT_NOTE, table.void_run.is_not(None))
        found |= set(
            connection.execute(
                sa.union(*decided, sa.select(table.customer).where(table.customer.in_(some), noted))
            ).scalars()
        )
    return found


def tax_of(row: Any) -> Tax | None:
    """The tax of a line, as it was when its document became final."""
    return None if row.tax_name is None else Tax(name=row.tax_name, percent=row.tax_percent)


def insert_settled(connection: sa.Connection, invoice_id: str, settled: Settled) -> None:
    """Store what later documents must know of one, but for its lines."""
    taxes = [
        {
            "invoice": invoice_id,
            "place": place,
            "name": each.tax.name,
            "percent": each.tax.percent,
            "base_minor": each.base_minor,
            "tax_minor": each.tax_minor,
            "lowers": each.lowers,
        }
        for place, each in enumerate(settled.taxes, 1)
    ]
    uses = [
        {
            "invoice": invoice_id,
            "place": place,
            "credit": use.credit,
            "amount_minor": use.amount_minor,
            "lowers": use.lowers,
        }
        for place, use in enumerate(settled.credits, 1)
    ]
    replaced = [{"number": number, "invoice": invoice_id} for number in settled.replaces]
    for table, rows in ((invoice_taxes, taxes), (credit_uses, uses), (invoice_replacements, replaced)):
        if rows:
            connection.execute(sa.insert(table), rows)


def lowered_by(connection: sa.Connection, number: str) -> str | None:
    """The number of a document that stands and lowers a line of another, if there is one."""
    chosen = sa.select(invoices.c.number).join(invoice_lines, invoice_lines.c.invoice == invoices.c.id)
    lowering = chosen.where(invoice_lines.c.lowers == number, invoices.c.state != "void")
    return connection.execute(lowering.order_by(invoices.c.run).limit(1)).scalar()


def replacement_of(connection: sa.Connection, number: str) -> str | None:
    """The number of the document that took a void one's place."""
    chosen = sa.select(invoices.c.number).join(
        invoice_replacements, invoice_replacements.c.invoice == invoices.c.id
    )
    return connection.execute(chosen.where(invoice_replacements.c.number == number)).scalar()


def left_of(credit: Any) -> sa.ColumnElement[int]:
    """How much of a credit is left: documents that stand have not used it, nor was it booked as breakage."""
    use, row = credit_uses.c, journal.journal.c
    used = sa.select(total(use.amount_minor)).join(invoices, invoices.c.id == use.invoice)
    used = used.where(use.credit == credit.id, invoices.c.state != "void")
    broken = sa.select(total(row.amount_minor)).where(row.subject == credit.id, row.kind == journal.BROKEN)
    broken = broken.where(row.account == journal.PREPAID)
    gone = sa.func.coalesce(used.scalar_subquery(), 0) + sa.func.coalesce(broken.scalar_subquery(), 0)
    left: sa.ColumnElement[int] = credit.amount_minor - gone
    return left


def overdrawn(connection: sa.Connection, customer: str, currency: str) -> str | None:
    """A credit of which documents that stand use more than is left of it, if there is one."""
    credit = accounts.credits.c
    mine = sa.and_(credit.customer == customer, credit.currency == currency)
    return connection.execute(sa.select(credit.id).where(mine, left_of(credit) < 0).limit(1)).scalar()


def insert_payment(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a payment."""
    connection.execute(sa.insert(payments), [row])


def read_payments(connection: sa.Connection, invoice_id: str) -> list[dict[str, Any]]:
    """The payments on an invoice, in the order in which they were noted."""
    chosen = sa.select(payments).where(payments.c.invoice == invoice_id)
    rows = connection.execute(chosen.order_by(payments.c.created_at, payments.c.id))
    return [dict(row._mapping) for row in rows]  # noqa: SLF001  SQLAlchemy's public name


def paid(connection: sa.Connection, invoice_id: str) -> int:
    """How much was paid on an invoice."""
    chosen = sa.select(total(payments.c.amount_minor)).where(payments.c.invoice == invoice_id)
    return connection.execute(chosen).scalar() or 0
