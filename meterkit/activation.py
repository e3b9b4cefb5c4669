"""How a device asks for its first token: an activation code proves itself without crossing (FORMATS)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any

from meterkit import envelopes, limits, shapes
from meterkit.canonical import from_bytes
from meterkit.errors import InputError, TrustError
from meterkit.keys import VerifyKey, check_seal_key, device_id
from meterkit.positions import Position

_CODE = re.compile(r"(code_[a-z2-7]{26})\.([a-z2-7]{26})\Z")
_NONCE = shapes.matching("[A-Za-z0-9_-]{22}", "16 bytes in base64url")
CODE_ID = shapes.ident("code")
KIND_VERSIONS = shapes.mapping(shapes.integer(1, 1_000), 32)
_CAPABILITIES = shapes.Members(
    v=KIND_VERSIONS,
    sdk=shapes.text(64),
    runtime=shapes.text(64),
    platform=shapes.text(128),
    hints=shapes.listed(shapes.HASH, 16, unique=True),
)
SHAPE = shapes.Members(
    v=shapes.VERSION_1,
    aud=shapes.NAME,
    code_id=CODE_ID,
    proof=shapes.HASH,
    sign_key=shapes.KEY,
    seal_key=shapes.KEY,
    position=shapes.POSITION,
    license_hint=shapes.optional(shapes.LICENSE),
    capabilities=_CAPABILITIES,
    made_at=shapes.TIME,
    nonce=_NONCE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An activation code taken apart. Its repr does not show the secret."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Code({self.id})"

    def unsafe_to_text(self) -> str:
        """Write the code as it is handed to the person who activates a device."""
        return f"{self.id}.{base64.b32encode(self.secret).decode('ascii').rstrip('=').lower()}"


def read_code(text: str) -> Code:
    """Read an activation code; letter case and surrounding blanks do not matter."""
    match = _CODE.match(text.strip().lower()) if isinstance(text, str) and len(text) < 128 else None
    if match is None:
        raise InputError("malformed_code")
    try:
        secret = base64.b32decode(match[2].upper() + "======")
    except (ValueError, binascii.Error):
        raise InputError("malformed_code") from None
    code = Code(id=match[1], secret=secret)
    if code.unsafe_to_text() != match[0]:
        raise InputError("malformed_code")
    return code


def proof(secret: bytes, device: str) -> str:
    """Prove knowledge of a code's secret for one device: HMAC-SHA-256, in hex."""
    return hmac.new(secret, device.encode("ascii"), hashlib.sha256).hexdigest()


def check_proof(secret: bytes, request: ActivationRequest) -> None:
    """Return if the request proves the secret for its own device; else raise `proof_wrong`."""
    if not hmac.compare_digest(proof(secret, request.device), request.proof):
        raise TrustError("proof_wrong")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRequest:
    """What a device says of itself when it asks to be licensed; it brings its own key."""

    product: str
    code_id: str
    proof: str
    sign_key: VerifyKey
    seal_key: str
    position: Position
    license_hint: str | None
    capabilities: dict[str, Any]
    made_at: int
    nonce: str

    @property
    def device(self) -> str:
        """The device id, from the signing key."""
        return device_id(self.sign_key)

    def to_claims(self) -> dict[str, Any]:
        """Write the payload to be signed by the device."""
        claims = {
            "v": 1,
            "aud": self.product,
            "code_id": self.code_id,
            "proof": self.proof,
            "sign_key": self.sign_key.text,
            "seal_key": self.seal_key,
            "position": self.position.to_claims(),
            "license_hint": self.license_hint,
            "capabilities": self.capabilities,
            "made_at": self.made_at,
            "nonce": self.nonce,
        }
        SHAPE(claims, "activation")
        return claims


def open_activation(text: str) -> ActivationRequest:
    """Open an activation request: its own key must have the thumbprint that its header names.

    It does not check the proof: that needs the code's secret (`check_proof`).
    """
    unproven = envelopes.unverified_parts(envelopes.ACTIVATION, text)
    claims = from_bytes(unproven.payload, bytes_max=limits.ACTIVATION_BYTES_MAX)
    SHAPE(claims, "activation")
    key = VerifyKey(claims["sign_key"])

    def own_key(kid: str) -> VerifyKey:
        if kid != key.kid:
            raise TrustError("key_unknown", "the request's key is not the one that signed it")
        return key

    envelopes.open_payload(envelopes.ACTIVATION, text, own_key)
    check_seal_key(claims["seal_key"])
    return ActivationRequest(
        product=claims["aud"],
        code_id=claims["code_id"],
        proof=claims["proof"],
        sign_key=key,
        seal_key=claims["seal_key"],
        position=Position.from_claims(claims["position"]),
        license_hint=claims["license_hint"],
        capabilities=claims["capabilities"],
        made_at=claims["made_at"],
        nonce=claims["nonce"],
    )
