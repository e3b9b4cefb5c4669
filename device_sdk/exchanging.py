"""What a device says to its server and hears from it: activating, handing over, taking replies, its status.

Loaded when a device does one of these for the first time: nothing of it is on the way to an answer.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from device_sdk import epochs, outbox, pruning, requests, setting_aside, standings, timekeeper, transport
from device_sdk.counter import Counter
from device_sdk.holder import Holder
from device_sdk.inbox import Inbox, Outcome
from device_sdk.ledger_faults import in_our_words
from device_sdk.ledger_transaction import Transaction
from device_sdk.outbox import Sender
from device_sdk.schedule import Schedule
from device_sdk.standings import Status
from device_sdk.transport import FileTransport, HttpTransport, Transport
from device_sdk.vault import DeviceKeys, Vault
from meterkit import signing
from meterkit.clocks import NS, Instant
from meterkit.errors import LedgerError, MeterkitError, TransportError
from meterkit.exchange import Has


class Exchanging:
    """The exchanges of one device. What each method promises, `Device` says. It holds nothing of its own: the
    device makes one whenever it needs one.
    """

    def __init__(self, *, vault: Vault, keys: DeviceKeys, product: str, holder: Holder, counter: Counter) -> None:
        self._vault = vault
        self._keys = keys
        self._product = product
        self._holder = holder
        self._counter = counter
        self._inbox = Inbox(holder=holder, counter=counter, vault=vault)
        self.schedule = Schedule(vault, counter.clocks)

    def request_activation(self, code: str) -> str:
        """Make the signed request for a token."""
        with self._counter.transaction() as tx:
            position = tx.position()
            now = timekeeper.observe(tx, self._counter.clocks)
        token = self._holder.genuine.token if self._holder.genuine else None
        return requests.make(
            code,
            keys=self._keys,
            product=self._product,
            position=position,
            license_hint=token.license_id if token else None,
            made_at=now.effective_s,
            nonce=os.urandom(16),
        )

    def activate(self, code: str, server: str | Transport) -> Outcome | None:
        """Send the request, and take the token that comes back at once, if one does."""
        way = HttpTransport(server) if isinstance(server, str) else server
        reply = way.deliver(transport.activation_message(self.request_activation(code)))
        if reply is None:
            return None
        outcome = self.take_reply(reply)
        outcome.check("token")
        if isinstance(server, str):
            with self._counter.lock:
                self.schedule.remember(server=server)
        return outcome

    def make_batches(self) -> list[str]:
        """Fold everything, and sign what is not receipted; a damaged ledger is set aside first."""
        with in_our_words():
            signing.load()  # before anything is locked: calls would wait for it
        try:
            return self._make_batches_or_set_aside()
        except LedgerError as fault:
            if fault.code != "ledger_unwritable":
                raise
        return self._batches_as_stored()

    def _make_batches_or_set_aside(self) -> list[str]:
        try:
            if not self._counter.suspect:
                return self._make_batches()
        except LedgerError as fault:
            if fault.code != "ledger_damaged":
                raise
        with self._counter.lock:
            self._counter.end_leases()
            known, signed_s = self._holder.signed_positions(), self._holder.signed_s()
            setting_aside.set_aside(self._vault, self._counter.clocks, self._keys.device, known, signed_s=signed_s)
            self._counter.suspect = False
        return self._make_batches()

    def _make_batches(self) -> list[str]:
        receipt = self._holder.receipt()
        at = receipt.position if receipt else None
        with self._counter.fold_everything() as (tx, now, folded):
            epochs.check(tx, self._holder.signed_positions())
            through = outbox.through(now, folded, timekeeper.certain_s(tx))
            sender = self._sender(pruning.receipt_at_cut(tx), through=through, made_at=now.effective_s)
            current = outbox.make_batches(tx, sender, outbox.start_after(at, tx))
        return [*outbox.batches_set_aside(self._vault, sender, at), *current]

    def _batches_as_stored(self) -> list[str]:
        """Sign what is recorded already in a ledger that cannot be written, and not receipted."""
        receipt = self._holder.receipt()
        at = receipt.position if receipt else None
        made_at = max(self._holder.signed_s(), self._counter.clocks.wall_ns() // NS)
        sender = self._sender(None, through=0, made_at=made_at)
        return outbox.batches_as_stored(self._vault, sender, at)

    def _sender(self, at_cut: str | None, *, through: int, made_at: int) -> Sender:
        has = self._has(at_cut)
        return Sender(keys=self._keys, product=self._product, has=has, through=through, made_at=made_at)

    def _has(self, at_cut: str | None) -> Has:
        """What this device holds already, as a batch tells its server: of receipts the newest that holds."""
        holder = self._holder
        receipts = (holder.receipt_text(), at_cut)  # a damaged one must not stop the rest
        return Has(
            serial=holder.genuine.token.serial if holder.genuine else 0,
            keyring=holder.keyring.version if holder.keyring else 0,
            revocations=holder.revocations.version,
            receipt=next((text for text in receipts if holder.try_receipt(text)), None),
        )

    def take_reply(self, reply: bytes) -> Outcome:
        """Take a reply's parts, and plan the next sync."""
        outcome = self._inbox.take(reply)
        with self._counter.lock, suppress(MeterkitError):  # advice only: what was taken stands, and is to be told
            self.schedule.next_after(outcome.next_sync_s, token=self._holder.genuine)
        return outcome

    def sync(self, server: str | Transport | None) -> list[Outcome]:
        """Hand over what was used, request by request, and take what comes back."""
        chosen = server or self.schedule.server
        if chosen is None:
            raise TransportError("server_unreachable", "no server is known; name one")
        way = HttpTransport(chosen) if isinstance(chosen, str) else chosen
        outcomes = []
        for batches in outbox.group(self.make_batches()):
            reply = way.deliver(transport.batches_message(batches))
            if reply is not None:
                outcomes.append(self.take_reply(reply))
        return outcomes

    def due_in_s(self, *, made_now: bool) -> int:
        """Seconds until the next sync is due, 0 or less if it is overdue."""
        with self._counter.transaction() as tx:
            tx.only_looking = True
            now = timekeeper.observe(tx, self._counter.clocks)
            self._holder.refresh()
        return self.schedule.due_in_s(now, self._holder.genuine, made_now=made_now)

    def export_batch(self, path: str | os.PathLike[str]) -> int:
        """Write what there is to hand over into one file."""
        batches = self.make_batches()
        FileTransport(Path(path)).deliver(transport.batches_message(batches))
        return len(batches)

    def export_activation(self, code: str, path: str | os.PathLike[str]) -> None:
        """Write an activation request into one file."""
        FileTransport(Path(path)).deliver(transport.activation_message(self.request_activation(code)))

    def import_reply(self, path: str | os.PathLike[str]) -> Outcome:
        """Take a reply that was brought as a file."""
        return self.take_reply(transport.read_reply_file(Path(path)))

    def status(self) -> Status:
        """Fold everything, and judge what this device may do; where that cannot be stored, on a copy."""
        try:
            with self._counter.fold_everything() as (tx, now, _):
                return self._judge(tx, now)
        except LedgerError as fault:
            if fault.code != "ledger_unwritable":
                raise
            code = fault.code
        with self._counter.fold_copy() as (tx, now):
            return self._judge(tx, now, ledger_code=code)

    def _judge(self, tx: Transaction, now: Instant, *, ledger_code: str | None = None) -> Status:
        return standings.judge(
            tx,
            now,
            holder=self._holder,
            device=self._keys.device,
            counter=self._counter,
            next_sync_at=self.schedule.next_sync_at,
            ledger_code=ledger_code,
        )
