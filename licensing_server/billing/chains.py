"""The records of a device as a bill cites them: followed again from its batches."""

import sqlalchemy as sa

from licensing_server.usage.chains import follow
from licensing_server.usage.store import standing, usage_records
from meterkit.attribution import Record, Run


def records(connection: sa.Connection, device: str, run: Run) -> list[Record]:
    """Follow one device's chains again, and give its records as known at a run, by the decisions known then."""
    replay = follow(connection, device, run.acceptance_max)
    table = usage_records.c
    held = standing(table, run.number)
    chosen = sa.select(table.epoch, table.hash).where(table.device == device)
    quarantined, dismissed = (
        frozenset((row.epoch, row.hash) for row in connection.execute(chosen.where(condition)))
        for condition in (held.aside, held.dismissed)
    )
    counted = sa.select(table.epoch, table.hash, held.repeated.label("repeated"))
    repeated = {
        (row.epoch, row.hash): row.repeated
        for row in connection.execute(counted.where(table.device == device, table.repeated > 0))
    }
    return list(replay.records(run.acceptance_max, quarantined, dismissed, repeated))
