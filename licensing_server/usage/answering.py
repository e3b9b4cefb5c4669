"""Answering a plain request: its receipt, its next token, and what both change of what is known of the group."""

from dataclasses import dataclass, replace
from typing import Any

from licensing_server.devices import group_store, issue, token_store
from licensing_server.devices.ledger_store import Head
from licensing_server.devices.store import Device
from licensing_server.devices.token_store import Issued
from licensing_server.licenses.store import Grant
from licensing_server.server import Server
from licensing_server.usage.known import Known, UnitsKey, counts_by_period
from licensing_server.usage.plain import Plain
from meterkit import envelopes
from meterkit.ledger import Chain, Total
from meterkit.receipts import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What answers a plain request, and what is to be stored of it beside its batches and their records.

    The acceptance numbers of its heads are stand-ins below zero, as those of the batches are.
    """

    plain: Plain
    device: Device
    heads: tuple[Head, ...]
    receipt: str
    issued: Issued
    superseded: tuple[str, ...]
    added: dict[UnitsKey, Total]
    exposures: list[dict[str, Any]]

    @property
    def ledger(self) -> tuple[str, str]:
        """The device, and which life of its ledger."""
        return self.device.id, self.plain.epoch


def answer(server: Server, known: Known, plain: Plain, now: int) -> Answered:
    """Sign the receipt and the token, and note in what is known what is left for the others of the group."""
    added = _count(known, plain)
    told = issue.believed_serial(plain.opened.last.has.serial)
    device = replace(plain.device, seen_at=now, serial_seen=max(plain.device.serial_seen, told))
    chain, superseded = plain.added[-1].after, _superseded(known, plain)
    issued = _issue(server, known, replace(plain, device=device), now)
    reach = _reach(known, plain, issued, superseded)
    ledger = (device.id, plain.epoch)
    units = {(license_id, (model, unit)): each[0] for (license_id, model, unit), each in reach.items()}
    known.pools.expose(ledger, units)
    return Answered(
        plain=plain,
        device=replace(device, serial=issued.token.serial),
        heads=_heads(plain),
        receipt=_receipt(server, device, chain, now),
        issued=issued,
        superseded=superseded,
        added=added,
        exposures=token_store.exposure_rows(*ledger, reach),
    )


def _count(known: Known, plain: Plain) -> dict[UnitsKey, Total]:
    """What is accepted of each license: in all, and per period where a pool counts by it."""
    added: dict[UnitsKey, Total] = {}
    for (license_id, model, unit, at), used in (use for each in plain.added for use in each.uses.items()):
        meter = model, unit
        by_period = license_id in known.starts and known.by_period(license_id, meter)
        for start in (0, known.starts[license_id](at)) if by_period else (0,):
            key = license_id, meter, start
            added[key] = added.get(key, Total()).plus(used.units, used.unsettled)
    known.pools.add(added)
    return added


def _superseded(known: Known, plain: Plain) -> tuple[str, ...]:
    """The tokens that are usable no longer, by what the device's own records say is installed."""
    serial = max((each.serial for each in plain.added if each.serial is not None), default=0)
    tokens = known.tokens[plain.device.id].values()
    return tuple(
        token.jti
        for token in tokens
        if token.epoch == plain.epoch and token.serial < serial and not token.superseded
    )


def _issue(server: Server, known: Known, plain: Plain, now: int) -> Issued:
    chain, license_ = plain.added[-1].after, plain.license
    anchor = issue.Anchor(position=chain.position, accepted=True, totals=chain.totals)
    left = {grant.meter: _pool_left(known, plain, grant, now) for grant in license_.grants}
    models = known.models[license_.product]
    token = issue.compose(
        server, device=plain.device, license_=license_, anchor=anchor, models=models, left=left, now=now
    )
    return issue.seal(server, token, license_, anchor)


def _pool_left(known: Known, plain: Plain, grant: Grant, now: int) -> int | None:
    """As `devices.issue` has it: pool − accepted − Σ exposure (DESIGN §4), but for this ledger's own."""
    if grant.pool_units is None:
        return None
    started = known.starts[plain.license.id](now) if counts_by_period(grant) else 0
    accepted = known.pools.accepted_units((plain.license.id, grant.meter, started))
    exposed = known.pools.exposed_elsewhere(plain.license.id, grant.meter, (plain.device.id, plain.epoch))
    return grant.pool_units - accepted - exposed


def _reach(
    known: Known, plain: Plain, issued: Issued, superseded: tuple[str, ...]
) -> dict[tuple[str, str, str], tuple[int, bool]]:
    """What the tokens that are usable from now on let the ledger reach."""
    still = [
        token
        for token in known.tokens[plain.device.id].values()
        if token.epoch == plain.epoch and not token.superseded and token.jti not in superseded
    ]
    return token_store.reach(
        group_store.usable([*still, group_store.just_issued(issued)]), [plain.added[-1].after.totals]
    )


def _heads(plain: Plain) -> tuple[Head, ...]:
    through, found = plain.start.through, []
    for added in plain.added:
        through = max(through, added.opened.batch.through)
        is_tip = added is plain.added[-1]
        found.append(Head(chain=added.after, acceptance=added.acceptance, is_tip=is_tip, through=through))
    return tuple(found)


def _receipt(server: Server, device: Device, chain: Chain, now: int) -> str:
    receipt = Receipt(
        issuer=server.issuer,
        product=device.product,
        device=device.id,
        iat=now,
        position=chain.position,
        totals=chain.totals,
    )
    return server.sign(envelopes.RECEIPT, receipt.to_claims())
