"""Usage as it was signed (batches), what is queried of it (usage records), and exceptions."""

import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import BIG, insert_all, insert_values, listed, metadata, pieces, total
from licensing_server.prepared import Prepared
from meterkit import envelopes
from meterkit.exchange import Batch, read_batch
from meterkit.limits import INTEGER_MAX

batches = sa.Table(
    "batches",
    metadata,
    # All of usage is keyed by its device first, so that a database can be partitioned by it. That no two batches
    # have one number is the counter's doing.
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("acceptance", BIG, primary_key=True, autoincrement=False),
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
    sa.Column("device", sa.Text, primary_key=True),
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
    # By the rule, for good, and why; the billing runs that are the first to know what a person decided since.
    sa.Column("quarantined", sa.Boolean, nullable=False),
    sa.Column("quarantined_for", sa.Text),
    sa.Column("released_run", sa.BigInteger),
    sa.Column("dismissed_run", sa.BigInteger),
    # So many of the units another branch told of before; they do not count, unless they were released.
    sa.Column("repeated", sa.BigInteger, nullable=False, server_default="0"),
    # A record's device is its batch's, which refers to the table. PostgreSQL would ask for it row by row, in an
    # eighth of the time that taking usage in costs it; from SQLite's table it could only be taken by copying all.
    sa.ForeignKeyConstraint(["device"], ["devices.id"]).ddl_if(dialect="sqlite"),
    sa.Index("usage_by_meter", "license", "model", "unit", "service_at"),
    sa.Index("usage_by_acceptance", "acceptance"),
)
# What of the records is looked at one by one; all others count whole, whatever a billing run knows of decisions.
ODD = sa.or_(
    usage_records.c.quarantined.is_(True),
    usage_records.c.repeated > sa.literal_column("0"),
    usage_records.c.dismissed_run.is_not(None),
)
sa.Index("usage_odd", usage_records.c.license, sqlite_where=ODD, postgresql_where=ODD)
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
    sa.Column("outcome", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("note", sa.Text),
)
_OPEN_KINDS = Prepared(
    sa.select(exceptions.c.device, exceptions.c.epoch, exceptions.c.kind).where(
        listed(exceptions.c.device, "devices"), exceptions.c.state != "resolved"
    )
)
_PACKED = 2  # of zlib's levels: the usual one takes twice as long, for a fifteenth less
ACCEPTANCE = "acceptance"  # the counter of batches: its numbers come in commit order and leave no gap
HALF = 2**26  # sums of quarantined units are taken in halves: whoever signed them may have wanted an overflow
_NEVER = INTEGER_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a usage record counts, as conditions of which exactly one holds: in the sums, set aside, dismissed.

    Of one that counts, so many `units` do, and so many are `repeated` ones that do not.
    """

    counted: sa.ColumnElement[bool]
    aside: sa.ColumnElement[bool]
    dismissed: sa.ColumnElement[bool]
    units: sa.ColumnElement[int]
    repeated: sa.ColumnElement[int]


def standing(columns: Any, run: int = _NEVER - 1) -> Standing:
    """How records count by the decisions that a billing run knows; by all of them, if none is named."""
    released = sa.func.coalesce(columns.released_run, _NEVER) <= run
    dismissed = sa.func.coalesce(columns.dismissed_run, _NEVER) <= run
    let_in = sa.or_(columns.quarantined.is_(False), released)
    return Standing(
        counted=sa.and_(let_in, sa.not_(dismissed)),
        aside=sa.not_(let_in),
        dismissed=sa.and_(let_in, dismissed),
        units=sa.case((released, columns.units), else_=columns.units - columns.repeated),
        repeated=sa.case((released, 0), else_=columns.repeated),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch as it was accepted: its number, which of its records it was the first to bring, and itself."""

    acceptance: int
    first_new: int
    batch: Batch


def pack(text: str) -> bytes:
    """Write a signed batch as it is kept."""
    return zlib.compress(text.encode("ascii"), _PACKED)


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


def read_batches(connection: sa.Connection, device: str, numbers: Iterable[int]) -> Iterator[StoredBatch]:
    """Read some batches of a device."""
    table = batches.c
    for some in pieces(numbers):
        chosen = sa.select(table.acceptance, table.first_new, table.body)
        chosen = chosen.where(table.device == device, table.acceptance.in_(some))
        for row in connection.execute(chosen):
            batch = _open_own(unpack(row.body))
            yield StoredBatch(acceptance=row.acceptance, first_new=row.first_new, batch=batch)


def _open_own(text: str) -> Batch:
    """Open a batch whose signature was checked before it was stored."""
    return read_batch(envelopes.unverified_parts(envelopes.BATCH, text).payload)


def read_placed(connection: sa.Connection, device: str, epoch: str) -> list[Any]:
    """Where an epoch's batches lie that brought records: their numbers, parents and own ranges."""
    table = batches.c
    chosen = sa.select(table.acceptance, table.parent, table.first_new, table.to_seq)
    own = chosen.where(table.device == device, table.epoch == epoch, table.first_new <= table.to_seq)
    return list(connection.execute(own))


def read_standing(connection: sa.Connection, device: str, numbers: Iterable[int]) -> set[tuple[int, int]]:
    """The records of some batches of a device that no rule sets aside and nobody dismissed: acceptance, seq."""
    table = usage_records.c
    found: set[tuple[int, int]] = set()
    for some in pieces(numbers):
        chosen = sa.select(table.acceptance, table.seq).where(table.acceptance.in_(some), table.device == device)
        standing = chosen.where(table.quarantined.is_(False), table.dismissed_run.is_(None))
        found.update((row.acceptance, row.seq) for row in connection.execute(standing))
    return found


def insert_batches(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Store batches as they were signed."""
    insert_all(connection, batches, rows)


def insert_records(connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
    """Store usage records."""
    insert_all(connection, usage_records, rows)


# What is known of a record before it is stored; its number comes last.
_RECORD = (
    *(
        "device",
        "epoch",
        "seq",
        "hash",
        "prev",
        "license",
        "token",
        "model",
        "unit",
        "digest",
        "units",
        "unsettled",
    ),
    *("window", "provisional", "service_at", "shifted", "flags", "recorded_at", "quarantined", "quarantined_for"),
    "repeated",
)


def record_values(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Write a usage record's row but for its number, as `insert_record_values` takes it."""
    return tuple(json.dumps(row[name]) if name == "flags" else row[name] for name in _RECORD)


def insert_record_values(connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Store usage records, each as `record_values` has it and with the number of its batch."""
    insert_values(connection, usage_records, (*_RECORD, "acceptance"), rows)


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
    return sa.and_(table.device == device, table.epoch == epoch, table.kind == kind, table.state != "resolved")


def read_open_kinds(connection: sa.Connection, devices: Collection[str]) -> set[tuple[str, str, str]]:
    """What exceptions are open for several devices: each a device, an epoch and a kind."""
    rows = _OPEN_KINDS.all(connection, devices=devices)
    return {(row.device, row.epoch, row.kind) for row in rows}


def find_exception(connection: sa.Connection, exception_id: str) -> Any:
    """Find an exception's row."""
    return connection.execute(sa.select(exceptions).where(exceptions.c.id == exception_id)).one_or_none()


def update_exception(
    connection: sa.Connection, exception_id: str, states: Sequence[str], values: dict[str, Any]
) -> bool:
    """Change how an exception stands, if it is in one of these states; tells whether it was."""
    this = sa.and_(exceptions.c.id == exception_id, exceptions.c.state.in_(states))
    return connection.execute(sa.update(exceptions).where(this).values(values)).rowcount == 1


def count_open(connection: sa.Connection, device: str, kind: str) -> int:
    """How many exceptions of a kind wait for a person, of a device."""
    table = exceptions.c
    chosen = sa.select(sa.func.count()).where(
        table.device == device, table.kind == kind, table.state != "resolved"
    )
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
    held = standing(table)
    both = table.units + table.unsettled
    chosen = sa.select(
        table.license,
        table.model,
        table.unit,
        sa.func.count().label("records"),
        total(sa.case((held.counted, held.units), else_=0)).label("units"),
        total(sa.case((held.counted, table.unsettled), else_=0)).label("unsettled"),
        total(sa.case((held.aside, both // HALF), else_=0)).label("aside_high"),
        total(sa.case((held.aside, both % HALF), else_=0)).label("aside_low"),
        total(sa.case((held.dismissed, both), else_=0)).label("dismissed"),
        total(sa.case((held.counted, held.repeated), else_=0)).label("repeated"),
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
            "units": int(row.units),
            "unsettled": int(row.unsettled),
            "quarantined": int(row.aside_high) * HALF + int(row.aside_low),
            "dismissed": int(row.dismissed),
            "repeated": int(row.repeated),
        }
        for row in rows
    ]


def batch_row(batch: Batch, *, device: str) -> dict[str, Any]:
    """Write what a batch's row takes from the batch itself."""
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
    }
