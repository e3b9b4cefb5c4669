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

EVER = 0  # where a license's first span begins
AHEAD_S = 100 * 86_400  # runs come more often than that; where none did, its periods are added up by the next one
_MONTH = "month"  # no span is longer, whatever a license is billed by

license_spans = sa.Table(
    "license_spans",
    metadata,
    sa.Column("license", sa.Text, primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True),
    sa.Column("end_at", sa.BigInteger, nullable=False),
)
Cuts = dict[str, list[int]]  # by license: where its spans begin, in order
_STARTS = Prepared(
    sa.select(license_spans.c.license, license_spans.c.start_at)
    .where(listed(license_spans.c.license, "licenses"))
    .order_by(license_spans.c.license, license_spans.c.start_at)
)


def ahead(schedule: Schedule, last: Mapping[str, Bounds], until: int) -> set[int]:
    """Where periods will begin, as far as can be told now; `last` are those that are stored, by interval."""
    intervals = schedule.intervals | {_MONTH}
    return {
        bounds.start_at
        for interval in intervals
        for bounds in periods.opened(schedule, interval, last.get(interval), until)
    }


def read(connection: sa.Connection, license_ids: Collection[str]) -> Cuts:
    """Where the spans of licenses begin; of a license that has none yet, nothing."""
    found: Cuts = {}
    for some in pieces(license_ids):
        for license_id, start_at in _STARTS.all(connection, licenses=some):
            found.setdefault(license_id, []).append(start_at)
    return found


def put(connection: sa.Connection, cuts: Mapping[str, Iterable[int]]) -> None:
    """Let the spans of licenses begin at these instants, and nowhere else."""
    for some in pieces(cuts):
        connection.execute(sa.delete(license_spans).where(license_spans.c.license.in_(some)))
    insert_all(connection, license_spans, [row for each, starts in cuts.items() for row in _rows(each, starts)])


def _rows(license_id: str, starts: Iterable[int]) -> Iterator[dict[str, object]]:
    ordered = sorted({EVER, *starts})
    for start_at, end_at in zip(ordered, [*ordered[1:], INTEGER_MAX], strict=True):
        yield {"license": license_id, "start_at": start_at, "end_at": end_at}
