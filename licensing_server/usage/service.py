"""Usage: taking batches in, saying how far they are accepted, and summing what was used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from licensing_server.database import Connection, read, write
from licensing_server.devices import issue, ledger_store, replies
from licensing_server.devices import service as devices
from licensing_server.devices import store as device_store
from licensing_server.devices.ledger_store import Head
from licensing_server.devices.store import Device
from licensing_server.licenses import service as licenses
from licensing_server.licenses.store import License
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from licensing_server.usage import branches, store, taking
from licensing_server.usage.branches import Judged, View
from licensing_server.usage.store import StoredBatch
from meterkit import envelopes
from meterkit.errors import MeterkitError, ServiceError, TrustError
from meterkit.exchange import Batch, Has, Reply, open_batch
from meterkit.keys import VerifyKey
from meterkit.ledger import Chain
from meterkit.positions import Position
from meterkit.receipts import Receipt

_ATTEMPTS = 2  # judged outside the write lock; a device whose ledger keeps changing is then judged inside it
# Receipts only: its place is taken, its license's time is used up, or its models no longer fit into one token.
# What was used is accepted all the same.
_NO_TOKEN = ("code_used_up", "license_inactive", "too_large")


class _Stored:
    """One device's ledgers in the database, as `branches.View` asks for them."""

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection = connection
        self._device = device

    def find(self, position: Position) -> Head | None:
        return ledger_store.find(self._connection, self._device, position)

    def tips(self, epoch: str) -> list[Head]:
        return ledger_store.read_tips(self._connection, self._device, epoch)

    def overlapping(self, epoch: str, seq_from: int, seq_to: int) -> list[StoredBatch]:
        return store.read_overlapping(self._connection, self._device, epoch, seq_from, seq_to)

    def receipt_position(self, body: str) -> Position | None:
        return ledger_store.find_receipt_position(self._connection, self._device, body)

    def has_other_epoch(self, epoch: str) -> bool:
        return ledger_store.has_other_epoch(self._connection, self._device, epoch)


def exchange(server: Server, texts: Sequence[str]) -> Reply:
    """Take a device's batches, in order, and answer with receipts and, if its license is active, a token.

    Judged first, then stored in one transaction: what is acknowledged is durable, and what was sent twice is
    counted once. A batch that is refused takes nothing with it that came before.

    Raises:
        InputError, TrustError, LedgerError: the first refusal, if no batch of the request was good.
        ServiceError: `signing_unavailable`, `database_unavailable`; nothing is acknowledged or changed then.
    """
    for _ in range(_ATTEMPTS):
        with read(server) as connection:
            judgement = _judge_all(connection, texts)
        with write(server) as connection:
            if _is_current(connection, judgement.device):
                return _accept(server, connection, judgement)
    with write(server) as connection:
        return _accept(server, connection, _judge_all(connection, texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judgement:
    """A request, judged: what is to be stored, which receipts answer it, and where a token would be anchored."""

    device: Device
    view: View
    has: Has
    answers: tuple[Chain, ...]
    anchor: Chain | None


def _is_current(connection: Connection, device: Device) -> bool:
    stored = device_store.find(connection, device.id)
    return stored is not None and stored.revision == device.revision


def _judge_all(connection: Connection, texts: Sequence[str]) -> _Judgement:
    device: Device | None = None
    view: View | None = None
    judged: list[Judged] = []
    refused: MeterkitError | None = None
    for text in texts:
        try:
            signer, batch = _open(connection, text)
            if device is None or view is None:
                device, view = signer, View(_Stored(connection, signer.id), signer.id)
            elif signer.id != device.id:
                raise TrustError("subject_wrong", "one request holds one device's batches")
            judged.append(branches.judge(view, batch, text, product=device.product))
        except MeterkitError as error:
            refused = refused or error
    if device is None or view is None or not judged:
        raise refused or ServiceError("internal_error")
    ends = [each.end for each in judged if each.end is not None]
    return _Judgement(
        device=device,
        view=view,
        has=judged[-1].batch.has,
        answers=tuple(_answers(view, judged)),
        anchor=view.reached(ends[-1]) if ends else None,
    )


def _open(connection: Connection, text: str) -> tuple[Device, Batch]:
    def find(kid: str) -> VerifyKey:
        device = device_store.find(connection, f"dev_{kid}")
        if device is None:
            raise TrustError("key_unknown", "device")
        return device.verify_key

    kid, batch = open_batch(text, find)
    return devices.find(connection, f"dev_{kid}"), batch


def _accept(server: Server, connection: Connection, judgement: _Judgement) -> Reply:
    """Store what was taken, and put the reply together: all in the caller's one transaction."""
    now, has, device = server.clock(), judgement.has, judgement.device
    license_ = licenses.find(connection, device.license, lock=True) if device.license else None
    device = replace(device, seen_at=now, serial_seen=max(device.serial_seen, issue.believed_serial(has.serial)))
    if taking.store_all(server, connection, judgement.view, license_, now=now):
        device, license_ = _apply_fork_policy(connection, device, license_)
    receipts = [_receipt(server, connection, device, chain, now) for chain in judgement.answers]
    token = None
    if judgement.anchor is not None and license_ is not None:
        token, serial = _token(server, connection, device, license_, judgement.anchor, now=now)
        device = replace(device, serial=serial)
    devices.save(connection, device)
    return replies.make(server, connection, has=has, receipts=tuple(receipts), token=token, license_=license_)


def _apply_fork_policy(
    connection: Connection, device: Device, license_: License | None
) -> tuple[Device, License | None]:
    """A fork was found: what the device gets from now on is the license's to say."""
    if license_ is None or license_.fork_policy == "flag":
        return device, license_
    if license_.fork_policy == "hold":
        return replace(device, held=True), license_
    return device, licenses.suspend(connection, license_)


def _answers(view: View, judged: list[Judged]) -> list[Chain]:
    """How far each branch in the request is accepted, once each; behind a gap, where to go on from."""
    found: dict[Position, Chain] = {}
    for each in judged:
        found.pop(each.batch.start, None)
        reached = view.go_on_from(each.batch).chain if each.end is None else view.reached(each.end)
        found[reached.position] = reached
    return list(found.values())


def _receipt(server: Server, connection: Connection, device: Device, chain: Chain, now: int) -> str:
    """The receipt for a position: the same text however often it is asked for."""
    given = ledger_store.find_receipt(connection, device.id, chain.position)
    if given is not None:
        return given
    receipt = Receipt(
        issuer=server.issuer,
        product=device.product,
        device=device.id,
        iat=now,
        position=chain.position,
        totals=chain.totals,
    )
    body = server.sign(envelopes.RECEIPT, receipt.to_claims())
    ledger_store.insert_receipt(connection, device.id, chain.position, body, now)
    return body


def _token(
    server: Server, connection: Connection, device: Device, license_: License, reached: Chain, *, now: int
) -> tuple[str | None, int]:
    """A token anchored at the receipt, or none where the device gets receipts only."""
    if license_.state_at(now) != "active" or device.state != "active" or device.held:
        return None, device.serial
    anchor = issue.Anchor(position=reached.position, accepted=True, totals=reached.totals)
    try:
        return issue.issue(server, connection, device=device, license_=license_, anchor=anchor, now=now)
    except MeterkitError as error:
        if error.code in _NO_TOKEN:
            return None, device.serial
        raise


def sum_usage(
    server: Server,
    *,
    license_id: str | None = None,
    meter: tuple[str | None, str | None] = (None, None),
    period: tuple[int, int | None] = (0, None),
) -> Document:
    """Sum what was used, per license and meter, by instant of service in a period (half-open, to now if open).

    `units` are what is billed; `unsettled` and `quarantined` ones stand beside them and are not.
    """
    with read(server) as connection:
        until = server.clock() + 1 if period[1] is None else period[1]
        items = store.sum_units(connection, license_id=license_id, meter=meter, at=(period[0], until))
        return {"from": period[0], "to": until, "items": items}


def page_exceptions(
    server: Server,
    asked: Page,
    *,
    device: str | None = None,
    license_id: str | None = None,
    state: str | None = None,
) -> Document:
    """List what a person should look at: forks, resets, unknown tokens, and the like, with the evidence."""
    with read(server) as connection:
        return store.page_exceptions(connection, asked, device=device, license_id=license_id, state=state)


def resolve_exception(server: Server, exception_id: str, *, how: str, who: str) -> Document:
    """Close an exception, saying how. A device held for its forks is released with the last of them.

    It changes no units: what is quarantined stays aside.
    """
    with write(server) as connection:
        found = store.find_exception(connection, exception_id)
        if found is None:
            raise ServiceError("not_found", "exception")
        if found.state != "open":
            raise ServiceError("state_conflict", "it is resolved already")
        store.resolve_exception(connection, exception_id, how=how, who=who, now=server.clock())
        if found.kind == "fork" and store.count_open(connection, found.device, "fork") == 0:
            devices.save(connection, replace(devices.find(connection, found.device), held=False))
        return store.exception_to_document(store.find_exception(connection, exception_id))
