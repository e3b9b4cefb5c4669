"""Devices' stored batches, as they were signed, and the chains that they make."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from licensing_server.devices.ledger_store import heads, receipts
from licensing_server.usage.store import batches, unpack
from meterkit import envelopes, exchange
from meterkit.exchange import Batch
from meterkit.limits import INTEGER_MAX
from meterkit.receipts import read_own
from meterkit.replay import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBatch:
    """One accepted batch: its text as the device signed it, and what the server noted."""

    acceptance: int
    device: str
    received_at: int
    epoch: str
    to_seq: int
    head: str
    text: str

    def open(self) -> Batch:
        """Read it. Its signature was checked when it came in."""
        return exchange.read_batch(envelopes.unverified_parts(envelopes.BATCH, self.text).payload)


def read(
    connection: sa.Connection, devices: Iterable[str], acceptance_max: int = INTEGER_MAX
) -> Iterator[SignedBatch]:
    """Read the batches of some devices, accepted up to a number, in that order."""
    table = batches.c
    chosen = sa.select(
        table.acceptance, table.device, table.received_at, table.epoch, table.to_seq, table.head, table.body
    ).where(table.device.in_(list(devices)), table.acceptance <= acceptance_max)
    for row in connection.execute(chosen.order_by(table.acceptance)):
        yield SignedBatch(
            acceptance=row.acceptance,
            device=row.device,
            received_at=row.received_at,
            epoch=row.epoch,
            to_seq=row.to_seq,
            head=row.head,
            text=unpack(row.body),
        )


def foundations(connection: sa.Connection, devices: list[str]) -> Iterator[str]:
    """The receipts from which branches of some devices go on whose records before are gone (DESIGN §6)."""
    head, receipt = heads.c, receipts.c
    same = sa.and_(
        receipt.device == head.device,
        receipt.epoch == head.epoch,
        receipt.seq == head.seq,
        receipt.head == head.head,
    )
    chosen = sa.select(receipt.body).join_from(heads, receipts, same)
    adopted = chosen.where(head.device.in_(devices), head.acceptance == 0, head.seq > 0)
    yield from connection.execute(adopted).scalars()


def follow(connection: sa.Connection, device: str, acceptance_max: int = INTEGER_MAX) -> Replay:
    """Follow one device's chains again, from its batches, and from receipts where records before are gone.

    The signatures were checked when the batches came in; an audit checks them again.
    """
    replay = Replay(device)
    for text in foundations(connection, [device]):
        replay.stand_on(read_own(text))
    for signed in read(connection, [device], acceptance_max):
        replay.add(signed.open(), acceptance=signed.acceptance, received_at=signed.received_at)
    return replay
