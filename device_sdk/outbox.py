"""What a device has to hand over: batches made from its ledger, and from ledgers that were set aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from device_sdk import setting_aside
from device_sdk.folding import Folded
from device_sdk.ledger_store import LedgerStore
from device_sdk.ledger_transaction import Transaction
from device_sdk.vault import DeviceKeys, Vault
from meterkit import envelopes, ledger, limits, signing
from meterkit.clocks import Instant
from meterkit.errors import LedgerError, MeterkitError
from meterkit.exchange import Batch, Has
from meterkit.ledger import Chain, Entry
from meterkit.positions import Position

_HEAD_BYTES_MAX = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who sends, and what it already has."""

    keys: DeviceKeys
    product: str
    has: Has
    through: int
    made_at: int


def through(now: Instant, folded: Folded, certain_s: int) -> int:
    """The instant before which no unit is still unfolded: a window's start, as units belong to windows.

    Provisional time may be undone, and units then fall into earlier windows: it promises nothing.
    """
    window = min(now.window, certain_s // limits.WINDOW_S)
    if folded.open_window is not None:
        window = min(window, folded.open_window)
    return window * limits.WINDOW_S


def start_after(position: Position | None, tx: Transaction) -> int:
    """The first seq of a ledger that the server has not receipted; what is pruned is."""
    receipted = position.seq if position is not None and position.epoch == tx.chain_epoch() else 0
    return max(receipted, tx.cut()) + 1


def make_batches(tx: Transaction, sender: Sender, seq_from: int) -> list[str]:
    """Sign the records from a seq on, cut where a batch must end; an empty batch where there are none.

    Raises:
        LedgerError: `ledger_damaged` if the chain does not hold.
    """
    tx.only_looking = True
    chain = tx.chain_before(seq_from, sender.keys.device)
    after, entries, fault = ledger.good_prefix(chain, tx.bodies(seq_from))
    if fault is not None or after.position != tx.position():
        raise LedgerError("ledger_damaged", f"record {after.position.seq + 1}")
    return list(_sign_all(chain, entries, sender))


def _sign_all(chain: Chain, entries: list[Entry], sender: Sender) -> Iterator[str]:
    start = 0
    license_id = chain.token.license_id if chain.token else None
    at = chain.position
    while True:
        end, license_id = _cut(entries, start, license_id)
        batch = _batch(at, entries[start:end], license_id, replace(sender, through=_sent(entries[end:], sender)))
        yield signing.sign_payload(envelopes.BATCH, batch.to_payload(), sender.keys.sign)
        at, start = batch.end, end
        if start >= len(entries):
            return


def _sent(later: list[Entry], sender: Sender) -> int:
    """The instant before which no unit is still unsent: the next batches may never arrive."""
    windows: list[int] = [entry.claims["window"] for entry in later if entry.claims["kind"] == "usage"]
    return min([sender.through, *(window * limits.WINDOW_S for window in windows)])


def _cut(entries: list[Entry], start: int, license_id: str | None) -> tuple[int, str | None]:
    """Where a batch from `start` must end: at its limits, or before a token record that changes the license."""
    size_bytes = _HEAD_BYTES_MAX
    for place in range(start, len(entries)):
        entry = entries[place]
        size_bytes += len(entry.body) + 1
        if place - start >= limits.BATCH_RECORDS_MAX or size_bytes > limits.BATCH_SENT_BYTES_MAX:
            return place, license_id
        if entry.claims["kind"] == "token" and entry.claims["license"] != license_id:
            if license_id is not None and place > start:
                return place, license_id
            license_id = entry.claims["license"]
    return len(entries), license_id


def _batch(at: Position, entries: list[Entry], license_id: str | None, sender: Sender) -> Batch:
    end = ledger.after(at, entries[-1]) if entries else at
    return Batch(
        product=sender.product,
        license_id=license_id,
        epoch=at.epoch,
        seq_from=at.seq + 1,
        prev=at.head,
        seq_to=end.seq,
        head=end.head,
        through=sender.through,
        made_at=sender.made_at,
        has=sender.has,
        bodies=tuple(entry.body for entry in entries),
    )


def group(batches: list[str]) -> Iterator[list[str]]:
    """Group batches into requests, each within what one may hold."""
    grouped: list[str] = []
    for batch in batches:
        size_bytes = sum(map(len, grouped)) + len(grouped) + len(batch) + 1
        full = len(grouped) == limits.EXCHANGE_BATCHES_MAX or size_bytes > limits.EXCHANGE_WIRE_BYTES_MAX
        if grouped and full:
            yield grouped
            grouped = []
        grouped = [*grouped, batch]
    if grouped:
        yield grouped


def batches_set_aside(vault: Vault, sender: Sender, receipt: Position | None) -> list[str]:
    """Sign the good part of ledgers that were set aside, as far as no receipt covers it yet.

    A ledger that cannot be read any more is passed over: its successor's genesis says what is lost. How far
    usage is complete is for the living ledger to say: these batches promise nothing.
    """
    found: list[str] = []
    for path in vault.set_aside():
        store = LedgerStore(path, lenient=True)
        try:
            with store.write() as tx:
                chain, entries = _good_part(tx, sender, receipt)
        except MeterkitError:
            continue
        finally:
            store.drop()
        found += _promise_nothing(chain, entries, sender) if entries else []
    return found


def batches_as_stored(vault: Vault, sender: Sender, receipt: Position | None) -> list[str]:
    """Sign what is recorded already where nothing can be written, as far as it holds and no receipt covers it.

    Live cells may hold more, and a damaged ledger is still to be set aside: these batches promise nothing either.

    Raises:
        LedgerError: the current ledger cannot be read.
    """
    found: list[str] = []
    for path in [*vault.set_aside(), vault.ledger]:
        try:
            with LedgerStore(path, lenient=True).copy() as tx:
                chain, entries = _good_part(tx, sender, receipt)
        except MeterkitError:
            if path == vault.ledger:
                raise
            continue
        found += _promise_nothing(chain, entries, sender)
    return found


def _good_part(tx: Transaction, sender: Sender, receipt: Position | None) -> tuple[Chain, list[Entry]]:
    chain = tx.chain_before(start_after(receipt, tx), sender.keys.device)
    return chain, setting_aside.good_part(tx, chain)


def _promise_nothing(chain: Chain, entries: list[Entry], sender: Sender) -> Iterator[str]:
    return _sign_all(chain, entries, replace(sender, through=0))
