"""What a file says, who signed it, and whether that holds: tokens, receipts, batches, replies, keyrings.

Everything is judged from bytes and from the keys that the caller knows; nothing is fetched. `holds` means
that the signature was checked against a key that the caller's own roots lead to; what could not be checked is
`unproven`, never `holds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from meterkit import audit, envelopes, evidence, exchange, ledger, limits, receipts, revocations, tokens
from meterkit.activation import open_activation
from meterkit.canonical import from_base64url, from_bytes
from meterkit.envelopes import Addressee, Kind
from meterkit.errors import InputError, LedgerError, MeterkitError
from meterkit.exchange import Batch
from meterkit.keyrings import follow
from meterkit.keys import KEYRING, Keyring, Trust, VerifyKey, roots_fingerprint
from meterkit.shapes import Shape

_ZIP = b"PK\x03\x04"
_SHAPES: dict[Kind, Shape] = {
    envelopes.TOKEN: tokens.shape,
    envelopes.RECEIPT: receipts.receipt_shape,
    envelopes.REVOCATIONS: revocations.SHAPE,
    envelopes.EVIDENCE: evidence.MANIFEST_SHAPE,
}
_NO_ROOT = "no root was named to prove whose it is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One signed thing in a file. `state` is `holds`, `unproven` or `fails` (then `code` says why)."""

    kind: str
    signer: str
    state: str
    says: Any
    code: str | None = None
    detail: str = ""


@dataclass(slots=True)
class Known:
    """What the caller knows: root public keys, and keyrings and device keys found on the way."""

    roots: tuple[str, ...] = ()
    threshold: int = 1
    keyring: Keyring | None = None
    pinned: bool = False
    devices: dict[str, VerifyKey] = field(default_factory=dict)

    def learn_keyring(self, document: list[str]) -> None:
        """Take a keyring: from the caller's roots if there are any, else as it names its own."""
        claims = _unverified_claims(envelopes.KEYRING_DOCUMENT, document[0])
        KEYRING(claims, "keyring")
        own = (tuple(claims["roots"]["keys"]), claims["roots"]["threshold"])
        roots, threshold = (self.roots, self.threshold) if self.roots else own
        trust = Trust(issuer=claims["iss"], roots=roots, threshold=threshold)
        self.keyring = follow(document, trust=trust, held=self.keyring)
        self.pinned = bool(self.roots)


def inspect(data: bytes, known: Known) -> list[Found]:
    """Say of each signed thing in a file what it says, who signed it, and whether it holds.

    Raises:
        InputError: `malformed_file` if it is nothing of Meterkit's, `too_large`.
    """
    if len(data) > limits.EVIDENCE_BYTES_MAX:
        raise InputError("too_large", f"at most {limits.EVIDENCE_BYTES_MAX} bytes")
    if data.startswith(_ZIP):
        return [_inspect_evidence(data, known)]
    if data.lstrip()[:1] in (b"{", b"["):
        return list(_inspect_json(data.strip(), known))
    lines = data.split()
    if not lines:
        raise InputError("malformed_file", "it is empty")
    try:
        return [_inspect_one(line.decode("ascii"), known) for line in lines]
    except UnicodeDecodeError:
        raise InputError("malformed_file", "neither JSON nor signed text") from None


def _inspect_json(data: bytes, known: Known) -> Iterator[Found]:
    value = from_bytes(data, bytes_max=limits.FILE_BYTES_MAX)
    if isinstance(value, dict) and "code" in value and "status" in value:
        yield Found(kind="problem", signer="", state="unproven", says=value, code=None)
    elif isinstance(value, list):
        documents = value if value and isinstance(value[0], list) else [value]
        for document in documents:
            yield _inspect_keyring(document, known)
    else:
        reply = exchange.read_reply(data)
        for document in reply.keyrings:
            yield _inspect_keyring(list(document), known)
        for text in (reply.revocations, *reply.receipts, reply.token):
            if text is not None:
                yield _inspect_one(text, known)


def _inspect_evidence(data: bytes, known: Known) -> Found:
    """Evidence holds if its invoice recomputes; `meterkit audit` says it line by line."""
    bundle = evidence.read_zip(data)
    signer = envelopes.unverified_parts(envelopes.EVIDENCE, bundle.manifest).kid
    pins = {roots_fingerprint(known.roots, known.threshold)} if known.roots else None
    result = audit.recompute(bundle, pins)
    says = {"invoice": result.number, "fingerprint": result.fingerprint, "parts": sorted(bundle.parts)}
    if not result.holds:
        first = result.findings[0]
        detail = f"{first.place}: {first.what}"
        return Found(kind="evidence", signer=signer, state="fails", says=says, code="audit_differs", detail=detail)
    if not result.pinned:
        return Found(kind="evidence", signer=signer, state="unproven", says=says, detail=_NO_ROOT)
    return Found(kind="evidence", signer=signer, state="holds", says=says)


def _inspect_keyring(document: Any, known: Known) -> Found:
    evidence.KEYRING_SHAPE(document, "keyring")
    says = _unverified_claims(envelopes.KEYRING_DOCUMENT, document[0])
    signers = ", ".join(_unverified_kid(text) for text in document)
    return _judged("keyring", signers, says, known, lambda: known.learn_keyring(document))


def _inspect_one(text: str, known: Known) -> Found:
    kind = _kind(text)
    parts = envelopes.unverified_parts(kind, text)
    if kind is envelopes.BATCH:
        return _inspect_batch(text, parts.kid, exchange.read_batch(parts.payload), known)
    says = from_bytes(parts.payload, bytes_max=kind.bytes_max)
    if kind is envelopes.ACTIVATION:
        return _inspect_activation(text, parts.kid, says, known)

    def check() -> None:
        if known.keyring is None or kind not in _SHAPES:
            raise _NotChecked
        envelopes.open_claims(
            kind,
            text,
            keyring=known.keyring,
            addressee=Addressee(issuer=known.keyring.issuer),
            shape=_SHAPES[kind],
        )

    return _judged(kind.name, parts.kid, says, known, check)


class _NotChecked(Exception):  # noqa: N818 - no error: the caller has given no key to check with
    """The key that would prove it is not known here."""


def _judged(kind: str, signer: str, says: Any, known: Known, check: Callable[[], None]) -> Found:
    try:
        check()
    except _NotChecked:
        return Found(kind=kind, signer=signer, state="unproven", says=says, detail="the signer's key is not known")
    except MeterkitError as fault:
        return Found(kind=kind, signer=signer, state="fails", says=says, code=fault.code, detail=fault.detail)
    if known.pinned or kind in ("activation", "batch"):
        return Found(kind=kind, signer=signer, state="holds", says=says)
    return Found(
        kind=kind, signer=signer, state="unproven", says=says, detail="no root was named to prove whose it is"
    )


def _inspect_activation(text: str, kid: str, says: Any, known: Known) -> Found:
    def check() -> None:
        known.devices[kid] = open_activation(text).sign_key

    return _judged("activation", kid, says, known, check)


def _inspect_batch(text: str, kid: str, batch: Batch, known: Known) -> Found:
    def check() -> None:
        position = batch.start
        for body in batch.bodies:
            position = ledger.after(position, ledger.read(position, body))
        if position != batch.end:
            raise LedgerError("chain_broken", "the records do not lead to the head that the batch names")
        if kid not in known.devices:
            raise _NotChecked
        envelopes.open_payload(envelopes.BATCH, text, lambda _: known.devices[kid])

    return _judged("batch", kid, _batch_says(batch), known, check)


def _batch_says(batch: Batch) -> dict[str, Any]:
    records = [from_bytes(body, bytes_max=limits.RECORD_BYTES_MAX) for body in batch.bodies]
    units: dict[str, int] = {}
    for record in records:
        if record["kind"] == "usage":
            name = f"{record['model']} per {record['unit']}"
            units[name] = units.get(name, 0) + record["units"]
    return {
        "product": batch.product,
        "license": batch.license_id,
        "epoch": batch.epoch,
        "from": batch.seq_from,
        "to": batch.seq_to,
        "head": batch.head,
        "through": batch.through,
        "made_at": batch.made_at,
        "units": units,
        "records": records,
    }


def _kind(text: str) -> Kind:
    head = text.split(".", maxsplit=1)[0]
    try:
        header = from_bytes(from_base64url(head), bytes_max=limits.RECORD_BYTES_MAX)
        return envelopes.KINDS[header["typ"]]
    except (InputError, KeyError, TypeError):
        raise InputError("malformed_file", "nothing that Meterkit signs") from None


def _unverified_claims(kind: Kind, text: str) -> Any:
    return from_bytes(envelopes.unverified_parts(kind, text).payload, bytes_max=kind.bytes_max)


def _unverified_kid(text: str) -> str:
    return envelopes.unverified_parts(envelopes.KEYRING_DOCUMENT, text).kid
