"""Device: one directory, one key pair, one product, one ledger. The one object that a vendor holds."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Protocol, Self

from device_sdk import epochs
from device_sdk.counter import Counter
from device_sdk.holder import Holder
from device_sdk.ledger_store import LedgerStore
from device_sdk.readings import Clocks, check_platform
from device_sdk.vault import DeviceKeys, Vault
from meterkit import shapes
from meterkit.errors import DeviceError, LedgerError
from meterkit.keys import Trust
from meterkit.tokens import Token

if TYPE_CHECKING:  # the names only: what they name is imported by the first method that exchanges
    from device_sdk.background import BackgroundSync, OnSync
    from device_sdk.exchanging import Exchanging
    from device_sdk.inbox import Outcome
    from device_sdk.standings import Status
    from device_sdk.transport import Transport


class ForkAware(Protocol):
    """Something that holds cells, and must let go of them in a child process."""

    def after_fork(self) -> None:
        """Forget what belongs to the parent."""


class Device:
    """A licensed device: what it may run, what it has used, and how it tells its server.

    Make one with `Device.open`. It may be used from any thread; several processes may open one directory.
    """

    def __init__(self, vault: Vault, keys: DeviceKeys, holder: Holder, clocks: Clocks, product: str) -> None:
        self.vault = vault
        self.keys = keys
        self.holder = holder
        self.product = product
        self._clocks = clocks
        self._store = LedgerStore(vault.ledger, queue=vault.cells)
        self._open_ledger()
        self.counter = Counter(store=self._store, holder=holder, clocks=clocks, cells_directory=vault.cells)
        self._forked: weakref.WeakSet[ForkAware] = weakref.WeakSet()
        self._background: BackgroundSync | None = None
        _OPEN.add(self)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], *, trust: Trust, product: str, clocks: Clocks | None = None
    ) -> Self:
        """Open a device's directory, making its key pair and ledger at the first time.

        `trust` and `product` come from the vendor's own code, never from a setting. Needs no network.

        Raises:
            DeviceError: `platform_unsupported`, `directory_unusable`, `product_wrong`, `device_key_bad`.
            LedgerError: `ledger_newer`; `ledger_unwritable` where there is no ledger yet that could be read.
        """
        check_platform()
        shapes.NAME(product, "product")
        vault = Vault(os.fspath(directory))
        vault.identity(issuer=trust.issuer, product=product)
        keys = vault.keys()
        holder = Holder(vault, trust=trust, product=product, keys=keys)
        return cls(vault, keys, holder, clocks or Clocks(), product)

    @property
    def id(self) -> str:
        """The device id: `dev_` and the thumbprint of its signing key."""
        return self.keys.device

    def _open_ledger(self) -> None:
        """Begin the first epoch, or judge the ledger found; one that cannot go on is set aside.

        One that cannot be written can still tell, and be handed over; it may be writable again by the first call.
        """
        try:
            self._judge_ledger()
        except LedgerError as fault:
            if fault.code != "ledger_damaged":
                raise
            from device_sdk import setting_aside  # noqa: PLC0415 - not on the way to an answer

            known = self.holder.signed_positions()
            setting_aside.set_aside(self.vault, self._clocks, self.id, known, signed_s=self.holder.signed_s())

    def _judge_ledger(self) -> None:
        known = self.holder.signed_positions()
        try:
            with self._store.write() as tx:
                if tx.epoch() == "":
                    epochs.start(tx, self._clocks, self.id, epochs.newest(known), signed_s=self.holder.signed_s())
                epochs.check(tx, known)
        except LedgerError as fault:
            if fault.code != "ledger_unwritable":
                raise
            with self._store.copy() as tx:
                epochs.check(tx, known)

    def token(self) -> Token:
        """The token in force; raises `not_activated`, or why the stored one does not hold."""
        with self.counter.lock:
            return self.holder.current_token()

    def watch_forks(self, watcher: ForkAware) -> None:
        """Tell a session when this process forks, as long as it lives."""
        self._forked.add(watcher)

    # -- activating

    @property
    def exchanging(self) -> Exchanging:
        """What the methods below do."""
        from device_sdk.exchanging import Exchanging  # noqa: PLC0415 - not on the way to an answer

        return Exchanging(
            vault=self.vault, keys=self.keys, product=self.product, holder=self.holder, counter=self.counter
        )

    def request_activation(self, code: str) -> str:
        """Make the signed request for a first token, or another license's; as a file it ends in `.mkact`.

        The code's secret proves itself and is not in it.
        """
        return self.exchanging.request_activation(code)

    def activate(self, code: str, server: str | Transport) -> Outcome | None:
        """Get this device's token for an activation code, from a server's URL or another transport.

        Gives None where the transport brings no reply at once, as a file does.

        Raises:
            InputError: `malformed_code`.
            TransportError: the server cannot be reached; nothing has changed.
            MeterkitError: the server's refusal, or why its token was not taken.
        """
        return self.exchanging.activate(code, server)

    # -- exchanging

    def make_batches(self) -> list[str]:
        """Fold everything, and sign what the server has not receipted yet.

        A ledger that is found damaged is set aside first: no two records are ever signed with one seq. Of one that
        cannot be written, what is recorded already is signed, as far as it holds.
        """
        return self.exchanging.make_batches()

    def take_reply(self, reply: bytes) -> Outcome:
        """Take a reply, part by part: one refused undoes no other. What a part came to is in the outcome."""
        return self.exchanging.take_reply(reply)

    def sync(self, server: str | Transport | None = None) -> list[Outcome]:
        """Hand over what was used and take what comes back, over HTTP or another transport.

        Without a server it is the one that the device was activated at. Usage is kept until it is receipted,
        whatever happens here.

        Raises:
            TransportError: `server_unreachable`, `server_busy`, `answer_refused`; nothing was lost.
            MeterkitError: the server's refusal.
        """
        return self.exchanging.sync(server)

    def sync_in_background(
        self,
        *,
        interval_s: int | None = None,
        server: str | Transport | None = None,
        on_sync: OnSync | None = None,
    ) -> BackgroundSync:
        """Sync now and then from now on, on a thread of its own, until `stop()` of what this gives, or `close`.

        Each exchange advises when to come again; no later, though, than a new token is due. With `interval_s`,
        seconds of time that passes whatever the clock is set to, it is that often at least. The first sync comes
        somewhere within `interval_s`, or five minutes where it is overdue: call `sync` for one now. A server that
        is away or refuses is asked again later and later, but once an hour at least; one that is busy, after what
        it asks for.

        No failure is raised in the program: what each sync came to is `.last` of what this gives, and `on_sync` is
        told of it, on that thread. Called again, it replaces the one before. A process made by fork() has none:
        call it there. The device is freed as without it; what `on_sync` refers to is kept.

        Raises:
            DeviceError: `device_closed`.
        """
        from device_sdk.background import BackgroundSync  # noqa: PLC0415 - not on the way to an answer

        if self.counter.closed:
            raise DeviceError("device_closed")
        made = BackgroundSync(self, server=server, interval_s=interval_s, on_sync=on_sync)
        before, self._background = self._background, made
        if before is not None:
            before.stop()
        made.start()
        return made

    def export_batch(self, path: str | os.PathLike[str]) -> int:
        """Write what there is to hand over into one `.mkbatch` file; gives the number of batches in it."""
        return self.exchanging.export_batch(path)

    def export_activation(self, code: str, path: str | os.PathLike[str]) -> None:
        """Write an activation request into one file, to be carried to the server."""
        self.exchanging.export_activation(code, path)

    def import_reply(self, path: str | os.PathLike[str]) -> Outcome:
        """Take a reply that was brought as a `.mkreply` file.

        Raises:
            InputError: it is no reply; nothing was changed.
            MeterkitError: the server's refusal, where the file holds one.
        """
        return self.exchanging.import_reply(path)

    # -- telling

    def status(self) -> Status:
        """What users ask most: works offline until when, how many units are left, when to sync, why it stops.

        It records what was counted, and uses up nothing. Where the ledger cannot be written it says so, and judges
        from what is stored and what live cells have counted since, without recording it.

        Raises:
            LedgerError: the ledger cannot even be read.
        """
        return self.exchanging.status()

    def _after_fork(self) -> None:
        self.counter.after_fork()
        for watcher in list(self._forked):
            watcher.after_fork()

    def close(self) -> None:
        """Record what was counted and return what was leased. Afterwards nothing runs on this object.

        A process that ends without it loses nothing: the next one finds its cells.
        """
        if self._background is not None:
            self._background.stop()
        self.counter.close()
        with self.counter.lock:  # a sync that is in flight may be at the ledger
            self._store.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Device({self.id}, product={self.product!a})"


_OPEN: weakref.WeakSet[Device] = weakref.WeakSet()


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
