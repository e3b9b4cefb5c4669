"""Deciding about exceptions: who looks at one, how it ends, and what that changes in the sums (BILLING §3, §4).

Decisions are appended; evidence is never touched. What a resolution lets into the sums, or takes out of them,
counts from the next billing run on, and the one rule then bills or credits the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, number_to_come, read, write
from licensing_server.devices import ledger_store, token_store
from licensing_server.devices import service as devices
from licensing_server.licenses import store as license_store
from licensing_server.pages import Document
from licensing_server.server import Server
from licensing_server.usage import chains, decision_store, repeats, rollups, store, taking
from meterkit.errors import InputError, ServiceError
from meterkit.limits import INTEGER_MAX
from meterkit.receipts import totals_to_claims
from meterkit.repeats import Dismissal, Name
from meterkit.replay import Replay

QUARANTINES = ("unknown_token", "implausible_rate")
_OUTCOMES = {  # the first one stands where none is named
    "fork": ("bill_both", "dismiss_branch"),
    **dict.fromkeys((*QUARANTINES, repeats.KIND), ("keep", "release")),
}
OUTCOMES = ("closed", "bill_both", "dismiss_branch", "keep", "release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """How an exception ends: in a person's words, by its outcome, and for a dismissed branch, which."""

    how: str
    outcome: str | None = None
    branch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Effect:
    """What a resolution changes: records that come into the sums (+1) or leave them (−1), and since when."""

    records: Sequence[Any] = ()
    sign: int = 1
    since_run: int | None = None
    branch: Document | None = None

    def named(self) -> Document:
        """What a decision must say of it, so that it can be followed again."""
        return {"since_run": self.since_run, **(self.branch or {})}

    def summed(self) -> Document:
        """How much it is about; units as text, for they may be more than JSON can say."""
        units = sum(record.units + record.unsettled for record in self.records)
        return {"records": len(self.records), "units": str(units)}


def show(server: Server, exception_id: str) -> Document:
    """Show an exception: its evidence, what was decided about it, and of a fork, its branches as they are now."""
    with read(server) as connection:
        return _to_document(connection, _find(connection, exception_id))


def _find(connection: Connection, exception_id: str) -> Any:
    found = store.find_exception(connection, exception_id)
    if found is None:
        raise ServiceError("not_found", "exception")
    return found


def _to_document(connection: Connection, found: Any) -> Document:
    document = store.exception_to_document(found)
    document["decisions"] = decision_store.read(connection, found.id)
    if found.kind == "fork":
        dismissed = _dismissed_heads(connection, found.device)
        document["branches"] = [
            {
                "seq": tip.position.seq,
                "head": tip.position.head,
                "totals": totals_to_claims(tip.chain.totals),
                "through": tip.through,
                "dismissed": tip.position.head in dismissed,
            }
            for tip in ledger_store.read_tips(connection, found.device, found.epoch)
        ]
    return document


def _dismissed_heads(connection: Connection, device: str) -> set[str]:
    return {each["head"] for each in decision_store.dismissals(connection, [device], INTEGER_MAX)}


def acknowledge(
    server: Server,
    exception_id: str,
    *,
    owner: str | None = None,
    note: str | None = None,
    who: str = audit_log.COMMAND,
) -> Document:
    """Say that somebody looks at an exception, and who; asked again, it changes the owner or adds a note.

    Raises:
        ServiceError: `not_found`; `state_conflict` if it is resolved.
    """
    with write(server) as connection:
        found = _find(connection, exception_id)
        changed = {
            "state": "acknowledged",
            "owner": found.owner if owner is None else owner,
            "note": found.note if note is None else note,
        }
        if not store.update_exception(connection, exception_id, ("open", "acknowledged"), changed):
            raise ServiceError("state_conflict", "it is resolved")
        decided = {"who": who, "action": "acknowledge", "owner": owner, "note": note}
        _append(server, connection, exception_id, decided, {})
        return _to_document(connection, _find(connection, exception_id))


def reopen(server: Server, exception_id: str, *, how: str, who: str = audit_log.COMMAND) -> Document:
    """Open a resolved exception again, saying why. What its resolution changed in the sums stays changed.

    Raises:
        ServiceError: `not_found`; `state_conflict` if it is not resolved.
    """
    with write(server) as connection:
        _find(connection, exception_id)
        changed = dict.fromkeys(("resolved_at", "resolved_by", "resolution", "outcome"))
        if not store.update_exception(connection, exception_id, ("resolved",), {"state": "open", **changed}):
            raise ServiceError("state_conflict", "it is not resolved")
        _append(server, connection, exception_id, {"who": who, "action": "reopen", "note": how}, {})
        return _to_document(connection, _find(connection, exception_id))


def resolve(
    server: Server, exception_id: str, resolution: Resolution, *, who: str = audit_log.COMMAND
) -> Document:
    """Close an exception, saying how. A device held for its forks is released with the last of them.

    Of a quarantine, `release` lets its records count from the next billing run on, `keep` leaves them aside. Of a
    fork, `bill_both` leaves both branches in the sums, `dismiss_branch` takes out what only the named branch has,
    as far as it is accepted now. All else is `closed` and changes no units.

    Raises:
        ServiceError: `not_found`, also for a branch; `state_conflict` if it is resolved already, its records or
            branches allow this no more, or an amount was let off on what a branch to dismiss is billed on.
        InputError: `malformed_members` for an outcome that its kind has not.
    """
    with write(server) as connection:
        device = devices.find(connection, _find(connection, exception_id).device)
        found = _find(connection, exception_id)
        if found.state == "resolved":
            raise ServiceError("state_conflict", "it is resolved already")
        outcome = _outcome(found.kind, resolution)
        effect = _effect(connection, found, outcome, resolution.branch)
        if effect.sign < 0:
            server.check_exclusion(connection, [each for each in effect.records if _is_billed(each)])
        _lock_licenses(connection, device.license, effect.records)
        _apply(connection, outcome, effect)
        closed = {
            "state": "resolved",
            "resolution": resolution.how,
            "outcome": outcome,
            "resolved_by": who,
            "resolved_at": server.clock(),
        }
        store.update_exception(connection, exception_id, ("open", "acknowledged"), closed)
        held = device.held
        if found.kind == "fork":
            held = held and store.count_open(connection, device.id, "fork") > 0
        devices.save(connection, replace(device, held=held))
        decided = {"who": who, "action": "resolve", "outcome": outcome, "note": resolution.how, **effect.named()}
        _append(server, connection, exception_id, decided, effect.summed())
        return _to_document(connection, _find(connection, exception_id))


def _outcome(kind: str, resolution: Resolution) -> str:
    allowed = _OUTCOMES.get(kind, ("closed",))
    outcome = resolution.outcome or allowed[0]
    if outcome not in allowed:
        raise InputError("malformed_members", f"outcome: of {kind} it is {' or '.join(allowed)}")
    if (outcome == "dismiss_branch") != (resolution.branch is not None):
        raise InputError("malformed_members", "branch: the head of the branch to dismiss, and only then")
    return outcome


def _effect(connection: Connection, found: Any, outcome: str, branch: str | None) -> _Effect:
    """Judge what an outcome changes, before anything is changed."""
    if outcome in ("keep", "release"):
        records = decision_store.set_aside_records(connection, found)
        waiting = [record for record in records if record.released_run is None]
        if outcome == "keep" and len(waiting) < len(records):
            raise ServiceError("state_conflict", "its records were released; that stands")
        if outcome == "release" and waiting:
            return _Effect(records=waiting, since_run=number_to_come(connection, "billing_run"))
    if outcome == "dismiss_branch" and branch is not None:
        return _dismissal(connection, found, branch)
    return _Effect()


def _dismissal(connection: Connection, found: Any, branch: str) -> _Effect:
    tips = {
        tip.position.head: tip.position for tip in ledger_store.read_tips(connection, found.device, found.epoch)
    }
    if branch not in tips:
        raise ServiceError("not_found", "no branch of this ledger ends there")
    dismissed = _dismissed_heads(connection, found.device)
    if branch in dismissed:
        raise ServiceError("state_conflict", "this branch is dismissed already")
    if not tips.keys() - dismissed - {branch}:
        raise ServiceError("state_conflict", "it is the last branch left: what was used must be on one")
    acceptance = decision_store.newest_acceptance(connection, found.device)
    replay = chains.follow(connection, found.device)
    own = replay.own_records(tips[branch], acceptance) or frozenset()
    if _is_repeated(connection, found.device, replay, own):
        raise ServiceError("state_conflict", "another branch repeats what only counts on it: release that first")
    hashes = [each for _, each in own]
    return _Effect(
        records=decision_store.counted_records(connection, found.device, found.epoch, hashes),
        sign=-1,
        since_run=number_to_come(connection, "billing_run"),
        branch={"branch_seq": tips[branch].seq, "branch_head": branch, "acceptance": acceptance},
    )


def _is_billed(record: Any) -> bool:
    """Whether a record that is to leave the sums has units in them that are billed."""
    return bool(record.is_counted) and record.counted_units > 0


def _is_repeated(connection: Connection, device: str, replay: Replay, own: frozenset[Name]) -> bool:
    """Whether units would be in no sum any more that two branches tell of: they count on the one to dismiss."""
    repeating = decision_store.repeating_records(connection, device)
    if not repeating:
        return False
    aside = decision_store.aside_names(connection, device)
    dismissals = [
        Dismissal(
            acceptance=row["acceptance"],
            names=replay.own_records(decision_store.tip_position(row["epoch"], row), row["acceptance"])
            or frozenset(),
        )
        for row in decision_store.dismissals(connection, [device], INTEGER_MAX)
    ]
    repeated = replay.repeats(aside, dismissals)
    return any(name in repeated and repeated[name].of & own for name in repeating - own)


def _lock_licenses(connection: Connection, license_id: str | None, records: Sequence[Any]) -> None:
    """Lock the licenses whose sums change, always in one order; each must be one that the device was given."""
    named = {record.license for record in records}
    for each in sorted(named | ({license_id} if license_id else set())):
        if license_store.find(connection, each, lock=True) is None:
            raise ServiceError("state_conflict", "its records name a license that is not here")
    for record in records:
        if not token_store.was_given(connection, record.device, record.license):
            raise ServiceError("state_conflict", "the device was never given a token of the license it names")


def _apply(connection: Connection, outcome: str, effect: _Effect) -> None:
    if outcome == "release":
        decision_store.mark_released(connection, effect.records, effect.since_run or 0)
        changed = [record for record in effect.records if record.dismissed_run is None]
    elif outcome == "dismiss_branch":
        decision_store.mark_dismissed(connection, effect.records, effect.since_run or 0)
        for device in {record.device for record in effect.records}:
            rollups.renew(connection, device, [record.epoch for record in effect.records])
        changed = [record for record in effect.records if record.is_counted]
    else:
        return
    rows = [_signed_row(record, effect.sign) for record in changed]
    taking.add_units(connection, rows)
    for license_id, meter in {(row["license"], (row["model"], row["unit"])) for row in rows}:
        if license_store.accepted_units(connection, license_id, meter, 0) > INTEGER_MAX:
            raise InputError("too_large", "with these units nobody could read the license's sum")


def _signed_row(record: Any, sign: int) -> dict[str, Any]:
    names = ("license", "model", "unit", "service_at")
    row = {name: getattr(record, name) for name in names}
    if sign < 0:
        units, unsettled = record.counted_units, record.unsettled
    elif record.repeated:  # all but these counts already
        units, unsettled = record.repeated, 0
    else:
        units, unsettled = record.units, record.unsettled
    return {**row, "units": sign * units, "unsettled": sign * unsettled}


def _append(server: Server, connection: Connection, exception_id: str, decided: Document, about: Document) -> None:
    """Store a decision, and log it with what it was about: last, as the log asks."""
    decision_store.append(connection, exception_id, {"at": server.clock(), **decided})
    hidden = ("action", "who")
    said = {name: value for name, value in decided.items() if name not in hidden and value is not None}
    action = f"exception.{decided['action']}"
    body = {**said, **about}
    audit_log.append(server, connection, who=decided["who"], action=action, subject=exception_id, body=body)
