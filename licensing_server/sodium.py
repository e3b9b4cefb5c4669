"""Ed25519 as libsodium checks it, in half of the time that `cryptography` takes.

`cryptography` signs: what the server signs is so checked by another library than the one that made it. Whatever
libsodium takes, `cryptography` takes too, and so do devices and auditors (tests say so of all that is odd). Only
libsodium refuses a signature whose point R is of small order; who signs as RFC 8032 says makes none.
"""

from nacl.bindings import crypto_sign_BYTES, crypto_sign_open
from nacl.exceptions import BadSignatureError

from meterkit.errors import TrustError
from meterkit.keys import VerifyKey


class SodiumVerifyKey(VerifyKey):
    """A public key, as its parent is one."""

    __slots__ = ()

    def check(self, signature: bytes, message: bytes) -> None:
        """Return if the signature is this key's over the message; else raise `signature_bad`."""
        if len(signature) != crypto_sign_BYTES:  # one that is too short would take the rest from the message
            raise TrustError("signature_bad")
        try:
            crypto_sign_open(b"".join((signature, message)), self._raw)
        except BadSignatureError:
            raise TrustError("signature_bad") from None
