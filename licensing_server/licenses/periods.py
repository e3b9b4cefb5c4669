"""When a license's billing periods begin and end: local midnights, kept as UTC instants (BILLING §2).

Bounds are counted from the license's anchor each time and clamped to the month. They are calculated when a
period opens, stored, and from then on read back: a changed time zone, or a new table of time zones, acts
from the next period on. Periods are half-open; all instants are seconds UTC.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from licensing_server.database import metadata, pieces

_MONTHS = {"month": 1, "year": 12}
_DAYS = {"day": 1, "week": 7}
_SECONDS = {"day": 86_400, "week": 604_800, "month": 2_629_746, "year": 31_556_952}  # on average, to start from
_HALF_DAY = dt.timedelta(hours=12)

license_periods = sa.Table(
    "license_periods",
    metadata,
    sa.Column("license", sa.Text, primary_key=True),
    sa.Column("interval", sa.Text, primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True),
    sa.Column("end_at", sa.BigInteger, nullable=False),
    sa.Column("nth", sa.Integer, nullable=False),
    sa.Column("whole_start_at", sa.BigInteger, nullable=False),
    sa.Column("whole_end_at", sa.BigInteger, nullable=False),
    sa.Column("since_run", sa.BigInteger, nullable=False),  # the first billing run that knew it
    sa.Column("cut_run", sa.BigInteger, nullable=False, server_default="0"),  # the first that knew this end
    sa.Column("end_before", sa.BigInteger),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """One period, `nth` from the anchor. Where it is a short one, it is a piece of a whole one.

    `since_run` is the first billing run that knows it; those before `cut_run` knew it to end at `end_before`.
    """

    nth: int
    start_at: int
    end_at: int
    whole_start_at: int
    whole_end_at: int
    since_run: int = 0
    cut_run: int = 0
    end_before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What a license's periods are counted from: its anchor and zone, its start and end, its intervals.

    `changes_at` are the instants from which new versions of its plan count.
    """

    license_id: str
    zone: ZoneInfo
    anchor_at: int
    starts_at: int
    ends_at: int | None
    intervals: frozenset[str]
    changes_at: tuple[int, ...] = ()


def _local(at: int, zone: ZoneInfo) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, tz=zone)


def local_midnight(day: dt.date, zone: ZoneInfo) -> int:
    """The instant at which a local day begins.

    A midnight that does not exist is the first instant after the gap; of two, the first.
    """
    midnight = dt.datetime.combine(day, dt.time(), tzinfo=zone)
    before_gap = int(midnight.timestamp())  # fold 0: the first of two; in a gap, by the offset before it
    if _local(before_gap, zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return before_gap
    late, early = before_gap, int(midnight.replace(fold=1).timestamp())
    offset = _local(late, zone).utcoffset()
    while early < late:  # the first instant at which the new offset counts
        middle = (early + late) // 2
        if _local(middle, zone).utcoffset() == offset:
            late = middle
        else:
            early = middle + 1
    return late


def day_start(at: int, zone: ZoneInfo) -> int:
    """The last local midnight at or before an instant: a license's default anchor."""
    today = _local(at, zone).date()
    tomorrow_at = local_midnight(today + dt.timedelta(days=1), zone)
    return tomorrow_at if tomorrow_at <= at else local_midnight(today, zone)


def anchor_day(anchor_at: int, zone: ZoneInfo) -> dt.date:
    """The local day that an anchor begins, also in a zone the customer moved to less than 12 hours away."""
    return (_local(anchor_at, zone).replace(tzinfo=None) + _HALF_DAY).date()


def bound(anchor: dt.date, interval: str, nth: int, zone: ZoneInfo) -> int:
    """The instant at which the period `nth` from the anchor begins; below zero before the anchor."""
    if interval in _DAYS:
        return local_midnight(anchor + dt.timedelta(days=_DAYS[interval] * nth), zone)
    months = anchor.year * 12 + anchor.month - 1 + _MONTHS[interval] * nth
    first = dt.date(months // 12, months % 12 + 1, 1)
    after = dt.date((months + 1) // 12, (months + 1) % 12 + 1, 1)
    return local_midnight(first.replace(day=min(anchor.day, (after - first).days)), zone)


def nth_at(anchor: dt.date, interval: str, at: int, zone: ZoneInfo) -> int:
    """Which period holds an instant."""
    nth = (at - local_midnight(anchor, zone)) // _SECONDS[interval]
    while bound(anchor, interval, nth, zone) > at:
        nth -= 1
    while bound(anchor, interval, nth + 1, zone) <= at:
        nth += 1
    return nth


def first_of(schedule: Schedule, interval: str) -> Bounds:
    """The period in which a license starts: from the local midnight of its first day, maybe a short one."""
    zone = schedule.zone
    anchor = anchor_day(schedule.anchor_at, zone)
    start_at = day_start(schedule.starts_at, zone)
    nth = nth_at(anchor, interval, start_at, zone)
    whole_end_at = bound(anchor, interval, nth + 1, zone)
    return Bounds(
        nth=nth,
        start_at=start_at,
        end_at=whole_end_at,
        whole_start_at=bound(anchor, interval, nth, zone),
        whole_end_at=whole_end_at,
    )


def following(last: Bounds, schedule: Schedule, interval: str) -> Bounds:
    """The period after one: the rest of the same whole one where that was cut, else the next.

    It begins where the last one ended, whatever the zone says now; a local day that a zone left out is no
    period.
    """
    if last.end_at < last.whole_end_at:
        return Bounds(
            nth=last.nth,
            start_at=last.end_at,
            end_at=last.whole_end_at,
            whole_start_at=last.whole_start_at,
            whole_end_at=last.whole_end_at,
        )
    anchor = anchor_day(schedule.anchor_at, schedule.zone)
    nth = last.nth + 1
    while (end_at := bound(anchor, interval, nth + 1, schedule.zone)) <= last.end_at:
        nth += 1
    return Bounds(nth=nth, start_at=last.end_at, end_at=end_at, whole_start_at=last.end_at, whole_end_at=end_at)


def cut(bounds: Bounds, at: int) -> tuple[Bounds, Bounds]:
    """Cut a period in two at an instant inside it; both pieces keep the whole they are taken from."""
    if not bounds.start_at < at < bounds.end_at:
        raise ValueError("the instant does not lie inside the period")
    whole = {"whole_start_at": bounds.whole_start_at, "whole_end_at": bounds.whole_end_at}
    return (
        Bounds(nth=bounds.nth, start_at=bounds.start_at, end_at=at, **whole),
        Bounds(nth=bounds.nth, start_at=at, end_at=bounds.end_at, **whole),
    )


def opened(schedule: Schedule, interval: str, last: Bounds | None, until: int) -> list[Bounds]:
    """The periods after `last` that begin at or before an instant, cut where a new version counts."""
    found: list[Bounds] = []
    while True:
        bounds = following(last, schedule, interval) if last else first_of(schedule, interval)
        if bounds.start_at > until or (schedule.ends_at is not None and bounds.start_at >= schedule.ends_at):
            return found
        inside = (at for at in sorted(schedule.changes_at) if bounds.start_at < at < bounds.end_at)
        for at in inside:
            piece, bounds = cut(bounds, at)
            found.append(piece)
        found.append(bounds)
        last = bounds


def to_row(license_id: str, interval: str, bounds: Bounds, since_run: int) -> dict[str, object]:
    """Write a period as it is stored, known from a billing run on."""
    return {
        "license": license_id,
        "interval": interval,
        "start_at": bounds.start_at,
        "end_at": bounds.end_at,
        "nth": bounds.nth,
        "whole_start_at": bounds.whole_start_at,
        "whole_end_at": bounds.whole_end_at,
        "since_run": since_run,
    }


def from_row(row: sa.Row[tuple[object, ...]]) -> tuple[str, str, Bounds]:
    """Read a stored period: its license, its interval, its bounds."""
    stored = row._mapping  # noqa: SLF001  SQLAlchemy's public name for it
    names = ("nth", "start_at", "end_at", "whole_start_at", "whole_end_at", "since_run", "cut_run", "end_before")
    return stored["license"], stored["interval"], Bounds(**{name: stored[name] for name in names})


def read_last(connection: sa.Connection, license_ids: Iterable[str]) -> dict[tuple[str, str], Bounds]:
    """The last period opened of each license and interval."""
    table = license_periods.c
    found: dict[tuple[str, str], Bounds] = {}
    for some in pieces(license_ids):
        newest = sa.select(table.license, table.interval, sa.func.max(table.start_at).label("start_at"))
        newest_of = newest.where(table.license.in_(some)).group_by(table.license, table.interval).subquery()
        same = sa.and_(
            table.license == newest_of.c.license,
            table.interval == newest_of.c.interval,
            table.start_at == newest_of.c.start_at,
        )
        rows = connection.execute(sa.select(license_periods).join(newest_of, same))
        found |= {(license_id, interval): bounds for license_id, interval, bounds in map(from_row, rows)}
    return found


def open_until(connection: sa.Connection, schedules: Iterable[Schedule], until: int, *, since_run: int) -> int:
    """Open and store every period of these licenses that begins at or before an instant.

    What is stored already stays as it is. `since_run` is the billing run that asks. Call it too before a
    customer's time zone changes, with the number of the run to come: then the change takes effect from the
    next period on. Returns how many periods were opened. It does not commit.
    """
    schedules = list(schedules)
    last = read_last(connection, [schedule.license_id for schedule in schedules])
    rows = [
        to_row(schedule.license_id, interval, bounds, since_run)
        for schedule in schedules
        for interval in sorted(schedule.intervals)
        for bounds in opened(schedule, interval, last.get((schedule.license_id, interval)), until)
    ]
    if rows:
        connection.execute(sa.insert(license_periods), rows)
    return len(rows)


def read(connection: sa.Connection, license_ids: Iterable[str]) -> dict[str, list[tuple[str, Bounds]]]:
    """The stored periods of licenses, each with its interval, in the order of time."""
    table = license_periods.c
    found: dict[str, list[tuple[str, Bounds]]] = {}
    for some in pieces(license_ids):
        chosen = sa.select(license_periods).where(table.license.in_(some))
        for row in connection.execute(chosen.order_by(table.license, table.start_at, table.interval)):
            license_id, interval, bounds = from_row(row)
            found.setdefault(license_id, []).append((interval, bounds))
    return found


def shorten(
    connection: sa.Connection, license_id: str, interval: str, bounds: Bounds, end_at: int, *, since_run: int
) -> None:
    """End a stored period earlier, as billing runs from one on know it; where nothing is left of it, remove it.

    Whether the period has been billed, and so must stay, is the caller's question. It does not commit.
    """
    table = license_periods.c
    this = sa.and_(table.license == license_id, table.interval == interval, table.start_at == bounds.start_at)
    if end_at <= bounds.start_at:
        connection.execute(sa.delete(license_periods).where(this))
    else:
        values = {"end_at": end_at, "cut_run": since_run, "end_before": bounds.end_at}
        connection.execute(sa.update(license_periods).where(this).values(values))


def divide(
    connection: sa.Connection, license_id: str, interval: str, bounds: Bounds, *, at: int, since_run: int
) -> None:
    """Cut a stored period in two; the second piece is known from a billing run on. It does not commit."""
    _, rest = cut(bounds, at)
    shorten(connection, license_id, interval, bounds, at, since_run=since_run)
    connection.execute(sa.insert(license_periods), [to_row(license_id, interval, rest, since_run)])
