"""What a customer is billed by: its licenses' timelines, prices and periods, from the database to the core."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from licensing_server.billing import run_sums, store
from licensing_server.catalog import store as catalog_store
from licensing_server.customers import store as customers
from licensing_server.database import pieces
from licensing_server.licenses import correction_store, periods, spans
from licensing_server.licenses.periods import Bounds, Schedule
from licensing_server.licenses.spans import Cuts, license_spans
from licensing_server.licenses.store import license_versions, licenses
from licensing_server.usage import rollups
from meterkit import plans
from meterkit.attribution import Period, Run
from meterkit.errors import ServiceError
from meterkit.lines import Key
from meterkit.plans import Plan
from meterkit.terms import Terms, Version


def read(connection: sa.Connection, customer: str, zone: ZoneInfo, run: Run) -> list[Terms]:
    """Read the terms of all of a customer's licenses, with every period that had begun at the run.

    Periods that open now are stored, and one in which a license ends is shortened, unless it was billed. What its
    usage is added up in is brought in line with them.
    """
    return read_all(connection, {customer: zone}, run)[customer]


def read_all(connection: sa.Connection, zones: Mapping[str, ZoneInfo], run: Run) -> dict[str, list[Terms]]:
    """Read the terms of several customers, whose zones are given, at once; as `read` does."""
    found = Licenses(connection, zones)
    schedules = list(found.schedules(zones))
    periods.open_until(connection, schedules, run.cut_off, since_run=run.number)
    _shorten(connection, found, run)
    stored = periods.read(connection, found.ids)
    rollups.align(connection, *_cuts(connection, schedules, stored, run))
    terms: dict[str, list[Terms]] = {customer: [] for customer in zones}
    for license_id, row in found.rows.items():
        if found.versions[license_id]:
            known = found.terms_of(license_id, stored.get(license_id, []))
            terms[row.customer].append(known.known_at(run))
    return terms


def sum_first(connection: sa.Connection, asked: Collection[str], run: Run) -> None:
    """Take the run's own sums of licenses whose usage is not added up yet, in one pass, where there are many."""
    ready = sa.or_(license_spans.c.only_run.is_(None), license_spans.c.only_run == run.number)
    with_sums = sa.select(license_spans.c.license).where(ready)
    without = sa.select(licenses.c.customer).where(licenses.c.id.not_in(with_sums)).distinct()
    waiting = set(connection.execute(without).scalars()).intersection(asked)
    if not waiting:
        return
    found = Licenses(connection, waiting)
    zones = {each.id: each.zone for some in pieces(waiting) for each in customers.find_all(connection, some)}
    known, wanted = _cuts(connection, found.schedules(zones), periods.read(connection, found.ids), run)
    new = {each: sorted({spans.EVER, *starts}) for each, starts in wanted.items() if each not in known}
    if len(new) > rollups.FEW:
        run_sums.take(connection, new, run)


def _cuts(
    connection: sa.Connection,
    schedules: Iterable[Schedule],
    stored: Mapping[str, list[tuple[str, Bounds]]],
    run: Run,
) -> tuple[Cuts, dict[str, set[int]]]:
    """Where the spans begin that the run can read, and where they must: within periods, those that are stored, and
    those to come, as far as can be told. Spans of the run alone are not cut: if they must be, it cannot read them.
    """
    schedules = list(schedules)
    ids = [schedule.license_id for schedule in schedules]
    own = spans.read_of_run(connection, ids, run.number)
    known = own | spans.read(connection, ids)
    wanted: dict[str, set[int]] = {}
    for schedule in schedules:
        bounds, cuts = stored.get(schedule.license_id, []), known.get(schedule.license_id, [])
        starts = {each.start_at for _, each in bounds}
        if not cuts or cuts[-1] < run.cut_off + spans.AHEAD_S // 2:
            starts |= spans.ahead(schedule, dict(bounds), run.cut_off + spans.AHEAD_S)
        wanted[schedule.license_id] = starts
    readable = {each: starts for each, starts in known.items() if each not in own or wanted[each] <= set(starts)}
    return readable, wanted


class Licenses:
    """Customers' licenses and their timelines, as they are stored."""

    def __init__(self, connection: sa.Connection, asked: Iterable[str]) -> None:
        named = ("id", "customer", "starts_at", "ends_at", "anchor_at")
        mine = sa.select(*(licenses.c[name] for name in named))
        found = [
            row for some in pieces(asked) for row in connection.execute(mine.where(licenses.c.customer.in_(some)))
        ]
        self.rows = {row.id: row for row in sorted(found, key=lambda row: str(row.id))}
        self.ids = list(self.rows)
        self.versions: dict[str, list[Version]] = {license_id: [] for license_id in self.ids}
        known: dict[tuple[str, int], Plan] = {}
        for row, correction in self._timelines(connection):
            name = (row.plan, row.version)
            if name not in known:
                known[name] = read_plan(connection, *name)
            self.versions[row.license].append(
                Version(
                    plan_id=row.plan,
                    number=row.version,
                    starts_at=row.starts_at,
                    plan=known[name],
                    since_run=row.since_run,
                    correction=correction,
                )
            )

    def _timelines(self, connection: sa.Connection) -> list[tuple[Any, str | None]]:
        """The versions of the licenses in the order of time, and after them their corrections."""
        table = license_versions.c
        timeline = sa.select(license_versions).order_by(table.license, table.starts_at)
        found = [
            (row, None)
            for some in pieces(self.ids)
            for row in connection.execute(timeline.where(table.license.in_(some)))
        ]
        return found + [(row, row.id) for row in correction_store.read(connection, self.ids)]

    def terms_of(self, license_id: str, stored: Iterable[tuple[str, Bounds]] = ()) -> Terms:
        """The terms of one license, whatever run knows them, with the periods that are stored."""
        return Terms(
            license_id=license_id,
            ends_at=self.rows[license_id].ends_at,
            versions=tuple(self.versions[license_id]),
            periods=tuple(to_core(stored)),
        )

    def schedules(self, zones: Mapping[str, ZoneInfo]) -> Iterable[Schedule]:
        """What each license's periods are counted from."""
        for license_id, row in self.rows.items():
            versions = self.versions[license_id]
            if versions:
                yield Schedule(
                    license_id=license_id,
                    zone=zones[row.customer],
                    anchor_at=row.anchor_at,
                    starts_at=row.starts_at,
                    ends_at=row.ends_at,
                    intervals=frozenset().union(*(version.plan.intervals for version in versions)),
                    changes_at=tuple({each.starts_at for each in versions if each.starts_at > row.starts_at}),
                )


def counts(connection: sa.Connection, customer: str, key: Key) -> bool:
    """Tell whether a key's version is the one by which its license is billed for its period, as known now."""
    held = Licenses(connection, [customer]).terms_of(key.license_id).version_at(key.start_at)
    return (held.plan_id, held.number) == (key.plan_id, key.version)


def read_plan(connection: sa.Connection, plan_id: str, version: int) -> Plan:
    """Read one version of a plan."""
    body = catalog_store.read_version(connection, plan_id, version)
    if body is None:
        raise ServiceError("not_found", "plan version")
    return plans.read(body)


def to_core(stored: Iterable[tuple[str, Bounds]]) -> Iterable[Period]:
    """Give a license's stored periods, each counted from the license's own first one of its interval."""
    first: dict[str, int] = {}
    for interval, bounds in stored:
        yield Period(
            interval=interval,
            nth=bounds.nth - first.setdefault(interval, bounds.nth),
            start_at=bounds.start_at,
            end_at=bounds.end_at,
            whole_start_at=bounds.whole_start_at,
            whole_end_at=bounds.whole_end_at,
            since_run=bounds.since_run,
            cut_run=bounds.cut_run,
            end_before=bounds.end_before,
        )


def _shorten(connection: sa.Connection, found: Licenses, run: Run) -> None:
    """End the period in which a license ends, and remove later ones; bounds once billed stay (BILLING §2)."""
    ending = {license_id: row.ends_at for license_id, row in found.rows.items() if row.ends_at is not None}
    for license_id, stored in periods.read(connection, ending).items():
        for interval, bounds in stored:
            ends_at = ending[license_id]
            ended = bounds.start_at < ends_at < bounds.end_at or ends_at < bounds.start_at
            if ended and not store.is_billed(connection, license_id, bounds.start_at, bounds.end_at):
                periods.shorten(connection, license_id, interval, bounds, ends_at, since_run=run.number)
