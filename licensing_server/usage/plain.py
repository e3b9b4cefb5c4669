"""Plain requests: batches that continue their branch, of a device in good standing, with nothing to be looked at.

That is nearly every request. What is plain is taken in groups, each step of which is one statement for all of
them; `judging` judges the others one by one. Where both could judge, they come to the same: every projection can
be rebuilt from the batches, however these were taken.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from licensing_server.devices.group_store import KnownToken
from licensing_server.devices.ledger_store import Head
from licensing_server.devices.store import Device
from licensing_server.licenses.store import License
from licensing_server.usage import records, store, usual
from licensing_server.usage.branches import Taken
from licensing_server.usage.known import Known, receipt_position
from licensing_server.usage.opening import Opened, OpenedBatch
from licensing_server.usage.records import Finding, IssuedToken, Uses
from meterkit import ledger, limits
from meterkit.errors import MeterkitError
from meterkit.exchange import check_batch_for
from meterkit.ledger import Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What one batch adds: the chain after it, the rows of its records but for their number, what these come to,
    and the highest serial that its `token` records name.

    `acceptance` is a stand-in below zero until the batch is stored; so may `parent` be.
    """

    acceptance: int
    parent: int | None
    opened: OpenedBatch
    after: Chain
    rows: list[tuple[Any, ...]]
    uses: Uses
    serial: int | None
    findings: list[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A plain request: whose it is, the end of the branch that it continues, and what each of its batches adds."""

    device: Device
    license: License
    opened: Opened
    start: Head
    added: tuple[Added, ...]

    @property
    def epoch(self) -> str:
        """Which life of the device's ledger it is about."""
        return self.opened.last.epoch


def judge(known: Known, opened: Opened, now: int) -> Plain | None:
    """Judge a request against what is known of its device; None where it is not plain."""
    device = known.devices.get(opened.device)
    license_ = known.licenses.get(device.license or "") if device is not None else None
    if device is None or license_ is None or not _in_good_standing(known, device, license_, opened, now):
        return None
    start = _start(known, opened)
    if start is None:
        return None
    tokens = _issued_tokens(known, opened.device, opened.last.epoch)
    try:
        added = tuple(_follow(opened, start, device.product, tokens, now))
    except MeterkitError:
        return None
    if not all(_needs_no_look(known, opened.device, each) for each in added):
        return None
    return Plain(device=device, license=license_, opened=opened, start=start, added=added)


def _in_good_standing(known: Known, device: Device, license_: License, opened: Opened, now: int) -> bool:
    """Whether a token is due without any question: its place is its own, and nothing is decided about it."""
    tokens = known.tokens[device.id].values()
    subjects = (device.id, *known.tokens[device.id], *(token.license for token in tokens))
    return (
        device.state == "active"
        and not device.held
        and license_.state_at(now) == "active"
        and device.id not in known.written_off
        and not any(each in known.revoked for each in subjects)
        and all(token.anchor_accepted for token in tokens if token.epoch == opened.last.epoch)
        and any(_holds_place(token, license_, now) for token in tokens)
        and opened.last.has.revocations <= known.newest_revocations[0]
    )


def _holds_place(token: KnownToken, license_: License, now: int) -> bool:
    return token.license == license_.id and not token.superseded and token.exp + token.grace_s > now


def _start(known: Known, opened: Opened) -> Head | None:
    """The end of the one branch that the request continues; the beginning, for a device's first ledger."""
    first, tips = opened.batches[0].batch, known.tips[opened.device]
    position = receipt_position(opened)
    if any(each.batch.has.receipt != first.has.receipt for each in opened.batches):
        return None
    if first.has.receipt is not None and (opened.device, position) not in known.checkpoints:
        return None
    if not tips and first.seq_from == 1 and opened.batches[0].entries[0].claims.get("previous") is None:
        return Head(chain=Chain(device=opened.device, position=first.start), acceptance=0, is_tip=False)
    ends = [tip for tip in tips if tip.position.epoch == first.epoch]
    return ends[0] if len(ends) == 1 and ends[0].position == first.start else None


def _follow(
    opened: Opened, start: Head, product: str, tokens: Mapping[str, IssuedToken], now: int
) -> Iterator[Added]:
    """Let the batches stand where they would; raises as `branches.judge` does."""
    chain, parent = start.chain, start.acceptance
    for number, each in enumerate(opened.batches, 1):
        added = _add(each, chain, product, tokens, now)
        yield replace(added, acceptance=-number, parent=parent or None)
        chain, parent = added.after, -number


def _add(each: OpenedBatch, chain: Chain, product: str, tokens: Mapping[str, IssuedToken], now: int) -> Added:
    """Let one batch stand: its run as a whole if it is a usual one, all other records one by one."""
    judged, entries = None, each.entries
    if each.run is not None:
        judged = usual.judge(ledger.follow_all(chain, entries), each.run, tokens, received_at=now)
        entries = entries if judged else each.all_entries()
    after = judged.after if judged else ledger.follow_all(chain, entries)
    named = [entry.claims["license"] for entry in entries if entry.claims["kind"] in ("token", "usage")]
    if judged or not named:
        named.append(after.token.license_id if after.token else None)
    batch = each.batch
    check_batch_for(batch, product=product, licenses=named)
    taken = Taken(
        acceptance=0, parent=None, batch=batch, text=each.text, before=chain, after=after, entries=entries
    )
    made = records.attribute(taken, tokens, received_at=now)
    return Added(
        acceptance=0,
        parent=None,
        opened=each,
        after=after,
        rows=judged.rows if judged else list(map(store.record_values, made.rows)),
        uses=judged.uses if judged else records.plain_uses(made.rows),
        serial=made.serial,
        findings=made.findings,
    )


def _issued_tokens(known: Known, device: str, epoch: str) -> dict[str, IssuedToken]:
    return {
        jti: IssuedToken(
            license=token.license,
            serial=token.serial,
            iat=token.iat,
            valid_from=token.nbf,
            valid_until=limits.INTEGER_MAX if token.runs_on else token.exp + token.grace_s,
            reach=token.reach if token.epoch == epoch else {},
        )
        for jti, token in known.tokens[device].items()
    }


def _needs_no_look(known: Known, device: str, added: Added) -> bool:
    """Whether all that was found is of a kind of which one open exception says enough, and is open."""
    batch = added.opened.batch
    return all(
        each.kind in records.ONCE_OPEN and (device, batch.epoch, each.kind) in known.open_kinds
        for each in added.findings
    ) and (not added.rows or batch.license_id in known.licenses)
