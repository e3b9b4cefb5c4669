"""What was revoked, and the signed lists that say so."""

from typing import Any

import sqlalchemy as sa

from licensing_server.database import metadata

revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
revocation_lists = sa.Table(
    "revocation_lists",
    metadata,
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
)


def is_revoked(connection: sa.Connection, kind: str, subject: str) -> bool:
    """Tell whether a token, a license or a device was revoked."""
    table = revocations.c
    chosen = sa.select(table.subject).where(table.kind == kind, table.subject == subject)
    return connection.execute(chosen).first() is not None


def insert(connection: sa.Connection, kind: str, subject: str, now: int) -> None:
    """Note that something is revoked."""
    connection.execute(sa.insert(revocations), [{"kind": kind, "subject": subject, "created_at": now}])


def read_all(connection: sa.Connection) -> list[tuple[str, str]]:
    """All that was ever revoked, as (kind, subject)."""
    table = revocations.c
    chosen = sa.select(table.kind, table.subject).order_by(table.kind, table.subject)
    return [(row.kind, row.subject) for row in connection.execute(chosen)]


def newest(connection: sa.Connection) -> tuple[int, str | None]:
    """The newest list: its version and its text; version 0 before there is any."""
    chosen = sa.select(revocation_lists).order_by(revocation_lists.c.version.desc()).limit(1)
    row: Any = connection.execute(chosen).one_or_none()
    return (row.version, row.body) if row else (0, None)


def insert_list(connection: sa.Connection, version: int, body: str, now: int) -> None:
    """Store a new list."""
    connection.execute(sa.insert(revocation_lists), [{"version": version, "body": body, "issued_at": now}])
