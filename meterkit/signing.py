"""Making one signed envelope, by purpose. The only home of the JWS library.

It signs what it is given: that the claims are right is their own kind's business.
"""

from __future__ import annotations

import functools
from typing import Any

from meterkit.canonical import from_base64url, to_bytes
from meterkit.envelopes import Kind
from meterkit.errors import InputError
from meterkit.keys import SigningKey


def load() -> None:
    """Import the JWS library now, rather than in the midst of a first signing."""
    _library()


@functools.cache
def _library() -> Any:
    import jwt  # noqa: PLC0415 - it costs half a device's start-up, and is needed only to sign

    return jwt.PyJWS()


def sign(kind: Kind, claims: dict[str, Any], key: SigningKey) -> str:
    """Sign claims as canonical JSON; the text is a compact JWS with the kind's `typ` and the key's id."""
    return sign_payload(kind, to_bytes(claims), key)


def sign_payload(kind: Kind, payload: bytes, key: SigningKey) -> str:
    """Sign payload bytes as they are, and check the result before it is let out.

    Raises:
        InputError: `too_large` if no reader of this kind would take it.
    """
    headers = {"kid": key.kid, "typ": kind.typ}
    text: str = _library().encode(payload, key.native, algorithm="EdDSA", headers=headers)
    if len(text) > kind.bytes_max:
        raise InputError("too_large", f"{kind.name}: at most {kind.bytes_max} bytes")
    signed, _, signature = text.rpartition(".")
    key.verify_key.check(from_base64url(signature), signed.encode("ascii"))
    return text
