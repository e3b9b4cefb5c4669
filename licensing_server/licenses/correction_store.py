"""Corrections of licenses' timelines, in the database: versions that start in the past (BILLING §2)."""

from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from licensing_server.database import metadata, pieces

version_corrections = sa.Table(
    "version_corrections",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("license", sa.Text, sa.ForeignKey("licenses.id"), nullable=False),
    sa.Column("place", sa.Integer, nullable=False),  # of the license's corrections, in the order of decision
    sa.Column("starts_at", sa.BigInteger, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("since_run", sa.BigInteger, nullable=False),  # the first billing run that knew it
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("license", "place", name="version_corrections_in_order"),
)


def insert(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a correction as the license's newest; the license is the caller's to lock."""
    table = version_corrections.c
    newest = sa.select(sa.func.max(table.place)).where(table.license == row["license"])
    place = (connection.execute(newest).scalar() or 0) + 1
    connection.execute(sa.insert(version_corrections), [{**row, "place": place}])


def read(connection: sa.Connection, license_ids: Iterable[str]) -> Iterator[Any]:
    """The corrections of licenses, each one's in the order in which they were decided."""
    table = version_corrections.c
    for some in pieces(license_ids):
        chosen = sa.select(version_corrections).where(table.license.in_(some))
        yield from connection.execute(chosen.order_by(table.license, table.place))


def show(connection: sa.Connection, license_id: str) -> list[dict[str, Any]]:
    """A license's corrections, for people."""
    names = ("id", "starts_at", "plan", "version", "since_run", "note", "created_at")
    return [{name: getattr(row, name) for name in names} for row in read(connection, [license_id])]
