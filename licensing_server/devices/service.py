"""Devices: activating them, showing them, and revoking what they hold."""

from dataclasses import replace
from typing import TYPE_CHECKING

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, read, write
from licensing_server.devices import (
    decision_store,
    issue,
    ledger_store,
    replies,
    revocation_store,
    store,
    token_store,
)
from licensing_server.devices.store import Device
from licensing_server.licenses import service as licenses
from licensing_server.licenses import store as license_store
from licensing_server.licenses.store import License
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import activation, envelopes, revocations
from meterkit.activation import ActivationRequest
from meterkit.canonical import sha256_hex
from meterkit.errors import DeviceError, InputError, ServiceError, TrustError
from meterkit.exchange import Reply
from meterkit.exposure import spent
from meterkit.positions import ZERO, Position
from meterkit.revocations import Revocations

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = ("token", "license", "device")


def activate(server: Server, text: str) -> Reply:
    """Activate a device: its request proves an activation code, and is answered with its first token.

    The same device may ask again freely; a new one takes one of the license's places. A request that was
    taken before does not move the device back to the license it asked for then.

    Raises:
        InputError, TrustError: for a request that is not well signed, another product's, or without proof.
        ServiceError: `license_inactive`, `code_expired`, `device_revoked`, `code_used_up`,
            `signing_unavailable`. Nothing is changed then.
    """
    request = activation.open_activation(text)
    with write(server) as connection:
        now = server.clock()
        asked_for = _licensed_by(server, connection, request, now)
        device = _registered(connection, request, text, asked_for, now=now)
        license_ = asked_for if device.license == asked_for.id else _license_of(connection, device, now)
        return _first_reply(server, connection, request, device=device, license_=license_, now=now)


def _licensed_by(server: Server, connection: Connection, request: ActivationRequest, now: int) -> License:
    """Judge an activation, in this order: product, proof, license, code."""
    code = license_store.find_code(connection, request.code_id)
    if code is None:
        raise TrustError("proof_wrong")
    license_ = licenses.find(connection, code.license, lock=True)
    if license_.product != request.product:
        raise TrustError("audience_wrong")
    activation.check_proof(server.sealer.unseal(code.id, code.secret_encrypted), request)
    check_active(license_, now)
    if code.expires_at is not None and now >= code.expires_at:
        raise ServiceError("code_expired")
    return license_


def check_active(license_: License, now: int) -> None:
    """Return if a license is active, else raise `license_inactive`."""
    state = license_.state_at(now)
    if state != "active":
        raise ServiceError("license_inactive", state)


def _license_of(connection: Connection, device: Device, now: int) -> License:
    license_ = licenses.find(connection, device.license or "", lock=True)
    check_active(license_, now)
    return license_


def _registered(
    connection: Connection, request: ActivationRequest, text: str, license_: License, *, now: int
) -> Device:
    """The device as it is to be from now on; a new one is stored."""
    asked = Device(
        id=request.device,
        product=request.product,
        license=license_.id,
        sign_key=request.sign_key.text,
        seal_key=request.seal_key,
        state="active",
        activated_at=now,
        activation_request=text,
        sdk=request.capabilities["sdk"],
        runtime=request.capabilities["runtime"],
        platform=request.capabilities["platform"],
    )
    known = store.find(connection, asked.id)
    digest = sha256_hex(text.encode())
    repeated = store.has_activation(connection, digest)
    if known is None:
        store.insert(connection, asked)
    elif known.product != asked.product:
        raise DeviceError("product_wrong")
    elif known.state == "retired":
        raise ServiceError("state_conflict", "it is retired; take that back first")
    elif known.state not in ("active", "lost"):
        raise ServiceError("device_revoked")
    if not repeated:
        row = {
            "digest": digest,
            "device": asked.id,
            "code": request.code_id,
            "license": license_.id,
            "body": text,
            "received_at": now,
        }
        store.insert_activation(connection, row)
    if known is None:
        return asked
    kept = ("state", "activated_at", "held", "serial", "serial_seen", "seen_at", "revision")
    return known if repeated else replace(asked, **{name: getattr(known, name) for name in kept})


def _first_reply(
    server: Server,
    connection: Connection,
    request: ActivationRequest,
    *,
    device: Device,
    license_: License,
    now: int,
) -> Reply:
    if device.held:
        raise ServiceError("state_conflict", "it is held until its fork is resolved")
    anchor = anchor_at(connection, device.id, request.position)
    token, serial = issue.issue(server, connection, device=device, license_=license_, anchor=anchor, now=now)
    found = back(device)
    save(connection, replace(found, serial=serial, seen_at=now))
    log_back(server, connection, device, found)
    receipt = ledger_store.find_receipt(connection, device.id, request.position)
    return replies.make(
        server,
        connection,
        has=replies.NOTHING,
        receipts=(receipt,) if receipt else (),
        token=token,
        license_=license_,
    )


def back(device: Device) -> Device:
    """A device that was heard of: if it was declared lost, it is not."""
    return replace(device, state="active") if device.state == "lost" else device


def log_back(server: Server, connection: Connection, before: Device, device: Device) -> None:
    """Log that a lost device came back, if one did."""
    if before.state == "lost" and device.state == "active":
        decision_store.insert_declaration(connection, device.id, device.state)
        who, body = audit_log.SERVER, {"from": before.state}
        audit_log.append(server, connection, who=who, action="device.active", subject=device.id, body=body)


def save(connection: Connection, device: Device) -> None:
    """Store a device; if it changed since it was read, nothing of the transaction may stand."""
    if not store.update(connection, device):
        raise ServiceError("database_unavailable", "the device changed meanwhile; ask again")


def anchor_at(connection: Connection, device_id: str, position: Position) -> issue.Anchor:
    """The anchor at a position that a device says it is at, and what is accepted up to it.

    A position ahead of what is accepted counts from the longest branch known, and as if all had been used up to
    it that the device's tokens allow; what truly was, its records say when they come.
    """
    if position.seq == 0:
        if position.head != ZERO:
            raise InputError("malformed_members", "position: before the first record the head is zeros")
        return issue.Anchor(position=position, accepted=True, totals={})
    head = ledger_store.find(connection, device_id, position)
    if head is not None:
        return issue.Anchor(position=position, accepted=True, totals=head.chain.totals)
    tips = ledger_store.read_tips(connection, device_id, position.epoch)
    totals = tips[-1].chain.totals if tips else {}
    reach = token_store.reach_ahead(connection, device_id, position)
    ahead = {key: max(0, most - spent(totals.get(key[1]))) for key, most in reach.items()}
    return issue.Anchor(position=position, accepted=False, totals=totals, ahead=ahead)


def find(connection: Connection, device_id: str) -> Device:
    """Find a device, or raise `not_found`."""
    device = store.find(connection, device_id)
    if device is None:
        raise ServiceError("not_found", "device")
    return device


def show(server: Server, device_id: str) -> Document:
    """Show one device."""
    with read(server) as connection:
        return find(connection, device_id).to_document()


def page(server: Server, asked: Page, license_id: str | None = None) -> Document:
    """List devices, of one license if named."""
    with read(server) as connection:
        return store.page(connection, asked, license_id)


def page_tokens(server: Server, device_id: str, asked: Page) -> Document:
    """List the tokens that a device was given, without their texts."""
    with read(server) as connection:
        find(connection, device_id)
        return token_store.page(connection, device_id, asked)


def revoke(server: Server, kind: str, subject: str, *, who: str = audit_log.COMMAND) -> Document:
    """Revoke a token, a license or a device, for good: devices hear of it with their next reply.

    A revoked license has ended; a revoked device gets receipts only. Until a device hears of it, its token
    runs on to its end.
    """
    with write(server) as connection:
        now = server.clock()
        _check_there(connection, kind, subject)
        if not revocation_store.is_revoked(connection, kind, subject):
            _take_effect(connection, kind, subject, now)
            publish_revocation(server, connection, kind, subject, now)
            audit_log.append(
                server, connection, who=who, action=f"{kind}.revoke", subject=subject, body={"kind": kind}
            )
        version, _ = revocation_store.newest(connection)
        return {"kind": kind, "subject": subject, "revocations_version": version}


def _check_there(connection: Connection, kind: str, subject: str) -> None:
    finders: dict[str, Callable[[Connection, str], object]] = {
        "token": token_store.find,
        "license": license_store.find,
        "device": store.find,
    }
    if finders[kind](connection, subject) is None:
        raise ServiceError("not_found", kind)


def _take_effect(connection: Connection, kind: str, subject: str, now: int) -> None:
    if kind == "device":
        save(connection, replace(find(connection, subject), state="revoked"))
    elif kind == "license":
        license_ = licenses.find(connection, subject, lock=True)
        if license_.state_at(now) != "ended":
            ends_at = max(now, license_.starts_at)
            license_store.update_state(connection, subject, "ended", ends_at)


def publish_revocation(server: Server, connection: Connection, kind: str, subject: str, now: int) -> None:
    """Note that something is revoked, and sign a new list: of all that was revoked, what could still run."""
    if not revocation_store.is_revoked(connection, kind, subject):
        revocation_store.insert(connection, kind, subject, now)
    running = [
        (kind, subject)
        for kind, subject in revocation_store.read_all(connection)
        if token_store.is_running(connection, kind, subject, now)
    ]
    version = revocation_store.next_version(connection)
    named = {kind: frozenset(subject for each, subject in running if each == kind) for kind in _KINDS}
    claims = Revocations(
        issuer=server.issuer,
        iat=now,
        version=version,
        tokens=named["token"],
        licenses=named["license"],
        devices=named["device"],
    ).to_claims()
    revocations.SHAPE(claims, "revocations")
    body = server.sign(envelopes.REVOCATIONS, claims)
    revocation_store.insert_list(connection, version, body, now)


def show_keyrings(server: Server) -> Document:
    """The keyring documents, oldest first, as devices are given them."""
    documents = [list(document) for _, document in sorted(server.keyrings.items())]
    return {"v": 1, "issuer": server.issuer, "keyrings": documents}
