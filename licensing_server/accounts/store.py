"""What is decided about customers' accounts, in the database: tax rates, prepaid credits, refunds."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import metadata, pieces
from meterkit.accounts import Credit, Refund
from meterkit.taxes import TaxRate

tax_rates = sa.Table(
    "tax_rates",
    metadata,
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("starts_at", sa.BigInteger, primary_key=True),
    sa.Column("since_run", sa.BigInteger, primary_key=True),  # the first billing run that knows it
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("percent", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
credits = sa.Table(  # noqa: A001 - the noun; the interpreter's own `credits` is for its prompt
    "credits",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), nullable=False, index=True),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("starts_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("purchased_at", sa.BigInteger, nullable=False),
    sa.Column("since_run", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
refunds = sa.Table(
    "refunds",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), nullable=False, index=True),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("since_run", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
Owner = tuple[str, str]  # customer and currency
_CREDIT = ("id", "amount_minor", "priority", "starts_at", "expires_at", "purchased_at", "since_run")


def insert_tax_rates(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Store tax rates; one that was decided before the same run is replaced, for no run has known it yet."""
    table = tax_rates.c
    for row in rows:
        same = (table[name] == row[name] for name in ("customer", "starts_at", "since_run"))
        connection.execute(sa.delete(tax_rates).where(*same))
    connection.execute(sa.insert(tax_rates), rows)


def read_tax_rates(connection: sa.Connection, asked: Collection[str]) -> dict[str, list[TaxRate]]:
    """The tax rates of some customers, each one's in the order in which they count."""
    table = tax_rates.c
    ordered = sa.select(tax_rates).order_by(table.customer, table.starts_at, table.since_run)
    found: dict[str, list[TaxRate]] = {}
    for some in pieces(asked):
        for row in connection.execute(ordered.where(table.customer.in_(some))):
            rate = TaxRate(starts_at=row.starts_at, since_run=row.since_run, name=row.name, percent=row.percent)
            found.setdefault(row.customer, []).append(rate)
    return found


def customers_taxed(connection: sa.Connection, name: str) -> list[str]:
    """The customers to whom a tax of this name was ever given."""
    chosen = sa.select(tax_rates.c.customer).where(tax_rates.c.name == name).distinct()
    return sorted(connection.execute(chosen).scalars())


def insert_credit(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a new prepaid credit."""
    connection.execute(sa.insert(credits), [row])


def read_credits(connection: sa.Connection, asked: Collection[str]) -> dict[Owner, list[Credit]]:
    """The prepaid credits of some customers, by customer and currency, and then by id."""
    found: dict[Owner, list[Credit]] = {}
    for some in pieces(asked):
        chosen = sa.select(credits).where(credits.c.customer.in_(some)).order_by(credits.c.id)
        for row in connection.execute(chosen):
            credit = Credit(**{name: getattr(row, name) for name in _CREDIT})
            found.setdefault((row.customer, row.currency), []).append(credit)
    return found


def page_credits(connection: sa.Connection, asked: pages.Page, customer: str) -> pages.Document:
    """List a customer's credits."""
    return pages.fetch(
        connection,
        sa.select(credits).where(credits.c.customer == customer),
        asked,
        at=credits.c.created_at,
        key=credits.c.id,
        to_document=lambda row: {column.name: getattr(row, column.name) for column in credits.columns},
    )


def insert_refund(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a refund."""
    connection.execute(sa.insert(refunds), [row])


def read_refunds(connection: sa.Connection, asked: Collection[str]) -> dict[Owner, list[Refund]]:
    """What was paid back of some customers' balances, by customer and currency."""
    table = refunds.c
    found: dict[Owner, list[Refund]] = {}
    for some in pieces(asked):
        chosen = sa.select(refunds).where(table.customer.in_(some)).order_by(table.since_run, table.id)
        for row in connection.execute(chosen):
            refund = Refund(amount_minor=row.amount_minor, since_run=row.since_run)
            found.setdefault((row.customer, row.currency), []).append(refund)
    return found
