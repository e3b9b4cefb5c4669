"""Webhook endpoints, and the outbox of what they are to be told."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import metadata

webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("events", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # enabled | disabled
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),  # sealed
    sa.Column("old_secret", sa.Text),  # sealed; signs along until then
    sa.Column("old_until", sa.BigInteger),
)
webhook_messages = sa.Table(
    "webhook_messages",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("endpoint", sa.Text, sa.ForeignKey("webhook_endpoints.id"), nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # as it is signed and sent
    sa.Column("state", sa.Text, nullable=False),  # waiting | delivered | dead
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("http_status", sa.Integer),
    sa.Column("failure", sa.Text),
    sa.UniqueConstraint("endpoint", "event", "subject", name="webhook_messages_once"),  # one fact is told once
    sa.Index("webhook_messages_by_due", "state", "due_at"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint as it is stored; its secrets, which are sealed, are in no repr."""

    id: str
    url: str
    events: list[str]
    state: str
    created_at: int
    secret: str = field(repr=False)
    old_secret: str | None = field(default=None, repr=False)
    old_until: int | None = None

    def to_document(self) -> pages.Document:
        """Show the endpoint to people: no secret."""
        return {
            "id": self.id,
            "url": self.url,
            "events": self.events,
            "state": self.state,
            "created_at": self.created_at,
        }


def from_row(row: Any) -> Endpoint:
    """Read a row."""
    return Endpoint(**{column.name: getattr(row, column.name) for column in webhook_endpoints.columns})


def insert(connection: sa.Connection, endpoint: Endpoint) -> None:
    """Store a new endpoint."""
    connection.execute(sa.insert(webhook_endpoints), [asdict(endpoint)])


def update(connection: sa.Connection, endpoint_id: str, values: dict[str, Any]) -> None:
    """Change an endpoint."""
    this = webhook_endpoints.c.id == endpoint_id
    connection.execute(sa.update(webhook_endpoints).where(this).values(values))


def find(connection: sa.Connection, endpoint_id: str) -> Endpoint | None:
    """Find an endpoint."""
    chosen = sa.select(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id)
    row = connection.execute(chosen).one_or_none()
    return from_row(row) if row else None


def page(connection: sa.Connection, asked: pages.Page) -> pages.Document:
    """List endpoints."""
    table = webhook_endpoints.c
    return pages.fetch(
        connection,
        sa.select(webhook_endpoints),
        asked,
        at=table.created_at,
        key=table.id,
        to_document=lambda row: from_row(row).to_document(),
    )


def enabled(connection: sa.Connection) -> list[tuple[str, list[str]]]:
    """The endpoints that are told anything: each with the events it asked for."""
    table = webhook_endpoints.c
    rows = connection.execute(sa.select(table.id, table.events).where(table.state == "enabled").order_by(table.id))
    return [(row.id, row.events) for row in rows]


def insert_message(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Put a message into the outbox, unless the endpoint has one of this event and subject."""
    same = [webhook_messages.c[name] == row[name] for name in ("endpoint", "event", "subject")]
    known = sa.select(webhook_messages.c.id).where(*same)
    if connection.execute(known).first() is None:
        connection.execute(sa.insert(webhook_messages), [row])


def find_message(connection: sa.Connection, message_id: str) -> Any:
    """Find a message's row."""
    chosen = sa.select(webhook_messages).where(webhook_messages.c.id == message_id)
    return connection.execute(chosen).one_or_none()


def find_due(connection: sa.Connection, now: int, but: Collection[str]) -> Any:
    """The message that has been due longest, of an enabled endpoint that is none of those."""
    table = webhook_messages.c
    chosen = (
        sa.select(webhook_messages)
        .join(webhook_endpoints, webhook_endpoints.c.id == table.endpoint)
        .where(table.state == "waiting", table.due_at <= now, webhook_endpoints.c.state == "enabled")
        .where(table.endpoint.not_in(list(but)))
    )
    return connection.execute(chosen.order_by(table.due_at, table.id).limit(1)).one_or_none()


def update_message(connection: sa.Connection, message_id: str, values: dict[str, Any]) -> None:
    """Store how a message stands."""
    this = webhook_messages.c.id == message_id
    connection.execute(sa.update(webhook_messages).where(this).values(values))


def delete_delivered(connection: sa.Connection, before: int) -> None:
    """Forget what was delivered long ago."""
    table = webhook_messages.c
    this = sa.and_(table.state == "delivered", table.updated_at < before)
    connection.execute(sa.delete(webhook_messages).where(this))


def message_to_document(row: Any) -> pages.Document:
    """Show a message to people."""
    return {column.name: getattr(row, column.name) for column in webhook_messages.columns}


def page_messages(
    connection: sa.Connection, asked: pages.Page, *, endpoint: str | None, state: str | None
) -> pages.Document:
    """List messages, of one endpoint or state if named."""
    table = webhook_messages.c
    chosen = sa.select(webhook_messages)
    for column, value in ((table.endpoint, endpoint), (table.state, state)):
        if value is not None:
            chosen = chosen.where(column == value)
    return pages.fetch(
        connection, chosen, asked, at=table.created_at, key=table.id, to_document=message_to_document
    )
