"""The lives of a ledger: starting one, and judging whether the one found can go on."""

from __future__ import annotations

import os

from device_sdk import timekeeper
from device_sdk.ledger_transaction import Transaction
from device_sdk.readings import Clocks
from meterkit import ids, ledger, usage
from meterkit.clocks import observe as judge
from meterkit.errors import LedgerError
from meterkit.positions import Position


def start(
    tx: Transaction,
    clocks: Clocks,
    device: str,
    previous: Position | None,
    *,
    signed_s: int,
    lost: tuple[int, int] | None = None,
) -> None:
    """Begin an epoch in an empty ledger; its genesis names the position before it and what is lost of it.

    Its clock starts no earlier than the newest time that the server has signed: forgetting gains no time.
    """
    epoch = ids.make("ep", os.urandom(16))
    tx.set_state("epoch", epoch)
    if signed_s:
        timekeeper.raise_signed(tx, clocks, signed_s)
    _, now, _ = judge(timekeeper.load(tx), clocks.read())
    members = usage.genesis(epoch=epoch, device=device, previous=previous, lost=lost)
    tx.append(members, time=now.effective_s, boot=now.boot)
    timekeeper.observe(tx, clocks)


def check(tx: Transaction, positions: list[Position]) -> None:
    """Return if every position of this epoch is in the ledger, or pruned, and its last record is sound.

    Raises:
        LedgerError: `ledger_damaged`: going on would mean signing two records with one seq.
    """
    end = tx.position()
    for position in positions:
        known = position.epoch == end.epoch and position.seq >= tx.cut()
        if known and tx.hash_at(position.seq) != position.head:
            raise LedgerError("ledger_damaged", f"record {position.seq} is not the one that was signed")
    if end.seq == 0:
        raise LedgerError("ledger_damaged", "it holds no record")
    before = tx.hash_at(end.seq - 1)
    last = next(tx.bodies(end.seq))
    if before is not None and ledger.record_hash(before, last) != end.head:
        raise LedgerError("ledger_damaged", f"record {end.seq}")


def newest(positions: list[Position]) -> Position | None:
    """The position that goes furthest, or None of none."""
    return max(positions, key=lambda at: at.seq, default=None)
