"""Usage that came too late by its contract, and what its periods hold then (reference: `meterkit.lateness`).

Only licenses whose plans ask for it come here: their records are added up batch by batch, for it is batches that
are early or late.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import chains, sums
from licensing_server.database import total
from licensing_server.devices import decision_store
from licensing_server.devices.token_store import tokens
from licensing_server.usage.store import HALF, batches, standing
from meterkit.attribution import Calendar, Deadline, Measured, Record, Run, Slot, TokenSpan, Usage, gather
from meterkit.lateness import Declared, Reporting
from meterkit.licenses import Meter
from meterkit.terms import Terms


def fleet(connection: sa.Connection, terms: Terms, run: Run) -> list[Reporting]:
    """The devices of a license as coverage sees them; none where no plan closes by coverage."""
    if all(version.plan.close.percent is None for version in terms.versions):
        return []
    table = tokens.c
    chosen = sa.select(table.device, table.iat, table.nbf, table.exp).where(table.license == terms.license_id)
    spans: dict[str, list[TokenSpan]] = {}
    for row in connection.execute(chosen):
        own = TokenSpan(license_id=terms.license_id, device=row.device, iat=row.iat, nbf=row.nbf, exp=row.exp)
        spans.setdefault(row.device, []).append(own)
    reports = _reports(connection, terms.license_id, run)
    declared: dict[str, list[Declared]] = {}
    for each in decision_store.read_declarations(connection, spans, run.number):
        own_states = declared.setdefault(each["device"], [])
        own_states.append(Declared(state=each["state"], since_run=each["since_run"]))
    return [
        Reporting(
            tokens=tuple(own), reports=tuple(reports.get(device, ())), declared=tuple(declared.get(device, ()))
        )
        for device, own in spans.items()
    ]


def _reports(connection: sa.Connection, license_id: str, run: Run) -> dict[str, list[tuple[int, int]]]:
    batch = batches.c
    given = sa.select(tokens.c.device).where(tokens.c.license == license_id)
    chosen = sa.select(batch.device, batch.acceptance, batch.through).where(
        batch.device.in_(given), batch.acceptance <= run.acceptance_max
    )
    found: dict[str, list[tuple[int, int]]] = {}
    for row in connection.execute(chosen.order_by(batch.device, batch.acceptance)):
        found.setdefault(row.device, []).append((row.acceptance, row.through))
    return found


def measure(
    connection: sa.Connection, customer: str, terms: Terms, run: Run, deadlines: Mapping[Slot, Deadline]
) -> dict[tuple[Slot, Meter], Measured]:
    """What the periods of one license hold, with what is late told apart or carried over."""
    by_interval: dict[str, list[Record]] = {}
    branched = sums.forked(connection, customer)
    for interval, record in _pieces(connection, customer, terms, run, branched):
        by_interval.setdefault(interval, []).append(record)
    followed = [record for device in branched for record in chains.records(connection, device, run)]
    own = [record for record in followed if record.license_id == terms.license_id]
    found: dict[tuple[Slot, Meter], Measured] = {}
    for interval in {period.interval for period in terms.periods}:
        periods = [period for period in terms.periods if period.interval == interval]
        records = (*by_interval.get(interval, ()), *own)
        usage = gather(Calendar(periods, terms.ends_at), run, records, (), deadlines)
        found.update(usage.measured)
    return found


def with_late(usage: Usage, measured: Mapping[tuple[Slot, Meter], Measured]) -> Usage:
    """The same active devices, with other sums."""
    return Usage(measured=measured, devices=usage.devices)


def _pieces(
    connection: sa.Connection, customer: str, terms: Terms, run: Run, branched: Iterable[str]
) -> Iterable[tuple[str, Record]]:
    """The records of each batch and period, put together so that they add up and are cited as they would be."""
    known = sums.known_records(customer, run).c
    held, both = standing(known, run.number), known.units + known.unsettled
    name = (known.interval, known.start_at, known.model, known.unit, known.device, known.epoch, known.acceptance)
    chosen = (
        sa.select(
            *name,
            batches.c.received_at,
            total(sa.case((held.counted, held.units + held.repeated), else_=0)).label("units"),
            total(sa.case((held.counted, held.repeated), else_=0)).label("repeated"),
            total(sa.case((held.counted, known.unsettled), else_=0)).label("unsettled"),
            total(sa.case((held.aside, both // HALF), else_=0)).label("aside_high"),
            total(sa.case((held.aside, both % HALF), else_=0)).label("aside_low"),
            total(sa.case((held.dismissed, both), else_=0)).label("dismissed"),
            sa.func.min(sa.case((held.counted, known.seq))).label("first"),
            sa.func.max(sa.case((held.counted, known.seq))).label("last"),
        )
        .join(batches, sa.and_(batches.c.device == known.device, batches.c.acceptance == known.acceptance))
        .where(known.license == terms.license_id, known.device.not_in(list(branched)))
        .group_by(*name, batches.c.received_at)
    )
    tips = sums.tips_of(connection, customer, run)
    for row in connection.execute(chosen):
        for record in _split(terms, row, tips.get((row.device, row.epoch), "")):
            yield row.interval, record


def _split(terms: Terms, row: Any, head: str) -> Iterable[Record]:
    """What counts, at its first record, with its last one cited; what is aside; what was dismissed."""

    def piece(what: str, seq: int, units: int, **named: Any) -> Record:
        return Record(
            license_id=terms.license_id,
            device=row.device,
            epoch=row.epoch,
            seq=seq,
            hash=f"{what} {row.start_at} {row.model} {row.unit} {row.acceptance}",
            branch=head,
            meter=(row.model, row.unit),
            units=units,
            service_at=row.start_at,
            acceptance=row.acceptance,
            received_at=row.received_at,
            **{"unsettled": 0, **named},
        )

    if row.first is not None:
        counted = {"unsettled": int(row.unsettled), "repeated": int(row.repeated)}
        yield piece("first", row.first, int(row.units), **counted)
        yield piece("last", row.last, 0)
    aside = int(row.aside_high) * HALF + int(row.aside_low)
    if aside:
        yield piece("aside", 0, aside, quarantined=True)
    if row.dismissed:
        yield piece("dismissed", 0, int(row.dismissed), dismissed=True)
