"""A device's stored batches, as they were signed, and the chains that they make."""

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from licensing_server.usage.store import batches, unpack, usage_records
from meterkit import envelopes, exchange
from meterkit.attribution import Record, Run
from meterkit.replay import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """One accepted batch: its text as the device signed it, and what the server noted."""

    acceptance: int
    device: str
    received_at: int
    epoch: str
    to_seq: int
    head: str
    text: str


def read(connection: sa.Connection, devices: list[str], acceptance_max: int) -> Iterator[StoredBatch]:
    """Read the batches of some devices, accepted up to a number, in that order."""
    table = batches.c
    chosen = sa.select(
        table.acceptance, table.device, table.received_at, table.epoch, table.to_seq, table.head, table.body
    ).where(table.device.in_(devices), table.acceptance <= acceptance_max)
    for row in connection.execute(chosen.order_by(table.acceptance)):
        yield StoredBatch(
            acceptance=row.acceptance,
            device=row.device,
            received_at=row.received_at,
            epoch=row.epoch,
            to_seq=row.to_seq,
            head=row.head,
            text=unpack(row.body),
        )


def records(connection: sa.Connection, device: str, run: Run) -> list[Record]:
    """Follow one device's chains again, and give its records as known at a run.

    The signatures were checked when the batches came in; an audit checks them again.
    """
    replay = Replay(device)
    for stored in read(connection, [device], run.acceptance_max):
        payload = envelopes.unverified_parts(envelopes.BATCH, stored.text).payload
        batch = exchange.read_batch(payload)
        replay.add(batch, acceptance=stored.acceptance, received_at=stored.received_at)
    table = usage_records.c
    chosen = sa.select(table.epoch, table.hash).where(table.device == device, table.quarantined.is_(True))
    quarantined = frozenset((row.epoch, row.hash) for row in connection.execute(chosen))
    return list(replay.records(run.acceptance_max, quarantined))
