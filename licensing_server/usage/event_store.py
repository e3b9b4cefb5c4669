"""The usage records that billing counts, read in pieces: by license, meter and time, as an index has them."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.licenses.store import licenses
from licensing_server.usage.store import standing, usage_records

Place = tuple[str, str, str, int, str, str, int, str]  # license, model, unit, time; device, epoch, seq, hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which records: of a period of service (half-open), accepted up to a number, by the decisions of a run."""

    from_at: int
    to_at: int
    through: int
    run: int
    customer: str | None = None
    license_id: str | None = None


def read(connection: sa.Connection, scope: Scope, after: Place | None, rows_max: int) -> list[Any]:
    """Read the next records of a scope whose units are billed: not set aside, dismissed, or repeated whole."""
    record = usage_records.c
    held = standing(record, scope.run)
    meter = (record.license, record.model, record.unit, record.service_at)
    place = (*meter, record.device, record.epoch, record.seq, record.hash)
    chosen = (
        sa.select(*place, held.units.label("units"), licenses.c.customer)
        .join(licenses, licenses.c.id == record.license)
        .where(record.service_at >= scope.from_at, record.service_at < scope.to_at)
        .where(record.acceptance <= scope.through, held.counted, held.units > 0)
    )
    for column, value in ((licenses.c.customer, scope.customer), (record.license, scope.license_id)):
        if value is not None:
            chosen = chosen.where(column == value)
    if after is not None:
        known = 0 if scope.license_id is None else 1  # then the index is entered where the last piece ended
        chosen = chosen.where(sa.tuple_(*place[known:]) > sa.tuple_(*after[known:]))
    return list(connection.execute(chosen.order_by(*place).limit(rows_max)))
