"""A case is a charge in a period. It is corrected by excluding records or by letting off an amount, never by both
(BILLING §3).

Usage, where records are excluded, knows nothing of billing: a server is made with `check_exclusion`, and asks it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import dispute_store, lateness, run_store
from licensing_server.billing import terms as customer_terms
from licensing_server.database import Connection, pieces
from licensing_server.licenses import periods
from licensing_server.licenses import store as license_store
from licensing_server.usage.store import batches, standing, usage_records
from meterkit import invoices
from meterkit.attribution import Calendar, Record, Run, gather
from meterkit.errors import ServiceError
from meterkit.lateness import closed_by, deadlines
from meterkit.limits import INTEGER_MAX
from meterkit.lines import Key

_EVER = Run(number=INTEGER_MAX, cut_off=INTEGER_MAX, acceptance_max=INTEGER_MAX)


def check_exclusion(connection: Connection, records: Sequence[Any]) -> None:
    """Return if these records may leave the sums: nothing was let off on what they are billed on.

    Raises:
        ServiceError: `state_conflict`.
    """
    for license_id in sorted({record.license for record in records}):
        for key in _keys(connection, license_id, [record for record in records if record.license == license_id]):
            if dispute_store.is_conceded(connection, key):
                raise ServiceError("state_conflict", f"an amount was let off on {key.charge}: nothing leaves it")


def is_excluded(connection: Connection, key: Key) -> bool:
    """Tell whether records of a charge and period were excluded, or a dispute about these ended so."""
    if dispute_store.is_excluded(connection, key):
        return True
    record = usage_records.c
    held = standing(record)
    chosen = sa.select(usage_records).where(record.license == key.license_id, held.dismissed, held.units > 0)
    keys = _keys(connection, key.license_id, connection.execute(chosen).all())
    return replace(key, kind="measured") in keys


def _keys(connection: Connection, license_id: str, rows: Sequence[Any]) -> set[Key]:
    """On what a license's records are billed, by all that is known now."""
    license_ = license_store.find(connection, license_id)
    if not rows or license_ is None:
        return set()
    stored = periods.read(connection, [license_id]).get(license_id, [])
    terms = customer_terms.Licenses(connection, [license_.customer]).terms_of(license_id, stored)
    runs = run_store.runs_of(connection, license_.customer, INTEGER_MAX)
    closed = closed_by(terms, runs, lateness.fleets(connection, [terms], _EVER).get(license_id, ()))
    late = deadlines(terms, closed, _EVER)
    usage = gather(Calendar(terms.periods, terms.ends_at), _EVER, _records(connection, rows), (), late)
    return {each.key for each in invoices.metered(terms, usage, _EVER) if each.key is not None}


def _records(connection: Connection, rows: Sequence[Any]) -> Iterable[Record]:
    """Records as the core knows them, each as if nothing had been decided about it."""
    received = _received(connection, rows)
    for row in rows:
        yield Record(
            license_id=row.license,
            device=row.device,
            epoch=row.epoch,
            seq=row.seq,
            hash=row.hash,
            branch="",
            meter=(row.model, row.unit),
            units=row.units,
            unsettled=row.unsettled,
            service_at=row.service_at,
            acceptance=row.acceptance,
            received_at=received[row.device, row.acceptance],
        )


def _received(connection: Connection, rows: Sequence[Any]) -> dict[tuple[str, int], int]:
    """When the batches were received that brought some records."""
    batch = batches.c
    found = {}
    for device in sorted({row.device for row in rows}):
        for some in pieces({row.acceptance for row in rows if row.device == device}):
            chosen = sa.select(batch.acceptance, batch.received_at)
            brought = connection.execute(chosen.where(batch.device == device, batch.acceptance.in_(some)))
            found.update({(device, row.acceptance): row.received_at for row in brought})
    return found
