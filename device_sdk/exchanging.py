"""What a device says to its server and hears from it: activating, handing over, taking replies, its status.

Loaded when a device does one of these for the first time: nothing of it is on the way to an answer.
"""

import os
from pathlib import Path

from device_sdk import epochs, outbox, requests, standings, timekeeper, transport
from device_sdk.counter import Counter
from device_sdk.holder import Holder
from device_sdk.inbox import Inbox, Outcome
from device_sdk.outbox import Sender
from device_sdk.schedule import Schedule
from device_sdk.standings import Status
from device_sdk.transport import FileTransport, HttpTransport, Transport
from device_sdk.vault import DeviceKeys, Vault
from meterkit.errors import LedgerError, TransportError
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
        self._schedule = Schedule(vault, counter.clocks)

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
            self._schedule.remember(server=server)
        return outcome

    def make_batches(self) -> list[str]:
        """Fold everything, and sign what is not receipted; a damaged ledger is set aside first."""
        try:
            return self._make_batches()
        except LedgerError as fault:
            if fault.code != "ledger_damaged":
                raise
        with self._counter.lock:
            self._counter.end_leases()
            known, signed_s = self._holder.signed_positions(), self._holder.signed_s()
            epochs.set_aside(self._vault, self._counter.clocks, self._keys.device, known, signed_s=signed_s)
        return self._make_batches()

    def _make_batches(self) -> list[str]:
        receipt = self._holder.receipt()
        at = receipt.position if receipt else None
        with self._counter.fold_everything() as (tx, now, folded):
            epochs.check(tx, self._holder.signed_positions())
            sender = Sender(
                keys=self._keys,
                product=self._product,
                has=self._has(),
                through=outbox.through(now, folded, timekeeper.certain_s(tx)),
                made_at=now.effective_s,
            )
            current = outbox.make_batches(tx, sender, outbox.start_after(at, tx.epoch()))
        return [*outbox.batches_set_aside(self._vault, sender, at), *current]

    def _has(self) -> Has:
        """What this device holds already, as a batch tells its server."""
        holder = self._holder
        return Has(
            serial=holder.genuine.token.serial if holder.genuine else 0,
            keyring=holder.keyring.version if holder.keyring else 0,
            revocations=holder.revocations.version,
            receipt=holder.receipt_text() if holder.receipt() else None,  # a damaged one must not stop the rest
        )

    def take_reply(self, reply: bytes) -> Outcome:
        """Take a reply's parts, and plan the next sync."""
        outcome = self._inbox.take(reply)
        self._schedule.next_after(outcome.next_sync_s, token=self._holder.genuine)
        return outcome

    def sync(self, server: str | Transport | None) -> list[Outcome]:
        """Hand over what was used, request by request, and take what comes back."""
        chosen = server or self._schedule.server
        if chosen is None:
            raise TransportError("server_unreachable", "no server is known; name one")
        way = HttpTransport(chosen) if isinstance(chosen, str) else chosen
        outcomes = []
        for batches in outbox.group(self.make_batches()):
            reply = way.deliver(transport.batches_message(batches))
            if reply is not None:
                outcomes.append(self.take_reply(reply))
        return outcomes

    def export_batch(self, path: Path) -> int:
        """Write what there is to hand over into one file."""
        batches = self.make_batches()
        FileTransport(path).deliver(transport.batches_message(batches))
        return len(batches)

    def export_activation(self, code: str, path: Path) -> None:
        """Write an activation request into one file."""
        FileTransport(path).deliver(transport.activation_message(self.request_activation(code)))

    def import_reply(self, path: Path) -> Outcome:
        """Take a reply that was brought as a file."""
        return self.take_reply(transport.read_reply_file(path))

    def status(self) -> Status:
        """Fold everything, and judge what this device may do."""
        with self._counter.fold_everything() as (tx, now, _):
            return standings.judge(
                tx,
                now,
                holder=self._holder,
                device=self._keys.device,
                counter=self._counter,
                next_sync_at=self._schedule.next_sync_at,
            )
