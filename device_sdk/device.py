"""Device: one directory, one key pair, one product, one ledger. The one object that a vendor holds."""

import os
import secrets
import threading
import weakref
from pathlib import Path
from typing import Protocol, Self

from device_sdk import epochs, folding, outbox, requests, standings, timekeeper, transport
from device_sdk.counter import Counter
from device_sdk.holder import Holder
from device_sdk.inbox import Inbox, Outcome
from device_sdk.ledger_store import LedgerStore
from device_sdk.outbox import Sender
from device_sdk.readings import Clocks, check_platform
from device_sdk.schedule import Schedule
from device_sdk.standings import Status
from device_sdk.transport import FileTransport, HttpTransport, Transport
from device_sdk.vault import Vault
from meterkit import shapes
from meterkit.errors import LedgerError, TransportError
from meterkit.keys import Trust
from meterkit.positions import Position
from meterkit.tokens import Token


class ForkAware(Protocol):
    """Something that holds cells, and must let go of them in a child process."""

    def after_fork(self) -> None:
        """Forget what belongs to the parent."""


class Device:
    """A licensed device: what it may run, what it has used, and how it tells its server.

    Make one with `Device.open`. It may be used from any thread; several processes may open one directory.
    """

    def __init__(self, vault: Vault, holder: Holder, clocks: Clocks, product: str) -> None:
        self.vault = vault
        self.holder = holder
        self.product = product
        self.keys = vault.keys()
        self._clocks = clocks
        self._store = LedgerStore(vault.ledger)
        self._open_ledger()
        self.counter = Counter(store=self._store, holder=holder, clocks=clocks, cells_directory=vault.cells)
        self._inbox = Inbox(holder=holder, counter=self.counter, vault=vault)
        self._schedule = Schedule(vault, clocks)
        self._forked: weakref.WeakSet[ForkAware] = weakref.WeakSet()
        _OPEN.add(self)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], *, trust: Trust, product: str, clocks: Clocks | None = None
    ) -> Self:
        """Open a device's directory, making its key pair and ledger at the first time.

        `trust` and `product` come from the vendor's own code, never from a setting. Needs no network.

        Raises:
            DeviceError: `platform_unsupported`, `directory_unusable`, `product_wrong`, `device_key_bad`.
            LedgerError: `ledger_unwritable`, `ledger_newer`.
        """
        check_platform()
        shapes.NAME(product, "product")
        vault = Vault(Path(directory))
        vault.identity(issuer=trust.issuer, product=product)
        holder = Holder(vault, trust=trust, product=product, keys=vault.keys())
        return cls(vault, holder, clocks or Clocks(), product)

    @property
    def id(self) -> str:
        """The device id: `dev_` and the thumbprint of its signing key."""
        return self.keys.device

    def _open_ledger(self) -> None:
        """Begin the first epoch, or judge the ledger found; one that cannot go on is set aside."""
        known = self._known_positions()
        try:
            with self._store.write() as tx:
                if tx.epoch() == "":
                    epochs.start(tx, self._clocks, self.id, epochs.newest(known), signed_s=self._signed_s())
                epochs.check(tx, known)
                folding.sweep(tx, self.vault.cells)
        except LedgerError as fault:
            if fault.code != "ledger_damaged":
                raise
            self._set_aside()

    def _known_positions(self) -> list[Position]:
        """Positions that the server has signed, and which the ledger must therefore contain."""
        receipt = self.holder.receipt()
        genuine = self.holder.genuine
        found = [receipt.position] if receipt else []
        return [*found, genuine.token.anchor] if genuine else found

    def _signed_s(self) -> int:
        """The newest time that is known to be signed: a new ledger's clock starts no earlier."""
        receipt = self.holder.receipt()
        genuine = self.holder.genuine
        return max(receipt.iat if receipt else 0, genuine.token.iat if genuine else 0)

    def token(self) -> Token:
        """The token in force; raises `not_activated`, or why the stored one does not hold."""
        with self.counter.lock:
            return self.holder.current_token()

    def watch_forks(self, watcher: ForkAware) -> None:
        """Tell a session when this process forks, as long as it lives."""
        self._forked.add(watcher)

    # -- activating

    def request_activation(self, code: str) -> str:
        """Make the signed request for a first token, or another license's; as a file it ends in `.mkact`.

        The code's secret proves itself and is not in it.
        """
        with self.counter.transaction() as tx:
            position = tx.position()
            now = timekeeper.observe(tx, self._clocks)
        token = self.holder.genuine.token if self.holder.genuine else None
        return requests.make(
            code,
            keys=self.keys,
            product=self.product,
            position=position,
            license_hint=token.license_id if token else None,
            made_at=now.effective_s,
            nonce=secrets.token_bytes(16),
        )

    def activate(self, code: str, server: str | Transport) -> Outcome | None:
        """Get this device's token for an activation code, from a server's URL or another transport.

        Gives None where the transport brings no reply at once, as a file does.

        Raises:
            InputError: `malformed_code`.
            TransportError: the server cannot be reached; nothing has changed.
            MeterkitError: the server's refusal, or why its token was not taken.
        """
        way = HttpTransport(server) if isinstance(server, str) else server
        reply = way.deliver(transport.activation_message(self.request_activation(code)))
        if reply is None:
            return None
        outcome = self.take_reply(reply)
        outcome.check("token")
        if isinstance(server, str):
            self._schedule.remember(server=server)
        return outcome

    # -- exchanging

    def make_batches(self) -> list[str]:
        """Fold everything, and sign what the server has not receipted yet.

        A ledger that is found damaged is set aside first: no two records are ever signed with one seq.
        """
        try:
            return self._make_batches()
        except LedgerError as fault:
            if fault.code != "ledger_damaged":
                raise
        with self.counter.lock:
            self.counter.end_leases()
            self._set_aside()
        return self._make_batches()

    def _make_batches(self) -> list[str]:
        receipt = self.holder.receipt()
        at = receipt.position if receipt else None
        with self.counter.fold_everything() as (tx, now, folded):
            epochs.check(tx, self._known_positions())
            sender = Sender(
                keys=self.keys,
                product=self.product,
                has=self.holder.has(),
                through=outbox.through(now, folded, timekeeper.certain_s(tx)),
                made_at=now.effective_s,
            )
            current = outbox.make_batches(tx, sender, outbox.start_after(at, tx.epoch()))
        return [*outbox.batches_set_aside(self.vault, sender, at), *current]

    def take_reply(self, reply: bytes) -> Outcome:
        """Take a reply, part by part: one refused undoes no other. What a part came to is in the outcome."""
        outcome = self._inbox.take(reply)
        self._schedule.next_after(outcome.next_sync_s, token=self.holder.genuine)
        return outcome

    def sync(self, server: str | Transport | None = None) -> list[Outcome]:
        """Hand over what was used and take what comes back, over HTTP or another transport.

        Without a server it is the one that the device was activated at. Usage is kept until it is receipted,
        whatever happens here.

        Raises:
            TransportError: `server_unreachable`, `server_busy`, `answer_refused`; nothing was lost.
            MeterkitError: the server's refusal.
        """
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

    def export_batch(self, path: str | os.PathLike[str]) -> int:
        """Write what there is to hand over into one `.mkbatch` file; gives the number of batches in it."""
        batches = self.make_batches()
        FileTransport(Path(path)).deliver(transport.batches_message(batches))
        return len(batches)

    def export_activation(self, code: str, path: str | os.PathLike[str]) -> None:
        """Write an activation request into one file, to be carried to the server."""
        message = transport.activation_message(self.request_activation(code))
        FileTransport(Path(path)).deliver(message)

    def import_reply(self, path: str | os.PathLike[str]) -> Outcome:
        """Take a reply that was brought as a `.mkreply` file.

        Raises:
            InputError: it is no reply; nothing was changed.
            MeterkitError: the server's refusal, where the file holds one.
        """
        return self.take_reply(transport.read_reply_file(Path(path)))

    # -- telling

    def status(self) -> Status:
        """What users ask most: works offline until when, how many units are left, when to sync, why it stops.

        It records what was counted, and uses up nothing.
        """
        with self.counter.fold_everything() as (tx, now, _):
            return standings.judge(
                tx,
                now,
                holder=self.holder,
                device=self.id,
                counter=self.counter,
                next_sync_at=self._schedule.next_sync_at,
            )

    def _set_aside(self) -> None:
        epochs.set_aside(self.vault, self._clocks, self.id, self._known_positions(), signed_s=self._signed_s())

    def _after_fork(self) -> None:
        self.counter.after_fork()
        for watcher in list(self._forked):
            watcher.after_fork()

    def close(self) -> None:
        """Record what was counted and return what was leased. Afterwards nothing runs on this object.

        A process that ends without it loses nothing: the next one finds its cells.
        """
        self.counter.close()
        self._store.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Device({self.id}, product={self.product!a})"


_OPEN: "weakref.WeakSet[Device]" = weakref.WeakSet()


class _Held(threading.local):
    """The devices that a forking thread holds still."""

    def __init__(self) -> None:
        self.devices: list[Device] = []


_HELD = _Held()


def _before_fork() -> None:
    """No thread may be inside a transaction: the child would inherit it, with SQLite's locks as they were."""
    for device in sorted(_OPEN, key=id):
        device.counter.lock.acquire()
        _HELD.devices.append(device)


def _after_fork_in_parent() -> None:
    while _HELD.devices:
        _HELD.devices.pop().counter.lock.release()


def _after_fork_in_child() -> None:
    _HELD.devices.clear()
    for device in list(_OPEN):
        device._after_fork()  # noqa: SLF001 - this is the class's own hook


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
