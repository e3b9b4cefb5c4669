"""Which lines were sent to Stripe, what became of each, and who a customer is there."""

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.billing.store import invoices
from licensing_server.database import metadata

stripe_customers = sa.Table(
    "stripe_customers",
    metadata,
    sa.Column("target", sa.Text, sa.ForeignKey("export_targets.name"), primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("stripe_customer", sa.Text, nullable=False),
)
stripe_items = sa.Table(
    "stripe_items",
    metadata,
    sa.Column("target", sa.Text, sa.ForeignKey("export_targets.name"), primary_key=True),
    sa.Column("invoice", sa.Text, sa.ForeignKey("invoices.id"), primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # waiting | sending | delivered | refused
    sa.Column("attempt", sa.Integer, nullable=False),  # part of the idempotency key; 0 before the first
    sa.Column("how", sa.Text),  # made | replayed | found
    sa.Column("stripe_id", sa.Text),
    sa.Column("http_status", sa.Integer),
    sa.Column("error_code", sa.Text),
    sa.Column("begun_at", sa.BigInteger),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How one line stands. `sending` means that it is not known whether Stripe has made it."""

    target: str
    invoice: str
    place: int
    line: str
    state: str
    attempt: int
    how: str | None
    stripe_id: str | None
    http_status: int | None
    error_code: str | None
    begun_at: int | None
    updated_at: int


def read(connection: sa.Connection, target: str, invoice: str) -> dict[int, Sent]:
    """What became of an invoice's lines, by their places."""
    table = stripe_items.c
    rows = connection.execute(sa.select(stripe_items).where(table.target == target, table.invoice == invoice))
    return {row.place: Sent(**row._mapping) for row in rows}  # noqa: SLF001  SQLAlchemy's public name


def put(connection: sa.Connection, sent: Sent) -> None:
    """Store how a line stands."""
    table = stripe_items.c
    this = sa.and_(table.target == sent.target, table.invoice == sent.invoice, table.place == sent.place)
    values: dict[str, Any] = asdict(sent)
    if connection.execute(sa.update(stripe_items).where(this).values(values)).rowcount == 0:
        connection.execute(sa.insert(stripe_items), [values])


def find_customer(connection: sa.Connection, target: str, customer: str) -> str | None:
    """Who a customer is at Stripe."""
    table = stripe_customers.c
    chosen = sa.select(table.stripe_customer).where(table.target == target, table.customer == customer)
    return connection.execute(chosen).scalar_one_or_none()


def has_items(connection: sa.Connection, target: str, customer: str) -> bool:
    """Whether a customer has, or may have, any item at Stripe."""
    table = stripe_items.c
    chosen = sa.select(table.place).join(invoices, invoices.c.id == table.invoice)
    own = chosen.where(table.target == target, invoices.c.customer == customer)
    return connection.execute(own.where(table.state.in_(["delivered", "sending"])).limit(1)).first() is not None


def put_customer(connection: sa.Connection, target: str, customer: str, stripe_customer: str) -> None:
    """Remember who a customer is at Stripe."""
    table = stripe_customers.c
    this = sa.and_(table.target == target, table.customer == customer)
    connection.execute(sa.delete(stripe_customers).where(this))
    row = {"target": target, "customer": customer, "stripe_customer": stripe_customer}
    connection.execute(sa.insert(stripe_customers), [row])
