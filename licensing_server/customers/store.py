"""Customers in the database."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import metadata

customers = sa.Table(
    "customers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """Whom licenses are granted to. The time zone says where its billing days begin."""

    id: str
    name: str
    time_zone: str
    created_at: int

    @property
    def zone(self) -> ZoneInfo:
        """The zone by the table of time zones in use."""
        return ZoneInfo(self.time_zone)

    def to_document(self) -> pages.Document:
        """Show the customer to people."""
        return asdict(self)


def from_row(row: Any) -> Customer:
    """Read a row."""
    return Customer(id=row.id, name=row.name, time_zone=row.time_zone, created_at=row.created_at)


def insert(connection: sa.Connection, customer: Customer) -> None:
    """Store a new customer."""
    connection.execute(sa.insert(customers), [customer.to_document()])


def find(connection: sa.Connection, customer_id: str) -> Customer | None:
    """Find a customer."""
    row = connection.execute(sa.select(customers).where(customers.c.id == customer_id)).one_or_none()
    return from_row(row) if row else None


def find_all(connection: sa.Connection, customer_ids: Collection[str]) -> list[Customer]:
    """Find several customers, in the order of their ids."""
    chosen = sa.select(customers).where(customers.c.id.in_(customer_ids))
    return sorted(map(from_row, connection.execute(chosen)), key=lambda customer: customer.id)


def page(connection: sa.Connection, asked: pages.Page) -> pages.Document:
    """List customers."""
    return pages.fetch(
        connection,
        sa.select(customers),
        asked,
        at=customers.c.created_at,
        key=customers.c.id,
        to_document=lambda row: from_row(row).to_document(),
    )
