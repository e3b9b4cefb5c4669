"""What an accepted batch's records become: rows to be queried, each attributed to a license and an instant.

Pure: it judges what is quarantined (kept and receipted, not billed until resolved), and which of the records
a person should look at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from licensing_server.usage.branches import Taken
from meterkit import limits
from meterkit.ledger import Entry, TokenRef
from meterkit.usage import UsageRecord

# The flags and records that open an exception, once per ledger while one is open.
_FLAGGED = {"over_limit": "over_limit", "clock": "clock"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """What this server knows of a token that it issued to the device."""

    license: str
    serial: int
    iat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something a person should look at: its kind, the license it is about, and the evidence."""

    kind: str
    license: str | None
    evidence: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Attributed:
    """The rows of one batch's own usage records, and what was found in them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    serial: int | None = None  # the highest serial that its `token` records name, of tokens issued here


def token_ids(taken: Taken) -> set[str]:
    """The tokens that a batch's records name, and the one in force before them."""
    named = {taken.before.token.jti} if taken.before.token else set()
    for entry in taken.entries:
        if entry.claims["kind"] == "token":
            named.add(entry.claims["jti"])
        elif entry.claims["kind"] == "usage":
            named.add(entry.claims["token"])
    return named


def attribute(taken: Taken, known: Mapping[str, IssuedToken], *, received_at: int) -> Attributed:
    """Attribute a batch's own usage records: to the license in force, and to the instant of service.

    A record starts with its window, held between the `iat` of the last `token` record before it and the
    batch's `received_at` (BILLING §2).
    """
    made = Attributed()
    token = taken.before.token
    suspects: dict[str, list[int]] = {}
    for entry in taken.entries:
        kind = entry.claims["kind"]
        if kind == "token":
            token = _named(entry)
            made.serial = token.serial if _is_ours(token, known) else made.serial
        elif kind == "clock" and entry.claims["reason"] == "back":
            suspects.setdefault("clock", []).append(entry.seq)
        elif kind == "usage" and token is not None:
            record = UsageRecord.from_claims(entry.claims)
            why = _quarantine(record, token, known)
            made.rows.append(_row(taken, entry, record, token, received_at=received_at, quarantined=bool(why)))
            for name in (why, *(_FLAGGED.get(flag) for flag in record.flags)):
                if name:
                    suspects.setdefault(name, []).append(entry.seq)
    for kind, seqs in suspects.items():
        evidence = {
            "first": seqs[0],
            "last": seqs[-1],
            "records": len(set(seqs)),
            "head": taken.after.position.head,
        }
        made.findings.append(Finding(kind=kind, license=taken.batch.license_id, evidence=evidence))
    return made


def _named(entry: Entry) -> TokenRef:
    claims = entry.claims
    return TokenRef(jti=claims["jti"], serial=claims["serial"], iat=claims["iat"], license_id=claims["license"])


def _is_ours(token: TokenRef, known: Mapping[str, IssuedToken]) -> bool:
    """Whether a `token` record names a token that was issued to this device, and tells the truth about it."""
    issued = known.get(token.jti)
    told = IssuedToken(license=token.license_id, serial=token.serial, iat=token.iat)
    return issued == told


def _quarantine(record: UsageRecord, token: TokenRef, known: Mapping[str, IssuedToken]) -> str | None:
    """Why a record is set aside, or None: an unknown token, or more units than its window has time for."""
    # A call admitted before its license changed may be folded after: it names its own token, of the one before.
    if not _is_ours(token, known) or record.token not in known:
        return "unknown_token"
    if record.units + record.unsettled > limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S:
        return "implausible_rate"
    return None


def _row(
    taken: Taken, entry: Entry, record: UsageRecord, token: TokenRef, *, received_at: int, quarantined: bool
) -> dict[str, Any]:
    service_at = min(max(record.start_s, token.iat), received_at)
    return {
        "device": taken.after.device,
        "epoch": taken.batch.epoch,
        "seq": entry.seq,
        "hash": entry.hash,
        "prev": entry.prev,
        "license": token.license_id,
        "token": record.token,
        "model": record.model,
        "unit": record.unit,
        "digest": record.digest,
        "units": record.units,
        "unsettled": record.unsettled,
        "window": record.window,
        "provisional": record.provisional,
        "service_at": service_at,
        "shifted": service_at != record.start_s,
        "flags": list(record.flags),
        "recorded_at": record.time,
        "quarantined": quarantined,
    }
