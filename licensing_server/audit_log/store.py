"""The audit log in the database: appended to, never updated."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.audit_log.chain import Entry
from licensing_server.database import BIG, last_number, metadata
from meterkit.canonical import from_bytes, to_bytes
from meterkit.errors import InputError
from meterkit.limits import BODY_BYTES_MAX

COUNTER = "audit_log"
_BODY_BYTES_MAX = BODY_BYTES_MAX * 2

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("seq", BIG, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),  # canonical JSON
    sa.Column("prev", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)


def from_row(row: Any) -> Entry:
    """Read an entry. A body that is not what was written is given as it is: no hash will be its own."""
    try:
        body = from_bytes(row.body.encode(), bytes_max=_BODY_BYTES_MAX)
        body = body if to_bytes(body).decode() == row.body else object()
    except (InputError, UnicodeError):
        body = object()
    return Entry(
        seq=row.seq,
        at=row.at,
        who=row.who,
        action=row.action,
        subject=row.subject,
        body=body,
        prev=row.prev,
        hash=row.hash,
    )


def insert(connection: sa.Connection, entry: Entry) -> None:
    """Store the next entry."""
    names = ("seq", "at", "who", "action", "subject", "prev", "hash")
    row = {name: getattr(entry, name) for name in names}
    connection.execute(sa.insert(audit_log), [{**row, "body": to_bytes(entry.body).decode()}])


def hash_at(connection: sa.Connection, seq: int) -> str | None:
    """The hash of one entry."""
    return connection.execute(sa.select(audit_log.c.hash).where(audit_log.c.seq == seq)).scalar_one_or_none()


def count(connection: sa.Connection) -> int:
    """How many entries were ever logged."""
    return last_number(connection, COUNTER)


def read_pieces(connection: sa.Connection, entries_max: int) -> Iterator[list[Entry]]:
    """Read the whole log in order, so many entries at a time."""
    after = None
    while True:
        chosen = sa.select(audit_log).order_by(audit_log.c.seq).limit(entries_max)
        rows = connection.execute(chosen if after is None else chosen.where(audit_log.c.seq > after)).all()
        if not rows:
            return
        yield [from_row(row) for row in rows]
        after = rows[-1].seq


def page(
    connection: sa.Connection, asked: pages.Page, *, subject: str | None, who: str | None, action: str | None
) -> pages.Document:
    """List entries in their order, of one subject, person or action if named."""
    table = audit_log.c
    chosen = sa.select(audit_log)
    for column, value in ((table.subject, subject), (table.who, who), (table.action, action)):
        if value is not None:
            chosen = chosen.where(column == value)
    return pages.fetch(connection, chosen, asked, at=table.seq, key=table.hash, to_document=_to_document)


def _to_document(row: Any) -> pages.Document:
    shown = {column.name: getattr(row, column.name) for column in audit_log.columns}
    body = from_row(row).body
    return {**shown, "body": row.body if type(body) is object else body}
