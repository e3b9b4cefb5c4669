"""What was revoked, and the signed lists that say so."""

from collections.abc import Sequence

import sqlalchemy as sa

from licensing_server.database import counters, listed, metadata
from licensing_server.prepared import Prepared
from meterkit import limits

_SEEN = "revocations_seen"  # a counter that the migrations made, so that no two transactions do
_VERSION_BELIEVED_MAX = limits.INTEGER_MAX // 2

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
# All kinds there are, named because the table's key begins with them.
_KINDS: list[sa.ColumnElement[str]] = [sa.literal_column(f"'{kind}'") for kind in ("token", "license", "device")]
_INSTANTS = Prepared(
    sa.select(revocations.c.subject, revocations.c.created_at).where(
        revocations.c.kind.in_(_KINDS), listed(revocations.c.subject, "subjects")
    )
)
_NEWEST = Prepared(sa.select(revocation_lists).order_by(revocation_lists.c.version.desc()).limit(1))


def is_revoked(connection: sa.Connection, kind: str, subject: str) -> bool:
    """Tell whether a token, a license or a device was revoked."""
    table = revocations.c
    chosen = sa.select(table.subject).where(table.kind == kind, table.subject == subject)
    return connection.execute(chosen).first() is not None


def read_instants(connection: sa.Connection, subjects: Sequence[str]) -> dict[str, int]:
    """When those of the named tokens, licenses and devices were revoked that were."""
    rows = _INSTANTS.all(connection, subjects=subjects)
    return {row.subject: row.created_at for row in rows}


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
    return next(((row.version, row.body) for row in _NEWEST.all(connection)), (0, None))


def insert_list(connection: sa.Connection, version: int, body: str, now: int) -> None:
    """Store a new list."""
    connection.execute(sa.insert(revocation_lists), [{"version": version, "body": body, "issued_at": now}])


def note_seen(connection: sa.Connection, version: int) -> None:
    """Take a device's word that it holds a list of this version: a server restored from a backup has forgotten
    its newest ones, and no device would take the next list if it had a lower number.
    """
    version = min(version, _VERSION_BELIEVED_MAX)
    if version <= newest(connection)[0] or version < next_version(connection):
        return
    lower = sa.and_(counters.c.name == _SEEN, counters.c.value < version)
    connection.execute(sa.update(counters).where(lower).values(value=version))


def next_version(connection: sa.Connection) -> int:
    """The number of the next list: above every one that was given, or that a device holds."""
    seen = connection.execute(sa.select(counters.c.value).where(counters.c.name == _SEEN)).scalar_one()
    return max(newest(connection)[0], int(seen)) + 1
