"""Identifiers: a prefix that tells the noun, and 128 bits of randomness that the caller passes in."""

from __future__ import annotations

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648 base32, in lower case


def make(prefix: str, random: bytes) -> str:
    """Make an id from 16 random bytes, as `lic_` and 26 characters of lower-case base32.

    It makes up no randomness itself: pass `secrets.token_bytes(16)`.
    """
    if len(random) != 16:
        raise ValueError("an id is made of 16 random bytes")
    number = int.from_bytes(random, "big") << 2  # 26 characters hold 130 bits: the last two are zero
    return f"{prefix}_{''.join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))}"
