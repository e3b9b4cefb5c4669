"""A vendor that changes a JSON part of a real server's evidence, and signs everything anew with its own keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evidence_world import payload

from meterkit import audit, envelopes, evidence
from meterkit.canonical import from_bytes, to_bytes
from meterkit.evidence import Bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from licensing_server.server import Server


def read_part(bundle: Bundle, name: str) -> Any:
    return from_bytes(bundle.parts[name], bytes_max=10**7)


def tampered(server: Server, bundle: Bundle, name: str, change: Callable[[Any], object]) -> audit.AuditResult:
    """Audit the evidence with one part changed in place."""
    stated = read_part(bundle, name)
    change(stated)
    parts = {**bundle.parts, name: to_bytes(stated)}
    invoice = from_bytes(parts[evidence.INVOICE], bytes_max=10**7)
    parts[evidence.INVOICE] = to_bytes({**invoice, "evidence": evidence.digest_of(parts)})
    claims = from_bytes(payload(bundle.manifest.encode()), bytes_max=10**7)
    named = {"issuer": claims["iss"], "iat": claims["iat"], "invoice": claims["invoice"]}
    manifest = server.sign(envelopes.EVIDENCE, evidence.manifest_claims(**named, parts=parts))
    return audit.recompute(Bundle(manifest=manifest, parts=parts))
