"""Usage as it was signed (batches), what is queried of it (usage records), and exceptions."""

import zlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import BIG, metadata
from meterkit import envelopes
from meterkit.exchange import Batch, read_batch

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("acceptance", BIG, primary_key=True, autoincrement=False),
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("epoch", sa.Text, nullable=False),
    sa.Column("from_seq", sa.BigInteger, nullable=False),
    sa.Column("to_seq", sa.BigInteger, nullable=False),
    sa.Column("prev", sa.Text, nullable=False),
    sa.Column("head", sa.Text, nullable=False),
    # Its own part of its branch starts at `first_new`; `parent` is the batch that brought the record before it.
    sa.Column("first_new", sa.BigInteger, nullable=False),
    sa.Column("parent", sa.BigInteger),
    sa.Column("license", sa.Text),
    sa.Column("through", sa.BigInteger, nullable=False),
    sa.Column("made_at", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("batches_by_place", "device", "epoch", "to_seq"),
)
usage_records = sa.Table(
    "usage_records",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("hash", sa.Text, primary_key=True),
    sa.Column("prev", sa.Text, nullable=False),
    sa.Column("license", sa.Text, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("unsettled", sa.BigInteger, nullable=False),
    sa.Column("window", sa.BigInteger, nullable=False),
    sa.Column("provisional", sa.Boolean, nullable=False),
    sa.Column("service_at", sa.BigInteger, nullable=False),
    sa.Column("shifted", sa.Boolean, nullable=False),
    sa.Column("flags", sa.JSON, nullable=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    sa.Column("acceptance", sa.BigInteger, nullable=False),
    sa.Column("quarantined", sa.Boolean, nullable=False),
    sa.Index("usage_by_meter", "license", "model", "unit", "service_at"),
    sa.Index("usage_by_acceptance", "acceptance"),
)
exceptions = sa.Table(
    "exceptions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), nullable=False, index=True),
    sa.Column("license", sa.Text),
    sa.Column("epoch", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("resolved_at", sa.BigInteger),
    sa.Column("resolved_by", sa.Text),
    sa.Column("resolution", sa.Text),
)
_HALF = 2**26  # sums of quarantined units are taken in halves: whoever signed them may have wanted an overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch as it was accepted: its number, which of its records it was the first to bring, and itself."""

    acceptance: int
    first_new: int
    batch: Batch


def pack(text: str) -> bytes:
    """Write a signed batch as it is kept."""
    return zlib.compress(text.encode("ascii"))


def unpack(body: bytes) -> str:
    """Read a signed batch as it was kept."""
    return zlib.decompress(body).decode("ascii")


def read_overlapping(
    connection: sa.Connection, device: str, epoch: str, seq_from: int, seq_to: int
) -> list[StoredBatch]:
    """Read the batches that were the first to bring any of these records, on whatever branch."""
    table = batches.c
    chosen = sa.select(table.acceptance, table.first_new, table.body).where(
        table.device == device, table.epoch == epoch, table.to_seq >= seq_from, table.first_new <= seq_to
    )
    return [
        StoredBatch(acceptance=row.acceptance, first_new=row.first_new, batch=_open_own(unpack(row.body)))
        for row in connection.execute(chosen.order_by(table.acceptance))
    ]


def _open_own(text: str) -> Batch:
    """Open a batch whose signature was checked before it was stored."""
    return read_batch(envelopes.unverified_parts(envelopes.BATCH, text).payload)


def insert_batch(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a batch as it was signed."""
    connection.execute(sa.insert(batches), [row])


def insert_records(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Store usage records."""
    if rows:
        connection.execute(sa.insert(usage_records), rows)


def insert_exception(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Open an exception."""
    connection.execute(sa.insert(exceptions), [row])


def has_open_exception(connection: sa.Connection, device: str, epoch: str, kind: str) -> bool:
    """Tell whether an exception of this kind is open for a ledger."""
    return (
        connection.execute(sa.select(exceptions.c.id).where(_open(device, epoch, kind)).limit(1)).first()
        is not None
    )


def _open(device: str, epoch: str, kind: str) -> sa.ColumnElement[bool]:
    table = exceptions.c
    return sa.and_(table.device == device, table.epoch == epoch, table.kind == kind, table.state == "open")


def find_exception(connection: sa.Connection, exception_id: str) -> Any:
    """Find an exception's row."""
    return connection.execute(sa.select(exceptions).where(exceptions.c.id == exception_id)).one_or_none()


def resolve_exception(connection: sa.Connection, exception_id: str, *, how: str, who: str, now: int) -> None:
    """Close an exception: who, how and when."""
    values = {"state": "resolved", "resolution": how, "resolved_by": who, "resolved_at": now}
    connection.execute(sa.update(exceptions).where(exceptions.c.id == exception_id).values(values))


def count_open(connection: sa.Connection, device: str, kind: str) -> int:
    """How many exceptions of a kind are open for a device."""
    table = exceptions.c
    chosen = sa.select(sa.func.count()).where(table.device == device, table.kind == kind, table.state == "open")
    return connection.execute(chosen).scalar_one()


def exception_to_document(row: Any) -> pages.Document:
    """Show an exception to people."""
    return {column.name: getattr(row, column.name) for column in exceptions.columns}


def page_exceptions(
    connection: sa.Connection, asked: pages.Page, *, device: str | None, license_id: str | None, state: str | None
) -> pages.Document:
    """List exceptions, of one device, license or state if named."""
    table = exceptions.c
    chosen = sa.select(exceptions)
    for column, value in ((table.device, device), (table.license, license_id), (table.state, state)):
        if value is not None:
            chosen = chosen.where(column == value)
    return pages.fetch(
        connection, chosen, asked, at=table.opened_at, key=table.id, to_document=exception_to_document
    )


def sum_units(
    connection: sa.Connection, *, license_id: str | None, meter: tuple[str | None, str | None], at: tuple[int, int]
) -> list[pages.Document]:
    """Sum accepted units per license and meter, of records whose service time lies in `at` (half-open)."""
    table = usage_records.c
    counted = sa.case((table.quarantined.is_(False), 1), else_=0)
    aside = 1 - counted
    both = table.units + table.unsettled
    chosen = sa.select(
        table.license,
        table.model,
        table.unit,
        sa.func.count().label("records"),
        sa.func.sum(counted * table.units).label("units"),
        sa.func.sum(counted * table.unsettled).label("unsettled"),
        sa.func.sum(aside * (both // _HALF)).label("aside_high"),
        sa.func.sum(aside * (both % _HALF)).label("aside_low"),
    ).where(table.service_at >= at[0], table.service_at < at[1])
    for column, value in ((table.license, license_id), (table.model, meter[0]), (table.unit, meter[1])):
        if value is not None:
            chosen = chosen.where(column == value)
    grouped = chosen.group_by(table.license, table.model, table.unit)
    rows = connection.execute(grouped.order_by(table.license, table.model, table.unit))
    return [
        {
            "license": row.license,
            "model": row.model,
            "unit": row.unit,
            "records": row.records,
            "units": row.units,
            "unsettled": row.unsettled,
            "quarantined": int(row.aside_high) * _HALF + int(row.aside_low),
        }
        for row in rows
    ]


def batch_row(batch: Batch, *, device: str, text: str, received_at: int) -> dict[str, Any]:
    """Write a batch's row, but for its number and its place in its branch."""
    return {
        "device": device,
        "epoch": batch.epoch,
        "from_seq": batch.seq_from,
        "to_seq": batch.seq_to,
        "prev": batch.prev,
        "head": batch.head,
        "license": batch.license_id,
        "through": batch.through,
        "made_at": batch.made_at,
        "received_at": received_at,
        "body": pack(text),
    }
