"""The spans of time in which a license's usage is added up as it comes in (`usage.rollups`).

They follow each other without gap, from ever to ever, and none reaches over a bound of a billing period: whatever
periods a run knows, each holds whole spans. So they begin where periods do, as far ahead as can be told; a bound
that turns out otherwise later (a changed zone, a new version of a plan) cuts the span that it lies in.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import sqlalchemy as sa

from licensing_server.database import insert_all, listed, metadata, pieces
from licensing_server.licenses import periods
from licensing_server.licenses.periods import Bounds, Schedule
from licensing_server.prepared import Prepared
from meterkit.limits import INTEGER_MAX

_NO_RUN = 0  # they are counted from 1
EVER = 0  # where a license's first span begins
AHEAD_S = 100 * 86_400  # runs come more often than that; where none did, its periods are added up by the next one
_MONTH = "month"  # no span is longer, whatever a license is billed by

license_spans = sa.Table(
    "license_spans",
    metadata,
    sa.Column("license", sa.Text, primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True),
    sa.Column("end_at", sa.BigInteger, nullable=False),
    # Nothing is added up in it yet, and only this billing run has sums of its own (`billing.run_sums`).
    sa.Column("only_run", sa.BigInteger),
)
_NOT_ADDED_UP = license_spans.c.only_run.is_not(None)
sa.Index("spans_of_runs", license_spans.c.only_run, sqlite_where=_NOT_ADDED_UP, postgresql_where=_NOT_ADDED_UP)
Cuts = dict[str, list[int]]  # by license: where its spans begin, in order
_STARTS = (
    sa.select(license_spans.c.license, license_spans.c.start_at)
    .where(listed(license_spans.c.license, "licenses"))
    .order_by(license_spans.c.license, license_spans.c.start_at)
)
_ADDED_UP = Prepared(_STARTS.where(license_spans.c.only_run.is_(None)))
_OF_RUN = Prepared(_STARTS.where(license_spans.c.only_run == sa.bindparam("run")))


def ahead(schedule: Schedule, last: Mapping[str, Bounds], until: int) -> set[int]:
    """Where periods will begin, as far as can be told now; `last` are those that are stored, by interval."""
    intervals = schedule.intervals | {_MONTH}
    return {
        bounds.start_at
        for interval in intervals
        for bounds in periods.opened(schedule, interval, last.get(interval), until)
    }


def read(connection: sa.Connection, license_ids: Collection[str]) -> Cuts:
    """Where the spans of licenses begin; of a license whose usage is not added up yet, nothing."""
    return _read(connection, _ADDED_UP, license_ids)


def read_of_run(connection: sa.Connection, license_ids: Collection[str], run: int) -> Cuts:
    """Where the spans of licenses begin of which only this billing run has sums."""
    return _read(connection, _OF_RUN, license_ids, run=run)


def _read(connection: sa.Connection, chosen: Prepared, license_ids: Collection[str], **named: int) -> Cuts:
    found: Cuts = {}
    for some in pieces(license_ids):
        for license_id, start_at in chosen.all(connection, licenses=some, **named):
            found.setdefault(license_id, []).append(start_at)
    return found


def put(connection: sa.Connection, cuts: Mapping[str, Iterable[int]], *, only_run: int | None = None) -> None:
    """Let the spans of licenses begin at these instants, and nowhere else."""
    for some in pieces(cuts):
        connection.execute(sa.delete(license_spans).where(license_spans.c.license.in_(some)))
    rows = [
        {"license": license_id, "start_at": start_at, "end_at": end_at, "only_run": only_run}
        for license_id, starts in cuts.items()
        for start_at, end_at in _bounds(starts)
    ]
    insert_all(connection, license_spans, rows)


def begin(connection: sa.Connection, license_ids: Collection[str]) -> None:
    """Say that usage is added up in the spans of licenses, from here on."""
    here = license_spans.c.license.in_(license_ids)
    connection.execute(sa.update(license_spans).where(here, _NOT_ADDED_UP).values(only_run=None))


def disown(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Say that what a run has of some of the spans that are its alone is not right any more."""
    connection.execute(sa.update(license_spans).where(which, _NOT_ADDED_UP).values(only_run=_NO_RUN))


def _bounds(starts: Iterable[int]) -> Iterator[tuple[int, int]]:
    ordered = sorted({EVER, *starts})
    return zip(ordered, [*ordered[1:], INTEGER_MAX], strict=True)
