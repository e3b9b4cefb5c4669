"""What people decided about exceptions: appended to, never updated; and the records that a decision is about."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import metadata, pieces
from licensing_server.usage import repeats
from licensing_server.usage.store import batches, exceptions, standing, usage_records
from meterkit.positions import Position

exception_decisions = sa.Table(
    "exception_decisions",
    metadata,
    sa.Column("exception", sa.Text, sa.ForeignKey("exceptions.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),  # acknowledge | resolve | reopen
    sa.Column("outcome", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("note", sa.Text),
    # What a resolution changes in the sums: from which billing run on, and of a dismissed branch, which.
    sa.Column("since_run", sa.BigInteger),
    sa.Column("branch_seq", sa.BigInteger),
    sa.Column("branch_head", sa.Text),
    sa.Column("acceptance", sa.BigInteger),
)


def append(connection: sa.Connection, exception_id: str, row: dict[str, Any]) -> None:
    """Store the next decision about an exception."""
    table = exception_decisions.c
    last = sa.select(sa.func.max(table.number)).where(table.exception == exception_id)
    number = (connection.execute(last).scalar_one() or 0) + 1
    connection.execute(sa.insert(exception_decisions), [{"exception": exception_id, "number": number, **row}])


def read(connection: sa.Connection, exception_id: str) -> list[pages.Document]:
    """What was decided about an exception, in order."""
    table = exception_decisions.c
    chosen = sa.select(exception_decisions).where(table.exception == exception_id).order_by(table.number)
    names = [column.name for column in exception_decisions.columns if column.name != "exception"]
    return [{name: getattr(row, name) for name in names} for row in connection.execute(chosen)]


def dismissals(connection: sa.Connection, devices: Iterable[str], run: int) -> list[pages.Document]:
    """The branches of some devices' ledgers that were dismissed, by the decisions that a billing run knows."""
    decided, found = exception_decisions.c, exceptions.c
    chosen = (
        sa.select(
            found.device,
            found.epoch,
            decided.branch_seq.label("seq"),
            decided.branch_head.label("head"),
            decided.acceptance,
            decided.since_run,
        )
        .join(exceptions, found.id == decided.exception)
        .where(found.device.in_(list(devices)), decided.outcome == "dismiss_branch", decided.since_run <= run)
    )
    rows = connection.execute(chosen.order_by(decided.since_run, found.device, found.epoch, decided.branch_head))
    return [dict(row._mapping) for row in rows]  # noqa: SLF001  SQLAlchemy's public name


def releases(connection: sa.Connection, device: str) -> list[Any]:
    """The exceptions of a device whose records were released: with their evidence, and since which run."""
    decided, found = exception_decisions.c, exceptions.c
    chosen = (
        sa.select(found.kind, found.epoch, found.evidence, decided.since_run)
        .join(exceptions, found.id == decided.exception)
        .where(found.device == device, decided.outcome == "release")
    )
    return list(connection.execute(chosen.order_by(decided.since_run, found.id)))


def set_aside_records(connection: sa.Connection, exception: Any) -> list[Any]:
    """The records that an exception is about: those of its batch set aside for its reason, or repeating others."""
    batch, record = batches.c, usage_records.c
    brought = (
        sa.select(sa.func.min(batch.acceptance))
        .where(batch.device == exception.device, batch.epoch == exception.epoch)
        .where(batch.head == exception.evidence["head"], batch.first_new <= exception.evidence["first"])
        .scalar_subquery()
    )
    reason = sa.func.coalesce(record.quarantined_for, exception.kind)
    aside = sa.and_(record.quarantined.is_(True), reason == exception.kind)
    chosen = sa.select(usage_records).where(
        record.device == exception.device,
        record.epoch == exception.epoch,
        record.acceptance == brought,
        record.repeated > 0 if exception.kind == repeats.KIND else aside,
    )
    return list(connection.execute(chosen.order_by(record.seq)))


def counted_records(connection: sa.Connection, device: str, epoch: str, hashes: Iterable[str]) -> list[Any]:
    """Those of the named records that are usage, and not dismissed yet."""
    record = usage_records.c
    found: list[Any] = []
    held = standing(record)
    for names in pieces(hashes):
        chosen = sa.select(
            usage_records, held.counted.label("is_counted"), held.units.label("counted_units")
        ).where(record.device == device, record.epoch == epoch, record.hash.in_(names))
        found += connection.execute(chosen.where(record.dismissed_run.is_(None)))
    return found


def repeating_records(connection: sa.Connection, device: str) -> set[tuple[str, str]]:
    """The records, as (epoch, hash), of which units do not count: another branch told of them before."""
    record = usage_records.c
    waiting = sa.and_(record.repeated > 0, record.released_run.is_(None), record.dismissed_run.is_(None))
    chosen = sa.select(record.epoch, record.hash).where(record.device == device, waiting)
    return {(row.epoch, row.hash) for row in connection.execute(chosen)}


def aside_names(connection: sa.Connection, device: str) -> frozenset[tuple[str, str]]:
    """The records of a device that the rule sets aside, whatever was decided since, as (epoch, hash)."""
    record = usage_records.c
    chosen = sa.select(record.epoch, record.hash).where(record.device == device, record.quarantined.is_(True))
    return frozenset((row.epoch, row.hash) for row in connection.execute(chosen))


def mark_released(connection: sa.Connection, records: Iterable[Any], run: int) -> None:
    """Let records into the sums, from a billing run on."""
    _mark(connection, records, released_run=run)


def mark_dismissed(connection: sa.Connection, records: Iterable[Any], run: int) -> None:
    """Take records out of the sums, from a billing run on."""
    _mark(connection, records, dismissed_run=run)


def _mark(connection: sa.Connection, records: Iterable[Any], **values: int) -> None:
    record = usage_records.c
    ledgers: dict[tuple[str, str], list[str]] = {}
    for each in records:
        ledgers.setdefault((each.device, each.epoch), []).append(each.hash)
    for (device, epoch), hashes in ledgers.items():
        for names in pieces(hashes):
            these = sa.and_(record.device == device, record.epoch == epoch, record.hash.in_(names))
            connection.execute(sa.update(usage_records).where(these).values(values))


def newest_acceptance(connection: sa.Connection, device: str) -> int:
    """The number of the last batch accepted of a device."""
    chosen = sa.select(sa.func.max(batches.c.acceptance)).where(batches.c.device == device)
    return int(connection.execute(chosen).scalar_one() or 0)


def tip_position(epoch: str, row: pages.Document) -> Position:
    """The position of a dismissed branch's end."""
    return Position(epoch=epoch, seq=row["seq"], head=row["head"])
