"""What people decided about devices, for good: exposures written off, and devices replaced."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import listed, metadata, next_number, number_to_come
from licensing_server.prepared import Prepared

# Exposure of one life of a ledger, of the tokens up to a serial, counted as 0 until that ledger is heard of again.
write_offs = sa.Table(
    "write_offs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("epoch", sa.Text, nullable=False),
    sa.Column("serial", sa.BigInteger, nullable=False),
    sa.Column("exposures", sa.JSON, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("reversed_at", sa.BigInteger),
    sa.Column("reversed_by", sa.BigInteger),  # the batch that did it
    sa.Index("write_offs_by_ledger", "device", "epoch"),
)
_WRITTEN_OFF = Prepared(
    sa.select(write_offs.c.device).where(
        listed(write_offs.c.device, "devices"), write_offs.c.reversed_at.is_(None)
    )
)
# What a person said of a device, or what its report said for it; billing runs from `since_run` on know it.
declarations = sa.Table(
    "declarations",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),  # active | retired | lost
    sa.Column("since_run", sa.BigInteger, nullable=False),
)
replacements = sa.Table(
    "replacements",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), nullable=False, unique=True),
    sa.Column("license", sa.Text, sa.ForeignKey("licenses.id"), nullable=False),
    sa.Column("code", sa.Text, sa.ForeignKey("activation_codes.id"), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("replacements_by_license", "license", "created_at"),
)


def insert_write_off(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a write-off."""
    connection.execute(sa.insert(write_offs), [row])


def _standing(device: Any, epoch: Any) -> sa.ColumnElement[bool]:
    table = write_offs.c
    return sa.and_(table.device == device, table.epoch == epoch, table.reversed_at.is_(None))


def written_off_up_to(device: Any, epoch: Any) -> sa.ColumnElement[int]:
    """The highest serial of the tokens whose exposure in a ledger is written off; 0 where none is."""
    highest = sa.select(sa.func.max(write_offs.c.serial)).where(_standing(device, epoch)).scalar_subquery()
    return sa.func.coalesce(highest, 0)


def written_off_serial(connection: sa.Connection, device: str, epoch: str) -> int:
    """The same, of one ledger."""
    return int(connection.execute(sa.select(written_off_up_to(device, epoch))).scalar_one())


def devices_with_write_offs(connection: sa.Connection, devices: Collection[str]) -> set[str]:
    """Those of several devices of which something is written off."""
    return {row.device for row in _WRITTEN_OFF.all(connection, devices=devices)}


def reverse_write_offs(connection: sa.Connection, device: str, epoch: str, *, acceptance: int, now: int) -> None:
    """Undo what was written off of a ledger, as records of it have come after all."""
    values = {"reversed_at": now, "reversed_by": acceptance}
    connection.execute(sa.update(write_offs).where(_standing(device, epoch)).values(values))


def insert_declaration(connection: sa.Connection, device: str, state: str) -> None:
    """Note what was declared of a device; the next billing run knows it."""
    row = {
        "number": next_number(connection, "declaration"),
        "device": device,
        "state": state,
        "since_run": number_to_come(connection, "billing_run"),
    }
    connection.execute(sa.insert(declarations), [row])


def read_declarations(
    connection: sa.Connection, device_ids: Collection[str], upto_run: int
) -> list[dict[str, Any]]:
    """What was declared of some devices, as a billing run knows it, in the order in which it was."""
    table = declarations.c
    chosen = sa.select(table.device, table.state, table.since_run).where(
        table.device.in_(list(device_ids)), table.since_run <= upto_run
    )
    rows = connection.execute(chosen.order_by(table.device, table.number))
    return [dict(row._mapping) for row in rows]  # noqa: SLF001  SQLAlchemy's public name


def page_write_offs(connection: sa.Connection, device: str, asked: pages.Page) -> pages.Document:
    """List what was written off of a device."""
    return _page(connection, write_offs, write_offs.c.device == device, asked)


def insert_replacement(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a replacement."""
    connection.execute(sa.insert(replacements), [row])


def count_replacements(connection: sa.Connection, license_id: str, since: int) -> int:
    """How many devices of a license were replaced after an instant."""
    table = replacements.c
    chosen = sa.select(sa.func.count()).where(table.license == license_id, table.created_at > since)
    return connection.execute(chosen).scalar_one()


def page_replacements(connection: sa.Connection, license_id: str, asked: pages.Page) -> pages.Document:
    """List the devices of a license that were replaced."""
    return _page(connection, replacements, replacements.c.license == license_id, asked)


def _page(
    connection: sa.Connection, table: sa.Table, chosen: sa.ColumnElement[bool], asked: pages.Page
) -> pages.Document:
    return pages.fetch(
        connection,
        sa.select(table).where(chosen),
        asked,
        at=table.c.created_at,
        key=table.c.id,
        to_document=lambda row: {column.name: getattr(row, column.name) for column in table.columns},
    )
