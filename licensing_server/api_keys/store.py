"""API keys in the database: their hash, never the key."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import metadata

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One API key as it is stored. Its hash is no secret's equal, and is not shown either."""

    id: str
    name: str
    hash: str
    scopes: frozenset[str]
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    def __repr__(self) -> str:
        return f"ApiKey({self.id})"

    def to_document(self) -> pages.Document:
        """Show the key to people: not its hash."""
        return {
            "id": self.id,
            "name": self.name,
            "scopes": sorted(self.scopes),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "revoked_at": self.revoked_at,
        }


def from_row(row: Any) -> ApiKey:
    """Read a row."""
    return ApiKey(
        id=row.id,
        name=row.name,
        hash=row.hash,
        scopes=frozenset(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def to_row(key: ApiKey) -> dict[str, Any]:
    """Write a row."""
    return {**key.to_document(), "hash": key.hash}


def insert(connection: sa.Connection, key: ApiKey) -> None:
    """Store a new key."""
    connection.execute(sa.insert(api_keys), [to_row(key)])


def find(connection: sa.Connection, key_id: str) -> ApiKey | None:
    """Find a key by its id."""
    row = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
    return from_row(row) if row else None


def revoke(connection: sa.Connection, key_id: str, now: int) -> bool:
    """Revoke a key, and tell whether it was not already; the first instant stays."""
    this = sa.and_(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    return connection.execute(sa.update(api_keys).where(this).values(revoked_at=now)).rowcount == 1


def page(connection: sa.Connection, asked: pages.Page) -> pages.Document:
    """List keys."""
    return pages.fetch(
        connection,
        sa.select(api_keys),
        asked,
        at=api_keys.c.created_at,
        key=api_keys.c.id,
        to_document=lambda row: from_row(row).to_document(),
    )
