"""The signed list of what no longer holds: tokens, licenses, devices, packages (FORMATS, "Revocations")."""

from __future__ import annotations

from typing import Any, Self

from meterkit import envelopes, limits, shapes
from meterkit.envelopes import Addressee
from meterkit.errors import TrustError
from meterkit.keys import Keyring
from meterkit.tuples import NamedTuple

_MAX = limits.REVOCATIONS_ENTRIES_MAX
SHAPE = shapes.Members(
    v=shapes.VERSION_1,
    iss=shapes.text(),
    iat=shapes.TIME,
    version=shapes.integer(1),
    tokens=shapes.listed(shapes.TOKEN, _MAX, unique=True),
    licenses=shapes.listed(shapes.LICENSE, _MAX, unique=True),
    devices=shapes.listed(shapes.DEVICE, _MAX, unique=True),
    packages=shapes.listed(shapes.Members(name=shapes.NAME, versions=shapes.text(128)), _MAX),
)


class Revocations(NamedTuple):
    """One version of the list. Version 0 is the empty list before any was heard of."""

    issuer: str = ""
    iat: int = 0
    version: int = 0
    tokens: frozenset[str] = frozenset()
    licenses: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Read a payload that `SHAPE` has judged."""
        return cls(
            issuer=claims["iss"],
            iat=claims["iat"],
            version=claims["version"],
            tokens=frozenset(claims["tokens"]),
            licenses=frozenset(claims["licenses"]),
            devices=frozenset(claims["devices"]),
        )

    def to_claims(self) -> dict[str, Any]:
        """Write the payload to be signed."""
        return {
            "v": 1,
            "iss": self.issuer,
            "iat": self.iat,
            "version": self.version,
            "tokens": sorted(self.tokens),
            "licenses": sorted(self.licenses),
            "devices": sorted(self.devices),
            "packages": [],
        }

    def check(self, *, jti: str, license_id: str, device: str) -> None:
        """Return if none of the three is revoked; else raise `token_revoked`."""
        if jti in self.tokens or license_id in self.licenses or device in self.devices:
            raise TrustError("token_revoked")


def open_revocations(text: str, *, issuer: str, keyring: Keyring, held: Revocations) -> Revocations:
    """Open a revocation list that may follow the one held.

    Raises:
        TrustError: `version_rollback` for a lower version, `version_conflict` for the same one with other
            content; and what `envelopes.open_claims` raises.
    """
    _, claims = envelopes.open_claims(
        envelopes.REVOCATIONS, text, keyring=keyring, addressee=Addressee(issuer=issuer), shape=SHAPE
    )
    offered = Revocations.from_claims(claims)
    if offered.version < held.version:
        raise TrustError("version_rollback", f"version {offered.version} after {held.version}")
    if offered.version == held.version and offered != held:
        raise TrustError("version_conflict", f"version {held.version}")
    return offered
