"""Judging a request: which device speaks, what its batches add, how far each branch is to be confirmed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from licensing_server.database import Connection
from licensing_server.devices import ledger_store
from licensing_server.devices import service as devices
from licensing_server.devices import store as device_store
from licensing_server.devices.ledger_store import Head
from licensing_server.devices.store import Device
from licensing_server.server import Server
from licensing_server.usage import branches, rollbacks, store
from licensing_server.usage.branches import Judged, View
from licensing_server.usage.records import Finding
from licensing_server.usage.store import StoredBatch
from meterkit import limits
from meterkit.errors import MeterkitError, ServiceError, TrustError
from meterkit.exchange import Batch, Has, open_batch
from meterkit.keys import VerifyKey
from meterkit.ledger import Chain
from meterkit.positions import Position


class _Stored:
    """One device's ledgers in the database, as `branches.View` asks for them."""

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection = connection
        self._device = device

    def find(self, position: Position) -> Head | None:
        return ledger_store.find(self._connection, self._device, position)

    def tips(self, epoch: str) -> list[Head]:
        return ledger_store.read_tips(self._connection, self._device, epoch)

    def foundations(self, epoch: str) -> list[Head]:
        return ledger_store.read_foundations(self._connection, self._device, epoch)

    def overlapping(self, epoch: str, seq_from: int, seq_to: int) -> list[StoredBatch]:
        return store.read_overlapping(self._connection, self._device, epoch, seq_from, seq_to)

    def receipt_position(self, body: str) -> Position | None:
        return ledger_store.find_receipt_position(self._connection, self._device, body)

    def receipt_issued_at(self, position: Position) -> int | None:
        return ledger_store.receipt_issued_at(self._connection, self._device, position)

    def has_other_epoch(self, epoch: str) -> bool:
        return ledger_store.has_other_epoch(self._connection, self._device, epoch)


def view_of(connection: Connection, device: str) -> View:
    """One device's ledgers as they are stored."""
    return View(_Stored(connection, device), device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """What a receipt is to confirm; where it asks a device to go back, it must be signed after `later_than`."""

    chain: Chain
    later_than: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A request, judged: what is to be stored, which receipts answer it, and where a token would be anchored."""

    device: Device
    view: View
    has: Has
    answers: tuple[Confirmed, ...]
    anchor: Chain | None
    refused: MeterkitError | None
    rollbacks: tuple[tuple[str, Finding], ...]


def judge_all(server: Server, connection: Connection, texts: Sequence[str]) -> Judgement:
    """Judge a request's batches, in order; nothing is stored.

    Raises:
        InputError, TrustError, LedgerError: the first refusal, if no batch of the request was good.
    """
    device: Device | None = None
    view: View | None = None
    judged: list[Judged] = []
    refused: MeterkitError | None = None
    for text in texts:
        try:
            signer, batch = _open(connection, text)
            if device is None or view is None:
                device, view = signer, view_of(connection, signer.id)
            elif signer.id != device.id:
                raise TrustError("subject_wrong", "one request holds one device's batches")
            forgotten = rollbacks.forgotten(server, view, batch)
            if forgotten is not None and view.was_asked_in_vain(batch, forgotten):
                view.adopt(batch, forgotten)
            found = branches.judge(view, batch, text, product=device.product)
            judged.append(replace(found, forgotten=forgotten))
        except MeterkitError as error:
            refused = refused or error
    if device is None or view is None or not judged:
        raise refused or ServiceError("internal_error")
    ends = [each.end for each in judged if each.end is not None]
    return Judgement(
        device=device,
        view=view,
        has=judged[-1].batch.has,
        answers=tuple(_answers(view, judged)),
        anchor=view.reached(ends[-1]) if ends else None,
        refused=refused,
        rollbacks=tuple(_rollbacks(view, judged)),
    )


def _rollbacks(view: View, judged: list[Judged]) -> Iterator[tuple[str, Finding]]:
    """What is to be told of receipts that this server forgot, with their epochs."""
    for each in judged:
        if each.forgotten is not None:
            epoch = each.forgotten.position.epoch
            reached = view.tips(epoch)[-1:] or [view.go_on_from(each.batch)]
            yield epoch, rollbacks.finding(each.batch, each.forgotten, reached[0].chain)


def device_key(connection: Connection, kid: str) -> VerifyKey:
    """The key of the device that bears its id, or `key_unknown`."""
    device = device_store.find(connection, f"dev_{kid}")
    if device is None:
        raise TrustError("key_unknown", "device")
    return device.verify_key


def _open(connection: Connection, text: str) -> tuple[Device, Batch]:
    kid, batch = open_batch(text, lambda kid: device_key(connection, kid))
    return devices.find(connection, f"dev_{kid}"), batch


def _answers(view: View, judged: list[Judged]) -> list[Confirmed]:
    """How far each branch in the request is accepted, once each; behind a gap, where to go on from."""
    found: dict[Position, Confirmed] = {}
    for each in judged:
        found.pop(each.batch.start, None)
        confirmed = _confirmed(view, each)
        found[confirmed.chain.position] = confirmed
    most = limits.EXCHANGE_BATCHES_MAX  # a reply holds no more; what is left is sent, and confirmed, again
    return list(found.values())[-most:]


def _confirmed(view: View, judged: Judged) -> Confirmed:
    if judged.end is not None:
        return Confirmed(chain=view.reached(judged.end))
    if judged.forgotten is None:
        return Confirmed(chain=view.go_on_from(judged.batch).chain)
    signed_at = judged.forgotten.iat
    return Confirmed(chain=view.go_on_from(judged.batch, asked_since=signed_at).chain, later_than=signed_at)
