"""Secrets that the server must be able to read again, sealed at rest with a key that is not in the database."""

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meterkit.canonical import from_base64url, to_base64url
from meterkit.errors import InputError, ServiceError

_NONCE_BYTES = 12


class Sealer:
    """AES-256-GCM under one key. What is sealed for one name opens under no other. Its repr shows nothing."""

    __slots__ = ("_cipher", "_random")

    def __init__(self, key: bytes, random: Callable[[int], bytes]) -> None:
        if len(key) != 32:
            raise InputError("malformed_key", "a sealing key is 32 bytes")
        self._cipher = AESGCM(key)
        self._random = random

    def seal(self, name: str, secret: bytes) -> str:
        """Seal a secret for the row that `name` names."""
        nonce = self._random(_NONCE_BYTES)
        return to_base64url(nonce + self._cipher.encrypt(nonce, secret, name.encode()))

    def unseal(self, name: str, sealed: str) -> bytes:
        """Open what `seal` gave for this name.

        Raises:
            ServiceError: `internal_error` if it was sealed with another key, for another row, or is damaged.
        """
        try:
            data = from_base64url(sealed)
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], name.encode())
        except (InvalidTag, InputError, ValueError):
            raise ServiceError("internal_error", "a sealed secret does not open") from None

    def __repr__(self) -> str:
        return "Sealer()"
