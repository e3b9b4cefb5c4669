"""Usage that came too late by its contract, and what its periods hold then (reference: `meterkit.lateness`).

Only licenses whose plans ask for it come here: their records are added up batch by batch, for it is batches that
are early or late.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import chains, sums
from licensing_server.billing.license_sums import Ledger
from licensing_server.database import pieces, total
from licensing_server.devices import decision_store
from licensing_server.devices.token_store import tokens
from licensing_server.licenses.spans import license_spans
from licensing_server.usage.rollups import HOLDS
from licensing_server.usage.store import HALF, batches, standing, usage_records
from meterkit.attribution import Calendar, Deadline, Measured, Record, Run, Slot, TokenSpan, gather
from meterkit.lateness import Declared, Reporting
from meterkit.licenses import Meter
from meterkit.terms import Terms

Fleets = dict[str, list[Reporting]]  # by license


def fleets(connection: sa.Connection, terms: Iterable[Terms], run: Run) -> Fleets:
    """The devices of the licenses that close by coverage, with or without estimates, as coverage sees them."""
    ids = [each.license_id for each in terms if any(v.plan.close.percent is not None for v in each.versions)]
    spans: dict[tuple[str, str], list[TokenSpan]] = {}
    for some in pieces(ids):
        for span in _spans(connection, some):
            spans.setdefault((span.license_id, span.device), []).append(span)
    devices = {device for _, device in spans}
    reports = _reports(connection, devices, run)
    declared = _declared(connection, devices, run)
    found: Fleets = {license_id: [] for license_id in ids}
    for (license_id, device), own in spans.items():
        told, said = tuple(reports.get(device, ())), tuple(declared.get(device, ()))
        found[license_id].append(Reporting(device=device, tokens=tuple(own), reports=told, declared=said))
    return found


def _spans(connection: sa.Connection, ids: list[str]) -> Iterable[TokenSpan]:
    table = tokens.c
    chosen = sa.select(table.license, table.device, table.iat, table.nbf, table.exp).where(table.license.in_(ids))
    for row in connection.execute(chosen):
        yield TokenSpan(license_id=row.license, device=row.device, iat=row.iat, nbf=row.nbf, exp=row.exp)


def _reports(connection: sa.Connection, devices: Iterable[str], run: Run) -> dict[str, list[tuple[int, int]]]:
    batch = batches.c
    found: dict[str, list[tuple[int, int]]] = {}
    for some in pieces(devices):
        chosen = sa.select(batch.device, batch.acceptance, batch.through).where(
            batch.device.in_(some), batch.acceptance <= run.acceptance_max
        )
        for row in connection.execute(chosen.order_by(batch.device, batch.acceptance)):
            found.setdefault(row.device, []).append((row.acceptance, row.through))
    return found


def _declared(connection: sa.Connection, devices: Iterable[str], run: Run) -> dict[str, list[Declared]]:
    found: dict[str, list[Declared]] = {}
    for some in pieces(devices):
        for each in decision_store.read_declarations(connection, some, run.number):
            own = found.setdefault(each["device"], [])
            own.append(Declared(state=each["state"], since_run=each["since_run"]))
    return found


def measure(
    connection: sa.Connection, terms: Terms, run: Run, deadlines: Mapping[Slot, Deadline]
) -> dict[tuple[Slot, Meter], Measured]:
    """What the periods of one license hold, with what is late told apart or carried over."""
    heads_of, forked = sums.tips(connection, [terms.license_id], run)
    followed = (record for device in forked for record in chains.records(connection, device, run))
    own = [record for record in followed if record.license_id == terms.license_id]
    own += _pieces(connection, terms, run, heads_of, forked)
    calendar = Calendar(terms.periods, terms.ends_at)
    return dict(gather(calendar, run, own, (), deadlines).measured)


def _pieces(
    connection: sa.Connection, terms: Terms, run: Run, heads_of: Mapping[Ledger, str], forked: Iterable[str]
) -> Iterable[Record]:
    """The records of each batch and span, put together so that they add up and are cited as they would be."""
    record, start_at = usage_records.c, license_spans.c.start_at
    held, both = standing(record, run.number), record.units + record.unsettled
    name = (start_at, record.model, record.unit, record.device, record.epoch, record.acceptance)
    brought = sa.and_(batches.c.device == record.device, batches.c.acceptance == record.acceptance)
    chosen = (
        sa.select(
            *name,
            batches.c.received_at,
            total(sa.case((held.counted, held.units + held.repeated), else_=0)).label("units"),
            total(sa.case((held.counted, held.repeated), else_=0)).label("repeated"),
            total(sa.case((held.counted, record.unsettled), else_=0)).label("unsettled"),
            total(sa.case((held.aside, both // HALF), else_=0)).label("aside_high"),
            total(sa.case((held.aside, both % HALF), else_=0)).label("aside_low"),
            total(sa.case((held.dismissed, both), else_=0)).label("dismissed"),
            sa.func.min(sa.case((held.counted, record.seq))).label("first"),
            sa.func.max(sa.case((held.counted, record.seq))).label("last"),
        )
        .join_from(usage_records, license_spans, HOLDS)
        .join(batches, brought)
        .where(record.license == terms.license_id, sums.known(run), record.device.not_in(list(forked)))
        .group_by(*name, batches.c.received_at)
    )
    for row in connection.execute(chosen):
        yield from _split(terms, row, heads_of.get((row.device, row.epoch), ""))


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
