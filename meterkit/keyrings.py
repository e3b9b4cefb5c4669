"""Which keyring may follow the one already held (FORMATS, "Keyring")."""

from __future__ import annotations

from meterkit.envelopes import open_keyring
from meterkit.errors import TrustError
from meterkit.keys import Keyring, Trust


def follow(document: list[str], *, trust: Trust, held: Keyring | None) -> Keyring:
    """Open a keyring document and judge whether it may replace the one held.

    Any higher version signed by the threshold of the trusted roots is taken. Where it names other roots
    than the ones held, it must be the very next version, signed by the threshold of both.

    Raises:
        TrustError: `version_rollback` for an older one, `version_conflict` for the same version with other
            content, `threshold_unmet`, `issuer_wrong`; and what `open_keyring` raises.
    """
    roots, threshold = (held.roots, held.threshold) if held else (trust.roots, trust.threshold)
    offered, _ = open_keyring(document, issuer=trust.issuer, roots=roots, threshold=threshold)
    if held is None:
        if (set(offered.roots), offered.threshold) != (set(roots), threshold):
            raise TrustError("threshold_unmet", "it names other roots than the trusted ones")
        return offered
    if offered.version < held.version:
        raise TrustError("version_rollback", f"version {offered.version} after {held.version}")
    if offered.version == held.version:
        if offered != held:
            raise TrustError("version_conflict", f"version {held.version}")
        return held
    if (set(offered.roots), offered.threshold) != (set(held.roots), held.threshold):
        if offered.version != held.version + 1:
            raise TrustError("version_rollback", "a version in which the roots change cannot be skipped")
        open_keyring(document, issuer=trust.issuer, roots=offered.roots, threshold=offered.threshold)
    return offered
