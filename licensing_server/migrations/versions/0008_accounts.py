"""Taxes, prepaid credits, credit notes, void documents, disputes, and the journal beneath them.

Revision ID: 0008
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create them. Invoices that are final are owed whole, and are booked as they were finalized."""
    _create_decisions()
    _create_documents()
    _create_journal()
    _extend_invoices()
    _book_invoices()


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _key() -> list[Any]:
    names = ("license", "start_at", "end_at", "charge", "plan", "version", "kind")
    return [_number(name) if name in ("start_at", "end_at", "version") else _text(name) for name in names]


def _of_customer(name: str, *columns: Any) -> None:
    op.create_table(
        name,
        _text("id"),
        _text("customer"),
        *columns,
        sa.ForeignKeyConstraint(["customer"], ["customers.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f(f"ix_{name}_customer"), name, ["customer"], unique=False)


def _create_decisions() -> None:
    op.create_table(
        "tax_rates",
        _text("customer"),
        _number("starts_at"),
        _number("since_run"),
        _text("name"),
        _text("percent"),
        _number("created_at"),
        sa.ForeignKeyConstraint(["customer"], ["customers.id"]),
        sa.PrimaryKeyConstraint("customer", "starts_at", "since_run"),
    )
    _of_customer(
        "credits",
        _text("currency"),
        _number("amount_minor"),
        sa.Column("priority", sa.Integer(), nullable=False),
        _number("starts_at"),
        _number("expires_at", nullable=True),
        _number("purchased_at"),
        _number("since_run"),
        _number("created_at"),
    )
    _of_customer(
        "refunds",
        _text("currency"),
        _number("amount_minor"),
        _text("reference"),
        _number("since_run"),
        _number("created_at"),
    )
    _of_customer(
        "concessions", *_key(), _number("amount_minor"), _text("note"), _number("since_run"), _number("created_at")
    )
    op.create_table(
        "disputes",
        _text("id"),
        _text("customer"),
        _text("invoice"),
        sa.Column("line", sa.Integer(), nullable=False),
        *_key(),
        _number("amount_minor"),
        _text("note"),
        _number("since_run"),
        _number("until_run", nullable=True),
        _text("outcome", nullable=True),
        _number("created_at"),
        sa.ForeignKeyConstraint(["customer"], ["customers.id"]),
        sa.ForeignKeyConstraint(["invoice"], ["invoices.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_disputes_customer"), "disputes", ["customer"], unique=False)


def _create_documents() -> None:
    op.create_table(
        "invoice_taxes",
        _text("invoice"),
        sa.Column("place", sa.Integer(), nullable=False),
        _text("name"),
        _text("percent"),
        _number("base_minor"),
        _number("tax_minor"),
        _text("lowers", nullable=True),
        sa.ForeignKeyConstraint(["invoice"], ["invoices.id"]),
        sa.PrimaryKeyConstraint("invoice", "place"),
    )
    op.create_table(
        "credit_uses",
        _text("invoice"),
        sa.Column("place", sa.Integer(), nullable=False),
        _text("credit"),
        _number("amount_minor"),
        _text("lowers", nullable=True),
        sa.ForeignKeyConstraint(["invoice"], ["invoices.id"]),
        sa.ForeignKeyConstraint(["credit"], ["credits.id"]),
        sa.PrimaryKeyConstraint("invoice", "place"),
    )
    op.create_table(
        "invoice_replacements",
        _text("number"),
        _text("invoice"),
        sa.ForeignKeyConstraint(["invoice"], ["invoices.id"]),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_index(op.f("ix_invoice_replacements_invoice"), "invoice_replacements", ["invoice"], unique=False)
    op.create_table(
        "payments",
        _text("id"),
        _text("invoice"),
        _number("amount_minor"),
        _text("reference"),
        _number("paid_at"),
        _number("created_at"),
        sa.ForeignKeyConstraint(["invoice"], ["invoices.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_payments_invoice"), "payments", ["invoice"], unique=False)


def _create_journal() -> None:
    op.create_table(
        "journal",
        _number("number"),
        _text("account"),
        _number("at"),
        _text("kind"),
        _text("subject"),
        _text("customer"),
        _text("currency"),
        _number("amount_minor"),
        sa.ForeignKeyConstraint(["customer"], ["customers.id"]),
        sa.PrimaryKeyConstraint("number", "account"),
    )
    op.create_index(op.f("ix_journal_subject"), "journal", ["subject"], unique=False)
    op.create_index(op.f("ix_journal_customer"), "journal", ["customer"], unique=False)


def _extend_invoices() -> None:
    op.add_column("invoices", sa.Column("kind", sa.Text(), nullable=False, server_default="invoice"))
    for name in ("due_minor", "balance_minor"):
        op.add_column("invoices", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("invoices", _number("void_run", nullable=True))
    for name in ("tax_name", "tax_percent", "lowers"):
        op.add_column("invoice_lines", _text(name, nullable=True))
    op.create_index(op.f("ix_invoice_lines_lowers"), "invoice_lines", ["lowers"], unique=False)
    op.execute("UPDATE invoices SET due_minor = total_minor")


def _book_invoices() -> None:
    """Each final invoice is one transaction, numbered in the order of their own numbers."""
    final = "FROM invoices WHERE state = 'finalized' AND total_minor <> 0"
    order = "(SELECT count(*) FROM invoices AS before WHERE before.state = 'finalized'"
    order += " AND before.total_minor <> 0 AND before.number <= invoices.number)"
    shared = "finalized_at, 'invoice', id, customer, currency"
    for account, amount in (("receivable", "total_minor"), ("revenue", "-total_minor")):
        op.execute(
            "INSERT INTO journal (number, account, at, kind, subject, customer, currency, amount_minor) "
            f"SELECT {order}, '{account}', {shared}, {amount} {final}"
        )
    op.execute(f"INSERT INTO counters (name, value) SELECT 'journal', count(*) {final}")
