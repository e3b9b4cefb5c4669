"""Making one signed envelope, by purpose. The only home of the JWS library.

It signs what it is given: that the claims are right is their own kind's business.
"""

from __future__ import annotations

from typing import Any

from meterkit.canonical import to_bytes
from meterkit.envelopes import Kind, open_payload
from meterkit.errors import InputError
from meterkit.keys import SigningKey


def load() -> None:
    """Import the JWS library now, rather than in the midst of a first signing."""
    import jwt  # noqa: F401, PLC0415 - it costs half a device's start-up, and is needed only to sign


def sign(kind: Kind, claims: dict[str, Any], key: SigningKey) -> str:
    """Sign claims as canonical JSON; the text is a compact JWS with the kind's `typ` and the key's id."""
    return sign_payload(kind, to_bytes(claims), key)


def sign_payload(kind: Kind, payload: bytes, key: SigningKey) -> str:
    """Sign payload bytes as they are, and check the result before it is let out.

    Raises:
        InputError: `too_large` if no reader of this kind would take it.
    """
    import jwt  # noqa: PLC0415 - see above

    headers = {"kid": key.kid, "typ": kind.typ}
    text = jwt.PyJWS().encode(payload, key.native, algorithm="EdDSA", headers=headers)
    if len(text) > kind.bytes_max:
        raise InputError("too_large", f"{kind.name}: at most {kind.bytes_max} bytes")
    open_payload(kind, text, lambda _: key.verify_key)
    return text
