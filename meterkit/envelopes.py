"""Opening one signed envelope, by purpose: steps 1 to 6 of DESIGN §3, always in that order.

An envelope is a compact JWS (RFC 7515), Ed25519 (RFC 8037). Each kind has one `typ` and one key purpose, so
that nothing signed as one thing can pass for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meterkit import limits, shapes
from meterkit.canonical import from_base64url, from_bytes
from meterkit.errors import InputError, TrustError
from meterkit.keys import KEYRING, Keyring, VerifyKey
from meterkit.tuples import NamedTuple

_USUAL_START = b'{"alg":"EdDSA","kid":"'
_HEADER_BYTES_MAX = 256
_SIGNATURE_CHARS = 86
_HEADER_MEMBERS = {"alg", "kid", "typ"}


class Kind(NamedTuple):
    """One kind of signed thing: its `typ`, the key purpose that may sign it, and its size limit in bytes."""

    name: str
    typ: str
    purpose: str
    bytes_max: int


TOKEN = Kind(name="token", typ="mk-token+jwt", purpose="token", bytes_max=limits.TOKEN_BYTES_MAX)
RECEIPT = Kind(name="receipt", typ="mk-receipt+jws", purpose="receipt", bytes_max=limits.RECEIPT_BYTES_MAX)
REVOCATIONS = Kind(
    name="revocations",
    typ="mk-revocations+jws",
    purpose="revocations",
    bytes_max=limits.REVOCATIONS_BYTES_MAX,
)
EVIDENCE = Kind(
    name="evidence",
    typ="mk-evidence+jws",
    purpose="invoice",
    bytes_max=limits.EVIDENCE_MANIFEST_BYTES_MAX,
)
KEYRING_DOCUMENT = Kind(name="keyring", typ="mk-keyring+jws", purpose="root", bytes_max=limits.KEYRING_BYTES_MAX)
PACKAGE = Kind(name="package", typ="mk-package+jws", purpose="package", bytes_max=limits.KEYRING_BYTES_MAX)
ACTIVATION = Kind(
    name="activation", typ="mk-activation+jws", purpose="device", bytes_max=limits.ACTIVATION_BYTES_MAX
)
BATCH = Kind(name="batch", typ="mk-batch+jws", purpose="device", bytes_max=limits.BATCH_BYTES_MAX * 4 // 3 + 1024)
KINDS: dict[str, Kind] = {
    kind.typ: kind
    for kind in (TOKEN, RECEIPT, REVOCATIONS, EVIDENCE, KEYRING_DOCUMENT, PACKAGE, ACTIVATION, BATCH)
}


class Parts(NamedTuple):
    """An envelope taken apart, with nothing of it proven yet."""

    kid: str
    payload: bytes
    signed: bytes
    signature: bytes


class Addressee(NamedTuple):
    """For whom something must be: the vendor, and where it is for one device, product and device id."""

    issuer: str
    product: str | None = None
    device: str | None = None


def unverified_parts(kind: Kind, text: str) -> Parts:
    """Take an envelope apart: steps 1 and 2. It does not check who signed it."""
    # 1. length and shape, before anything is decoded
    if not isinstance(text, str) or not text.isascii():
        raise InputError("not_text", kind.name)
    if len(text) > kind.bytes_max:
        raise InputError("too_large", f"{kind.name}: at most {kind.bytes_max} bytes")
    parts = text.split(".", 3)
    if len(parts) != 3 or not all(parts) or len(parts[2]) != _SIGNATURE_CHARS:
        raise InputError("malformed_envelope", kind.name)
    header, payload, signature = map(from_base64url, parts)
    # 2. header: exact members, `typ`, `alg` pinned
    kid = _read_header(kind, header)
    return Parts(kid=kid, payload=payload, signed=text.rpartition(".")[0].encode("ascii"), signature=signature)


def unverified_kid(kind: Kind, text: str) -> str:
    """Read which key an envelope says has signed it, and nothing else of it: to fetch the keys of many at once."""
    header = text[: _HEADER_BYTES_MAX * 2].partition(".")[0]
    return _read_header(kind, from_base64url(header))


def _read_header(kind: Kind, data: bytes) -> str:
    # A header as Meterkit writes it is read without parsing JSON; any other takes the long way to the same end.
    kid: Any = data[len(_USUAL_START) : len(_USUAL_START) + limits.KID_CHARS].decode("ascii", "replace")
    if data != b"".join((_USUAL_START, kid.encode(), b'","typ":"', kind.typ.encode(), b'"}')):
        kid = _read_any_header(kind, data)["kid"]
    try:
        return str(shapes.KID(kid, "kid"))
    except InputError:
        raise InputError("malformed_header", "kid") from None


def _read_any_header(kind: Kind, data: bytes) -> dict[str, Any]:
    try:
        header = from_bytes(data, bytes_max=_HEADER_BYTES_MAX)
    except InputError:
        raise InputError("malformed_header", kind.name) from None
    if not isinstance(header, dict) or header.keys() != _HEADER_MEMBERS or header["alg"] != "EdDSA":
        raise InputError("malformed_header", kind.name)
    if header["typ"] != kind.typ:
        raise InputError("wrong_type", f"expected {kind.typ}")
    return header


def open_payload(kind: Kind, text: str, find: Callable[[str], VerifyKey]) -> tuple[str, bytes]:
    """Open an envelope up to its signature: steps 1 to 4. Returns the signer's kid and the payload bytes.

    `find` gives the key for a kid, or raises `key_unknown`.
    """
    parts = unverified_parts(kind, text)
    # 3. kid is known for this purpose
    key = find(parts.kid)
    # 4. signature
    key.check(parts.signature, parts.signed)
    return parts.kid, parts.payload


def open_claims(
    kind: Kind, text: str, *, keyring: Keyring, addressee: Addressee, shape: shapes.Shape
) -> tuple[str, dict[str, Any]]:
    """Open what the server signed: steps 1 to 6. Returns the signer's kid and the exact claims.

    It does not ask whether the thing is still current: that is its own kind's business.
    """
    kid, payload = open_payload(kind, text, lambda kid: keyring.find(kid, kind.purpose))
    # 5. payload: strict JSON, exact members
    claims = from_bytes(payload, bytes_max=kind.bytes_max)
    shape(claims, kind.name)
    # 6. for whom, and the key was good at `iat`
    check_addressee(claims, addressee)
    keyring.check_good(kid, claims["iat"])
    return kid, claims


def check_addressee(claims: dict[str, Any], addressee: Addressee) -> None:
    """Return if the claims name this issuer, product and device; else raise the code for which they do not."""
    if claims["iss"] != addressee.issuer:
        raise TrustError("issuer_wrong")
    if addressee.product is not None and claims["aud"] != addressee.product:
        raise TrustError("audience_wrong")
    if addressee.device is not None and claims["sub"] != addressee.device:
        raise TrustError("subject_wrong")


def open_keyring(
    document: list[str], *, issuer: str, roots: tuple[str, ...], threshold: int
) -> tuple[Keyring, frozenset[str]]:
    """Open one keyring document: byte-identical payloads, a threshold of different trusted roots.

    Returns the keyring and the kids of all the given roots that have signed it. It does not ask whether the
    version may follow the one already held: `meterkit.keyrings.follow` does.
    """
    trusted = {key.kid: key for key in map(VerifyKey, roots)}
    if not isinstance(document, list) or not 1 <= len(document) <= limits.ROOTS_MAX:
        raise InputError("malformed_members", "keyring: must be a list of signed envelopes")
    signers: set[str] = set()
    payloads: set[bytes] = set()
    for text in document:
        parts = unverified_parts(KEYRING_DOCUMENT, text)
        payloads.add(parts.payload)
        if parts.kid in trusted:
            trusted[parts.kid].check(parts.signature, parts.signed)
            signers.add(parts.kid)
    if len(payloads) != 1:
        raise TrustError("threshold_unmet", "the signed payloads differ")
    if len(signers) < threshold:
        raise TrustError("threshold_unmet")
    claims = from_bytes(payloads.pop(), bytes_max=KEYRING_DOCUMENT.bytes_max)
    KEYRING(claims, "keyring")
    if claims["iss"] != issuer:
        raise TrustError("issuer_wrong")
    return Keyring.from_claims(claims), frozenset(signers)
