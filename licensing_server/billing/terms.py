"""What a customer is billed by: its licenses' timelines, prices and periods, from the database to the core."""

from collections.abc import Iterable
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from licensing_server.billing import store
from licensing_server.catalog import store as catalog_store
from licensing_server.licenses import periods
from licensing_server.licenses.periods import Bounds, Schedule
from licensing_server.licenses.store import license_versions, licenses
from meterkit import plans
from meterkit.attribution import Period, Run
from meterkit.errors import ServiceError
from meterkit.plans import Plan
from meterkit.terms import Terms, Version


def read(connection: sa.Connection, customer: str, zone: ZoneInfo, run: Run) -> list[Terms]:
    """Read the terms of all of a customer's licenses, with every period that had begun at the run.

    Periods that open now are stored, and one in which a license ends is shortened, unless it was billed.

    Raises:
        ServiceError: `feature_unsupported` where a plan asks for what this version does not bill yet.
    """
    found = Licenses(connection, customer)
    periods.open_until(connection, found.schedules(zone), run.cut_off, since_run=run.number)
    _shorten(connection, found, run)
    stored = periods.read(connection, found.ids)
    return [
        Terms(
            license_id=license_id,
            ends_at=found.rows[license_id].ends_at,
            versions=tuple(found.versions[license_id]),
            periods=tuple(to_core(stored.get(license_id, []))),
        ).known_at(run)
        for license_id in found.ids
        if found.versions[license_id]
    ]


class Licenses:
    """A customer's licenses and their timelines, as they are stored."""

    def __init__(self, connection: sa.Connection, customer: str) -> None:
        mine = sa.select(licenses.c.id, licenses.c.starts_at, licenses.c.ends_at, licenses.c.anchor_at)
        mine = mine.where(licenses.c.customer == customer).order_by(licenses.c.id)
        self.rows = {row.id: row for row in connection.execute(mine)}
        self.ids = list(self.rows)
        self.versions: dict[str, list[Version]] = {license_id: [] for license_id in self.ids}
        known: dict[tuple[str, int], Plan] = {}
        table = license_versions.c
        timeline = sa.select(license_versions).join(licenses, licenses.c.id == table.license)
        timeline = timeline.where(licenses.c.customer == customer).order_by(table.license, table.starts_at)
        for row in connection.execute(timeline).all():
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
                )
            )

    def schedules(self, zone: ZoneInfo) -> Iterable[Schedule]:
        """What each license's periods are counted from."""
        for license_id, row in self.rows.items():
            versions = self.versions[license_id]
            if versions:
                yield Schedule(
                    license_id=license_id,
                    zone=zone,
                    anchor_at=row.anchor_at,
                    starts_at=row.starts_at,
                    ends_at=row.ends_at,
                    intervals=frozenset().union(*(version.plan.intervals for version in versions)),
                    changes_at=tuple(version.starts_at for version in versions[1:]),
                )


def read_plan(connection: sa.Connection, plan_id: str, version: int) -> Plan:
    """Read one version of a plan, which this server must be able to bill."""
    body = catalog_store.read_version(connection, plan_id, version)
    if body is None:
        raise ServiceError("not_found", "plan version")
    plan = plans.read(body)
    missing = plans.unsupported(plan)
    if missing is not None:
        raise ServiceError("feature_unsupported", missing)
    return plan


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
