"""Identifiers: a prefix that tells the noun, and 128 bits of randomness that the caller passes in."""

import base64


def make(prefix: str, random: bytes) -> str:
    """Make an id from 16 random bytes, as `lic_` and 26 characters of lower-case base32.

    It makes up no randomness itself: pass `secrets.token_bytes(16)`.
    """
    if len(random) != 16:
        raise ValueError("an id is made of 16 random bytes")
    return f"{prefix}_{base64.b32encode(random).decode('ascii').rstrip('=').lower()}"
