"""Forgetting records that the server has acknowledged long ago, so that a ledger does not grow for ever.

A record goes when a receipt and the anchor of the token in force have both passed it and that receipt was taken
35 days ago, by certain time (DESIGN §5). The chain then starts at the *cut*, the last record that the receipt
covers: X
"""

from __future__ import annotations

from device_sdk import timekeeper
from device_sdk.ledger_transaction import Transaction
from meterkit import limits
from meterkit.positions import Position

_DAY_S = 86_400


def note_receipt(tx: Transaction, seq: int, text: str) -> None:
    """Remember a receipt that was found to cover this ledger, as a place for a later cut: one a day."""
    now_s = timekeeper.certain_s(tx)
    tx.execute(
        "INSERT OR IGNORE INTO receipts (seq, text, taken_s) SELECT ?, ?, ? WHERE NOT EXISTS"
        " (SELECT 1 FROM receipts WHERE seq >= ? OR taken_s > ? AND taken_s <= ?)",
        (seq, text, now_s, seq, now_s - _DAY_S, now_s),
    )


def receipt_at_cut(tx: Transaction) -> str | None:
    """The receipt that covers everything up to the cut, as it was signed; None where nothing was pruned."""
    row = tx.execute("SELECT text FROM receipts WHERE seq = ?", (tx.cut(),)).fetchone()
    return row[0] if row else None


def prune(tx: Transaction, anchor: Position | None) -> bool:
    """Move the cut as far as it may go, and delete some records before it; tells whether there may be more.

    It deletes no more at once than that a call which waits for this transaction would notice.
    """
    if anchor is None or anchor.epoch != tx.epoch() or tx.hash_at(anchor.seq) != anchor.head:
        return False
    oldest_s = timekeeper.certain_s(tx) - limits.RECORD_KEPT_S
    row = tx.execute(
        "SELECT MAX(seq) FROM receipts WHERE seq > 1 AND seq <= ? AND taken_s <= ?", (anchor.seq, oldest_s)
    ).fetchone()
    if row[0] is not None and row[0] > tx.cut():
        tx.move_cut(row[0])
    cut = tx.cut()
    deleted = tx.execute(
        "DELETE FROM records WHERE seq IN (SELECT seq FROM records WHERE seq < ? AND seq IS NOT"
        " (SELECT MAX(seq) FROM records WHERE kind = 'token' AND seq <= ?) ORDER BY seq LIMIT ?)",
        (cut, cut, limits.PRUNED_RECORDS_MAX),
    )
    return deleted.changed == limits.PRUNED_RECORDS_MAX
