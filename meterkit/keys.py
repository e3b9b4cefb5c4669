"""Signing keys, verify keys, and the keyring that says which key may sign what, and when.

Ed25519 signs; X25519 receives model keys. Keys cross between the parts as raw 32 bytes in base64url, and a
key's id (`kid`) is its RFC 7638 thumbprint. A secret key as text starts with `mk-secret-ed25519.`, so that
it can never be taken for a public one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from meterkit import limits, shapes
from meterkit.canonical import digest, from_base64url, sha256_hex, to_base64url, to_bytes
from meterkit.errors import InputError, TrustError
from meterkit.tuples import NamedTuple

PURPOSES = ("token", "receipt", "revocations", "invoice", "package")
SECRET_PREFIX = "mk-secret-ed25519."  # noqa: S105 - it marks secrets, it is none

_P = 2**255 - 19
_ORDER_8_Y = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})
_SMALL_ORDER_U = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)

KEYRING_KEY = shapes.Members(
    kid=shapes.KID,
    key=shapes.KEY,
    purposes=shapes.listed(shapes.one_of(*PURPOSES), len(PURPOSES), least=1, unique=True),
    not_before=shapes.TIME,
    not_after=shapes.TIME,
    distrusted_after=shapes.optional(shapes.TIME),
)
KEYRING = shapes.Members(
    v=shapes.VERSION_1,
    iss=shapes.text(),
    iat=shapes.TIME,
    version=shapes.integer(1),
    expires=shapes.TIME,
    roots=shapes.Members(
        threshold=shapes.integer(1, limits.ROOTS_MAX),
        keys=shapes.listed(shapes.KEY, limits.ROOTS_MAX, least=1, unique=True),
    ),
    keys=shapes.listed(KEYRING_KEY, limits.KEYRING_KEYS_MAX),
)


def _thumbprint(curve: str, raw: bytes) -> str:
    jwk = {"crv": curve, "kty": "OKP", "x": to_base64url(raw)}
    return to_base64url(bytes.fromhex(sha256_hex(to_bytes(jwk))))


def check_seal_key(text: str) -> bytes:
    """Read a device's X25519 public key, 32 raw bytes; a key of small order is refused."""
    raw = _raw(text)
    if (int.from_bytes(raw, "little") & (2**255 - 1)) % _P in _SMALL_ORDER_U:
        raise InputError("malformed_key", "small order")
    return raw


def _raw(text: str) -> bytes:
    if not isinstance(text, str) or text.startswith("mk-secret-") or "PRIVATE" in text[:64]:
        raise InputError("malformed_key", "a secret key stands where a public one belongs")
    if len(text) != limits.KID_CHARS:
        raise InputError("malformed_key", "not 32 bytes in base64url")
    try:
        return from_base64url(text)
    except InputError:
        raise InputError("malformed_key", "not 32 bytes in base64url") from None


class VerifyKey:
    """An Ed25519 public key. Keys of small order, and points written in a second way, are refused."""

    __slots__ = ("_key", "_raw", "kid", "text")

    def __init__(self, text: str) -> None:
        raw = _raw(text)
        y = int.from_bytes(raw, "little") & (2**255 - 1)
        if y >= _P or y in _SMALL_ORDER_Y:
            raise InputError("malformed_key", "small order or not canonical")
        self._raw = raw
        self._key: Ed25519PublicKey | None = None  # made when it first verifies: many of a keyring never do
        self.text = text
        self.kid = _thumbprint("Ed25519", raw)

    def check(self, signature: bytes, message: bytes) -> None:
        """Return if the signature is this key's over the message; else raise `signature_bad`."""
        key = self._key
        if key is None:
            key = self._key = Ed25519PublicKey.from_public_bytes(self._raw)
        try:
            key.verify(signature, message)
        except InvalidSignature:
            raise TrustError("signature_bad") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"VerifyKey({self.kid})"


class SigningKey:
    """An Ed25519 secret key, and the public one that checks what it has signed.

    Its repr shows the key id and nothing else.
    """

    __slots__ = ("_key", "verify_key")

    def __init__(self, seed: bytes, *, checked_by: type[VerifyKey] = VerifyKey) -> None:
        if len(seed) != 32:
            raise InputError("malformed_key", "a secret key is 32 bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verify_key = checked_by(to_base64url(self._key.public_key().public_bytes_raw()))

    @classmethod
    def from_text(cls, text: str, *, checked_by: type[VerifyKey] = VerifyKey) -> Self:
        """Read a secret key from its text form, `mk-secret-ed25519.` and 32 bytes in base64url."""
        body = text.strip()
        if not body.startswith(SECRET_PREFIX):
            raise InputError("malformed_key", "not a Meterkit secret key")
        try:
            return cls(from_base64url(body.removeprefix(SECRET_PREFIX)), checked_by=checked_by)
        except InputError:
            raise InputError("malformed_key", "damaged secret key") from None

    def unsafe_to_text(self) -> str:
        """Write the secret key as text, to be stored owner-only and never shown."""
        return SECRET_PREFIX + to_base64url(self._key.private_bytes_raw())

    @property
    def kid(self) -> str:
        """The RFC 7638 thumbprint of the public key."""
        return self.verify_key.kid

    @property
    def native(self) -> Ed25519PrivateKey:
        """The key object of `cryptography`, which `meterkit.signing` hands to its JWS library."""
        return self._key

    def __repr__(self) -> str:
        return f"SigningKey({self.kid})"


def device_id(sign_key: VerifyKey) -> str:
    """Name the device whose Ed25519 key this is."""
    return f"dev_{sign_key.kid}"


class _TrustFields(NamedTuple):
    issuer: str
    roots: tuple[str, ...]
    threshold: int = 1


class Trust(_TrustFields):
    """Whom the vendor's own code trusts: given at open, never read from a setting.

    `roots` are root public keys (base64url); `threshold` of *different* ones must sign a keyring.
    """

    __slots__ = ()

    def __new__(cls, *, issuer: str, roots: Iterable[str], threshold: int = 1) -> Self:
        """Return the three as they are, if roots can be trusted so; else raise `malformed_key`."""
        given = tuple(roots)
        shapes.text()(issuer, "trust.issuer")
        if not 1 <= threshold <= len(set(given)) <= limits.ROOTS_MAX:
            raise InputError("malformed_key", "the threshold does not fit the roots")
        for root in given:
            VerifyKey(root)
        return super().__new__(cls, issuer=issuer, roots=given, threshold=threshold)

    def fingerprint(self) -> str:
        """Name this set of roots in one line, for people to compare."""
        return roots_fingerprint(self.roots, self.threshold)


def roots_fingerprint(roots: tuple[str, ...] | list[str], threshold: int) -> str:
    """Name a set of roots and its threshold by one hash, for people to compare."""
    return digest("mk-roots", to_bytes([threshold, *sorted(set(roots))])).hex()


class KeyringKey(NamedTuple):
    """One online key: what it may sign, and for which instants of signing it is good."""

    key: VerifyKey
    purposes: frozenset[str]
    not_before: int
    not_after: int
    distrusted_after: int | None

    def good_at(self, iat: int) -> bool:
        """Tell whether the key was good when it signed; judged by `iat`, never by now (DESIGN §3)."""
        last = self.not_after if self.distrusted_after is None else min(self.not_after, self.distrusted_after)
        return self.not_before <= iat <= last


class Keyring(NamedTuple):
    """The online keys of one vendor, as one version of a document that the roots have signed."""

    issuer: str
    iat: int
    version: int
    expires: int
    roots: tuple[str, ...]
    threshold: int
    keys: dict[str, KeyringKey]

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Read the payload of a keyring; two keys with one kid, or one key twice, are refused."""
        KEYRING(claims, "keyring")
        keys: dict[str, KeyringKey] = {}
        for entry in claims["keys"]:
            key = VerifyKey(entry["key"])
            if key.kid != entry["kid"] or key.kid in keys:
                raise InputError("malformed_key", "a kid is wrong or stands twice")
            keys[key.kid] = KeyringKey(
                key=key,
                purposes=frozenset(entry["purposes"]),
                not_before=entry["not_before"],
                not_after=entry["not_after"],
                distrusted_after=entry["distrusted_after"],
            )
        roots = claims["roots"]
        if roots["threshold"] > len({VerifyKey(root) for root in roots["keys"]}):
            raise InputError("malformed_key", "the threshold does not fit the roots")
        return cls(
            issuer=claims["iss"],
            iat=claims["iat"],
            version=claims["version"],
            expires=claims["expires"],
            roots=tuple(roots["keys"]),
            threshold=roots["threshold"],
            keys=keys,
        )

    def find(self, kid: str, purpose: str) -> VerifyKey:
        """Give the key with this id if it may sign for this purpose; else raise `key_unknown`."""
        entry = self.keys.get(kid)
        if entry is None or purpose not in entry.purposes:
            raise TrustError("key_unknown", purpose)
        return entry.key

    def check_good(self, kid: str, iat: int) -> None:
        """Return if the key was good at `iat`; else raise `key_not_valid`."""
        entry = self.keys.get(kid)
        if entry is None or not entry.good_at(iat):
            raise TrustError("key_not_valid")
