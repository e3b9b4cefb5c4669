"""What each period holds, added up by the database (the reference is `meterkit.attribution.gather`)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import chains
from licensing_server.database import total
from licensing_server.devices.ledger_store import heads
from licensing_server.devices.token_store import tokens
from licensing_server.licenses.periods import license_periods
from licensing_server.licenses.store import licenses
from licensing_server.usage.store import HALF, batches, standing, usage_records
from meterkit.attribution import Calendar, Cited, Measured, Record, Run, Slot, Usage, gather
from meterkit.licenses import Meter
from meterkit.limits import INTEGER_MAX
from meterkit.plans import Recurring
from meterkit.terms import Terms


def read(connection: sa.Connection, customer: str, run: Run, terms: Iterable[Terms]) -> dict[str, Usage]:
    """Add up a customer's usage per license, by the limits of one run.

    A ledger that has forked is followed again from its batches, to say which branch each record is on.
    """
    measured = _measured(connection, customer, run)
    terms = list(terms)
    devices = _active_devices(connection, customer, run) if any(map(_counts_devices, terms)) else {}
    branched = forked(connection, customer)
    records = [record for device in branched for record in chains.records(connection, device, run)]
    found = {
        each.license_id: Usage(
            measured=measured.get(each.license_id, {}), devices=devices.get(each.license_id, {})
        )
        for each in terms
    }
    if not records:
        return found
    return {each.license_id: _with_branches(found[each.license_id], each, run, records) for each in terms}


def _counts_devices(terms: Terms) -> bool:
    charges = (charge for version in terms.versions for charge in version.plan.charges)
    return any(isinstance(charge, Recurring) and charge.per == "device" for charge in charges)


def _with_branches(usage: Usage, terms: Terms, run: Run, records: list[Record]) -> Usage:
    """The same sums, the records of forked ledgers cited branch by branch."""
    own = [record for record in records if record.license_id == terms.license_id]
    known = gather(Calendar(terms.periods, terms.ends_at), run, own, ()).measured
    devices = {record.device for record in records}
    return replace(
        usage,
        measured={
            name: replace(
                held,
                cited=tuple(
                    sorted(
                        (
                            *(cited for cited in held.cited if cited.device not in devices),
                            *known.get(name, Measured()).cited,
                        )
                    )
                ),
            )
            for name, held in usage.measured.items()
        },
    )


def _begun(run: Run) -> sa.ColumnElement[bool]:
    """Which periods had begun, and were known, at a run."""
    table = license_periods.c
    return sa.and_(table.start_at <= run.cut_off, table.since_run <= run.number)


def known_records(customer: str, run: Run) -> sa.CTE:
    """The records that a run may know, each with the start of the period of every interval that holds it.

    Periods follow each other without gap from a license's first to the cut-off or the license's end, so that is
    the last one that starts at or before a record; before the first one it is the first. Looked up record by
    record, in the index of the periods' key: a join over ranges would compare every record with every period.
    """
    record, period = usage_records.c, license_periods.c
    firsts = (
        sa.select(period.license, period.interval, sa.func.min(period.start_at).label("first_at"))
        .join(licenses, licenses.c.id == period.license)
        .where(licenses.c.customer == customer, _begun(run))
        .group_by(period.license, period.interval)
        .subquery()
    )
    holding = license_periods.alias("holding").c
    start_at = (
        sa.select(sa.func.max(holding.start_at))
        .where(holding.license == firsts.c.license, holding.interval == firsts.c.interval)
        .where(holding.start_at <= record.service_at, holding.since_run <= run.number)
        .scalar_subquery()
    )
    return (
        sa.select(
            usage_records, firsts.c.interval, sa.func.coalesce(start_at, firsts.c.first_at).label("start_at")
        )
        .join(firsts, firsts.c.license == record.license)
        .where(record.service_at < run.cut_off, record.acceptance <= run.acceptance_max)
        .cte("known")
    )


def _measured(connection: sa.Connection, customer: str, run: Run) -> dict[str, dict[tuple[Slot, Meter], Measured]]:
    known = known_records(customer, run).c
    held, both = standing(known, run.number), known.units + known.unsettled
    group = (known.license, known.interval, known.start_at, known.model, known.unit, known.device, known.epoch)
    sums = sa.select(
        *group,
        total(sa.case((held.counted, held.units), else_=0)).label("units"),
        total(sa.case((held.counted, known.unsettled), else_=0)).label("unsettled"),
        total(sa.case((held.aside, both // HALF), else_=0)).label("aside_high"),
        total(sa.case((held.aside, both % HALF), else_=0)).label("aside_low"),
        total(sa.case((held.dismissed, both), else_=0)).label("dismissed"),
        total(sa.case((held.counted, held.repeated), else_=0)).label("repeated"),
        sa.func.min(sa.case((held.counted, known.seq))).label("first"),
        sa.func.max(sa.case((held.counted, known.seq))).label("last"),
    ).group_by(*group)
    tips = tips_of(connection, customer, run)
    found: dict[str, dict[tuple[Slot, Meter], _Sum]] = {}
    for row in connection.execute(sums):
        name = ((row.interval, row.start_at), (row.model, row.unit))
        own = found.setdefault(row.license, {}).setdefault(name, _Sum())
        own.add(row, tips.get((row.device, row.epoch), ""))
    return {own: {name: held.measured() for name, held in each.items()} for own, each in found.items()}


class _Sum:
    """One period and meter, put together from its devices' sums."""

    __slots__ = ("cited", "dismissed", "quarantined", "repeated", "units", "unsettled")

    def __init__(self) -> None:
        self.units = self.unsettled = self.quarantined = self.dismissed = self.repeated = 0
        self.cited: list[Cited] = []

    def add(self, row: Any, head: str) -> None:
        self.units += int(row.units)
        self.unsettled += int(row.unsettled)
        self.quarantined += int(row.aside_high) * HALF + int(row.aside_low)
        self.dismissed += int(row.dismissed)
        self.repeated += int(row.repeated)
        if row.first is not None:
            self.cited.append(Cited(device=row.device, epoch=row.epoch, head=head, first=row.first, last=row.last))

    def measured(self) -> Measured:
        return Measured(
            units=self.units,
            unsettled=self.unsettled,
            quarantined=min(self.quarantined, INTEGER_MAX),
            dismissed=min(self.dismissed, INTEGER_MAX),
            repeated=min(self.repeated, INTEGER_MAX),
            cited=tuple(sorted(self.cited)),
        )


def _devices_of(customer: str) -> sa.Select[tuple[str]]:
    """The devices that were given a token of a customer's: nobody else's records count for it."""
    given = sa.select(tokens.c.device).join(licenses, licenses.c.id == tokens.c.license)
    return given.where(licenses.c.customer == customer)


def tips_of(connection: sa.Connection, customer: str, run: Run) -> dict[tuple[str, str], str]:
    """How far each ledger of a customer was accepted at the run: the head that its records are cited by."""
    batch = batches.c
    known = sa.and_(batch.acceptance <= run.acceptance_max, batch.device.in_(_devices_of(customer)))
    furthest = (
        sa.select(batch.device, batch.epoch, sa.func.max(batch.to_seq).label("to_seq"))
        .where(known)
        .group_by(batch.device, batch.epoch)
        .subquery()
    )
    here = sa.and_(
        batch.device == furthest.c.device, batch.epoch == furthest.c.epoch, batch.to_seq == furthest.c.to_seq
    )
    rows = connection.execute(sa.select(batch.device, batch.epoch, batch.head).join(furthest, here).where(known))
    return {(row.device, row.epoch): row.head for row in rows}


def forked(connection: sa.Connection, customer: str) -> list[str]:
    """The devices of a customer whose ledgers have more than one branch, whose records need a closer look."""
    tips = (
        sa.select(heads.c.device)
        .where(heads.c.is_tip.is_(True))
        .where(heads.c.device.in_(_devices_of(customer)))
        .group_by(heads.c.device, heads.c.epoch)
        .having(sa.func.count() > 1)
    )
    return sorted(set(connection.execute(tips).scalars()))


def _active_devices(connection: sa.Connection, customer: str, run: Run) -> dict[str, dict[Slot, int]]:
    """How many devices were active in each period: a record of them starts in it, or a token was."""
    known, token, period = known_records(customer, run).c, tokens.c, license_periods.c
    by_record = sa.select(known.license, known.interval, known.start_at, known.device).where(
        standing(known, run.number).counted
    )
    issued = sa.and_(token.iat >= period.start_at, token.iat < period.end_at)
    valid = sa.and_(token.nbf < period.end_at, token.exp > period.start_at)
    by_token = (
        sa.select(period.license, period.interval, period.start_at, token.device)
        .join_from(tokens, license_periods, sa.and_(period.license == token.license, sa.or_(issued, valid)))
        .join(licenses, licenses.c.id == token.license)
        .where(licenses.c.customer == customer, token.iat < run.cut_off, _begun(run))
    )
    active = sa.union(by_record, by_token).subquery()
    place = (active.c.license, active.c.interval, active.c.start_at)
    found: dict[str, dict[Slot, int]] = {}
    for license_id, interval, start_at, count in connection.execute(
        sa.select(*place, sa.func.count()).group_by(*place)
    ):
        found.setdefault(license_id, {})[interval, start_at] = count
    return found
