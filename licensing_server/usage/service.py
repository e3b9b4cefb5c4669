"""Usage: taking batches in, saying how far they are accepted, and summing what was used."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, read, write
from licensing_server.devices import issue, ledger_store, replies, revocation_store
from licensing_server.devices import service as devices
from licensing_server.devices import store as device_store
from licensing_server.devices.store import Device
from licensing_server.licenses import service as licenses
from licensing_server.licenses.store import License
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from licensing_server.usage import grouped, judging, opening, store, taking
from licensing_server.usage.opening import Opened
from meterkit import envelopes
from meterkit.errors import MeterkitError, TrustError
from meterkit.exchange import Reply
from meterkit.keys import VerifyKey
from meterkit.ledger import Chain
from meterkit.receipts import Receipt

_DEVICE_KEYS_MAX = 20_000  # some twenty MiB
_ATTEMPTS = 2  # judged outside the write lock; a device whose ledger keeps changing is then judged inside it
# Receipts only: its place is taken, its license's time is used up, or its models no longer fit into one token.
# What was used is accepted all the same.
_NO_TOKEN = ("code_used_up", "license_inactive", "too_large")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A reply, and the first refusal among the batches that it answers, if one of them was not good."""

    reply: Reply
    refused: MeterkitError | None = None


def exchange(server: Server, texts: Sequence[str]) -> Reply:
    """Take a device's batches, in order, and answer with receipts and, if its license is active, a token.

    Judged first, then stored in one transaction: what is acknowledged is durable, and what was sent twice is
    counted once. A batch that is refused takes nothing with it that came before.

    Raises:
        InputError, TrustError, LedgerError: the first refusal, if no batch of the request was good.
        ServiceError: `signing_unavailable`, `database_unavailable`; nothing is acknowledged or changed then.
    """
    return take(server, texts).reply


def take(server: Server, texts: Sequence[str]) -> Answer:
    """As `exchange`, telling also what was refused beside what was taken."""
    (reply,) = take_together(server, [texts])
    return take_alone(server, texts) if reply is None else Answer(reply=reply)


def take_together(server: Server, requests: Sequence[Sequence[str]]) -> list[Reply | None]:
    """Take the requests of several devices in one transaction, each as if it came alone.

    None stands for those that need a closer look (`usage.plain`): they are to be taken alone. So are all where the
    group fails, for one cannot fail the others.

    Raises:
        ServiceError: `database_unavailable`; nothing of the group is acknowledged then.
    """
    return take_opened(server, open_together(server, requests))


def open_together(server: Server, requests: Sequence[Sequence[str]]) -> list[Opened | None]:
    """Open requests, each of one device, before any transaction; None for those that are to be taken alone.

    Raises:
        ServiceError: `database_unavailable`, where a device's key is to be read.
    """
    _learn_keys(server, requests)
    return [opening.open_plain(texts, lambda kid: _known_key(server, kid)) for texts in requests]


def take_opened(server: Server, opened: Sequence[Opened | None]) -> list[Reply | None]:
    """Take what was opened, as `take_together` does."""
    plain = [each for each in opened if each is not None]
    try:
        replies = iter(grouped.take(server, plain) if plain else [])
    except MeterkitError as error:
        if error.code == "database_unavailable":
            raise
        return [None] * len(opened)
    return [None if each is None else next(replies) for each in opened]


def take_alone(server: Server, texts: Sequence[str]) -> Answer:
    """Take one request, whatever there is about it; raises as `exchange` does."""
    for _ in range(_ATTEMPTS):
        with read(server) as connection:
            judgement = judging.judge_all(server, connection, texts)
        with write(server) as connection:
            if _is_current(connection, judgement.device):
                return Answer(reply=_accept(server, connection, judgement), refused=judgement.refused)
    with write(server) as connection:
        judgement = judging.judge_all(server, connection, texts)
        return Answer(reply=_accept(server, connection, judgement), refused=judgement.refused)


def _learn_keys(server: Server, requests: Sequence[Sequence[str]]) -> None:
    """Read the keys of devices that this process has not met yet, all at once."""
    named: set[str] = set()
    for text in (text for texts in requests for text in texts):
        with suppress(MeterkitError):  # it is named where the text is opened
            named.add(envelopes.unverified_kid(envelopes.BATCH, text))
    new = named - server.device_keys.keys()
    if not new:
        return
    with read(server) as connection:
        found = device_store.find_all(connection, [f"dev_{kid}" for kid in new])
        if len(server.device_keys) + len(found) > _DEVICE_KEYS_MAX:
            server.device_keys.clear()
            found = device_store.find_all(connection, [f"dev_{kid}" for kid in named])
    server.device_keys.update({key.kid: key for key in (device.verify_key for device in found.values())})


def _known_key(server: Server, kid: str) -> VerifyKey:
    key = server.device_keys.get(kid)
    if key is None:
        raise TrustError("key_unknown", "device")
    return key


def _is_current(connection: Connection, device: Device) -> bool:
    stored = device_store.find(connection, device.id)
    return stored is not None and stored.revision == device.revision


def _accept(server: Server, connection: Connection, judgement: judging.Judgement) -> Reply:
    """Store what was taken, and put the reply together: all in the caller's one transaction."""
    now, has, device = server.clock(), judgement.has, judgement.device
    license_ = licenses.find(connection, device.license, lock=True) if device.license else None
    device = replace(device, seen_at=now, serial_seen=max(device.serial_seen, issue.believed_serial(has.serial)))
    revocation_store.note_seen(connection, has.revocations)
    before = device, license_
    if judgement.view.taken:
        device = devices.back(device)
    if taking.store_all(server, connection, judgement.view, license_, now=now):
        device, license_ = _apply_fork_policy(connection, device, license_)
    for epoch, finding in judgement.rollbacks:
        taking.open_exception(server, connection, (device.id, epoch), finding, now)
    receipts = [_receipt(server, connection, device, confirmed, now) for confirmed in judgement.answers]
    token = None
    if judgement.anchor is not None and license_ is not None:
        token, serial = _token(server, connection, device, license_, judgement.anchor, now=now)
        device = replace(device, serial=serial)
    devices.save(connection, device)
    _log_fork_policy(server, connection, before, (device, license_))
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


def _log_fork_policy(
    server: Server,
    connection: Connection,
    before: tuple[Device, License | None],
    after: tuple[Device, License | None],
) -> None:
    (_, earlier), (device, license_) = before, after
    devices.log_back(server, connection, before[0], device)
    if device.held and not before[0].held:
        body = {"held": True}
        audit_log.append(
            server, connection, who=audit_log.SERVER, action="device.hold", subject=device.id, body=body
        )
    if license_ is not None and earlier is not None and license_.state != earlier.state:
        licenses.log_state(server, connection, license_, audit_log.SERVER)


def _receipt(
    server: Server, connection: Connection, device: Device, confirmed: judging.Confirmed, now: int
) -> str:
    """The receipt for a position: the same text however often it is asked for, unless it is to be a later one."""
    chain = confirmed.chain
    given = ledger_store.find_receipt(connection, device.id, chain.position)
    given_at = ledger_store.receipt_issued_at(connection, device.id, chain.position)
    if given is not None and given_at is not None and given_at > confirmed.later_than:
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
    ledger_store.put_receipt(connection, device.id, chain.position, body, now)
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

    `units` are what is billed; `unsettled`, `quarantined` and `dismissed` ones, and those that are `repeated` on
    another branch, stand beside them and are not.
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
