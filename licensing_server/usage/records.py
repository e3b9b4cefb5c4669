"""What an accepted batch's records become: rows to be queried, each attributed to a license and an instant.

Pure: it judges what is quarantined (kept and receipted, not billed until resolved), and which of the records
a person should look at.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from licensing_server.usage.branches import Taken
from meterkit import limits
from meterkit.ledger import Entry, TokenRef, Total
from meterkit.licenses import Meter
from meterkit.tuples import NamedTuple

_NOTHING = Total()
PLAUSIBLE_UNITS_MAX = limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S  # of one record
# The flags that open an exception; one open exception of these kinds per ledger says enough.
_FLAGGED = {"over_limit": "over_limit", "clock": "clock", "expired": "out_of_window"}
ONCE_OPEN = ("over_limit", "clock", "out_of_window", "revoked", "server_rollback", "unsettled")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """What this server knows of a token that it issued to the device.

    Two are the same that a ledger's `token` record cannot tell apart. `reach` is how far the totals of the
    ledger may go under it, where that is bounded and known.
    """

    license: str
    serial: int
    iat: int
    valid_from: int = field(default=0, compare=False)
    valid_until: int = field(default=limits.INTEGER_MAX, compare=False)  # its grace included
    revoked_at: int | None = field(default=None, compare=False)
    reach: Mapping[Meter, int] = field(default_factory=dict, compare=False)


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


class Used(NamedTuple):
    """What some records of one ledger come to: units, and the first and the last of them."""

    units: int
    unsettled: int
    seq_first: int
    seq_last: int

    def plus(self, other: "Used") -> "Used":
        """What both come to."""
        first, last = min(self.seq_first, other.seq_first), max(self.seq_last, other.seq_last)
        return Used(self.units + other.units, self.unsettled + other.unsettled, first, last)


UsedKey = tuple[str, str, str, int]  # license, model, unit, and the instant of service
Uses = dict[UsedKey, Used]


def plain_uses(rows: Iterable[Mapping[str, Any]]) -> Uses:
    """Add up those rows of one batch that count whole: of which nothing is set aside, and nothing repeated."""
    found: Uses = {}
    for row in rows:
        if not (row["quarantined"] or row["repeated"]):
            key = row["license"], row["model"], row["unit"], row["service_at"]
            used = Used(row["units"], row["unsettled"], row["seq"], row["seq"])
            found[key] = found[key].plus(used) if key in found else used
    return found


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
    token, totals = taken.before.token, dict(taken.before.totals)
    ours = token is not None and is_ours(token, known)
    suspects: dict[str, list[int]] = {}
    for entry in taken.entries:
        claims = entry.claims
        kind = claims["kind"]
        if kind == "token":
            token = _named(entry)
            ours = is_ours(token, known)
            made.serial = token.serial if ours else made.serial
        elif kind == "clock" and claims["reason"] == "back":
            suspects.setdefault("clock", []).append(entry.seq)
        elif kind == "usage" and token is not None:
            why = _quarantine(claims, known) if ours else "unknown_token"
            made.rows.append(_row(taken, entry, token, received_at=received_at, why=why))
            meter = claims["model"], claims["unit"]
            totals[meter] = totals.get(meter, _NOTHING).plus(claims["units"], claims["unsettled"])
            if why is not None:
                suspects.setdefault(why, []).append(entry.seq)
            for name in suspicions(claims, known.get(claims["token"]), totals[meter]):
                suspects.setdefault(name, []).append(entry.seq)
    for kind, seqs in suspects.items():
        evidence = {
            "first": seqs[0],
            "last": seqs[-1],
            "records": len(set(seqs)),
            "head": taken.batch.head,
        }
        made.findings.append(Finding(kind=kind, license=taken.batch.license_id, evidence=evidence))
    made.findings += _beyond_leases(taken)
    return made


def _beyond_leases(taken: Taken) -> Iterator[Finding]:
    """What a batch claims unsettled beyond one lease: a cell is one process's, in one boot, and loses one at most.

    A lease for one call of many items may be larger by right: a person can tell.
    """
    lost: dict[str, int] = {}
    seqs: dict[str, list[int]] = {}
    for entry in taken.entries:
        if entry.claims["kind"] == "usage" and entry.claims["unsettled"]:
            cell = entry.claims["cell"]
            lost[cell] = lost.get(cell, 0) + entry.claims["unsettled"]
            seqs.setdefault(cell, []).append(entry.seq)
    beyond = [cell for cell, units in lost.items() if units > limits.LEASE_UNITS_MAX]
    if beyond:
        told = sorted(seq for cell in beyond for seq in seqs[cell])
        evidence = {
            "first": told[0],
            "last": told[-1],
            "records": len(told),
            "head": taken.batch.head,
            "unsettled": str(sum(lost[cell] for cell in beyond)),  # it may be more than JSON can say
            "lease_units_max": limits.LEASE_UNITS_MAX,
        }
        yield Finding(kind="unsettled", license=taken.batch.license_id, evidence=evidence)


def _named(entry: Entry) -> TokenRef:
    claims = entry.claims
    return TokenRef(jti=claims["jti"], serial=claims["serial"], iat=claims["iat"], license_id=claims["license"])


def is_ours(token: TokenRef, known: Mapping[str, IssuedToken]) -> bool:
    """Whether a `token` record names a token that was issued to this device, and tells the truth about it."""
    issued = known.get(token.jti)
    told = IssuedToken(license=token.license_id, serial=token.serial, iat=token.iat)
    return issued == told


def _quarantine(claims: Mapping[str, Any], known: Mapping[str, IssuedToken]) -> str | None:
    """Why a record is set aside, or None: an unknown token, or more units than its window has time for.

    The token in force is one of ours. A call admitted before its license changed may be folded after: it names its
    own token, of the license before.
    """
    if claims["token"] not in known:
        return "unknown_token"
    if claims["units"] + claims["unsettled"] > PLAUSIBLE_UNITS_MAX:
        return "implausible_rate"
    return None


def suspicions(claims: Mapping[str, Any], token: IssuedToken | None, total: Total) -> list[str]:
    """What a person should look at in one record: what the device says itself, and what it does not say.

    It is accepted and billed all the same: what happened and what was allowed are two questions (DESIGN §4).
    """
    found = [_FLAGGED[flag] for flag in claims["flags"] if flag in _FLAGGED]
    if token is None:
        return found
    start_s = claims["window"] * limits.WINDOW_S
    if not token.valid_from < start_s + limits.WINDOW_S or start_s >= token.valid_until:
        found.append("out_of_window")
    reach = token.reach.get((claims["model"], claims["unit"]), limits.INTEGER_MAX)
    if total.units + total.unsettled > reach:
        found.append("over_limit")
    if token.revoked_at is not None and start_s >= token.revoked_at:
        found.append("revoked")
    return found


def service_at(window: int, token: TokenRef, received_at: int) -> int:
    """The instant of service of a record: its window's start, held between its token and its arrival."""
    return min(max(window * limits.WINDOW_S, token.iat), received_at)


def _row(taken: Taken, entry: Entry, token: TokenRef, *, received_at: int, why: str | None) -> dict[str, Any]:
    claims = entry.claims
    at = service_at(claims["window"], token, received_at)
    return {
        "device": taken.after.device,
        "epoch": taken.batch.epoch,
        "seq": entry.seq,
        "hash": entry.hash,
        "prev": entry.prev,
        "license": token.license_id,
        "token": claims["token"],
        "model": claims["model"],
        "unit": claims["unit"],
        "digest": claims["digest"],
        "units": claims["units"],
        "unsettled": claims["unsettled"],
        "window": claims["window"],
        "provisional": claims["provisional"],
        "service_at": at,
        "shifted": at != claims["window"] * limits.WINDOW_S,
        "flags": claims["flags"],
        "recorded_at": claims["time"],
        "quarantined": why is not None,
        "quarantined_for": why,
        "repeated": 0,
    }


def reset(taken: Taken) -> Finding:
    """A new life of a ledger: what its genesis says of the old one."""
    genesis = taken.entries[0].claims
    evidence = {"previous": genesis["previous"], "lost": genesis["lost"], "genesis": taken.entries[0].hash}
    return Finding(kind="reset", license=taken.batch.license_id, evidence=evidence)


def fork(taken: Taken, acceptance: int, license_id: str | None) -> Finding:
    """The proof of a fork: two heads that one device signed, and where their branches part."""
    evidence = {
        "fork_at": taken.fork_at.to_claims() if taken.fork_at else None,
        "heads": [position.to_claims() for position in (*taken.fork_of, taken.after.position)],
        "acceptance": acceptance,
    }
    return Finding(kind="fork", license=taken.batch.license_id or license_id, evidence=evidence)
