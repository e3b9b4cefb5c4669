"""What a statement is made of, read for some devices at a time: a few queries a page, none a device."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from licensing_server.devices import ledger_store, token_store
from licensing_server.devices.ledger_store import Head, heads, receipts
from licensing_server.devices.store import devices
from licensing_server.devices.token_store import token_limits, tokens
from licensing_server.licenses.store import licenses
from licensing_server.reconciliation.statement import Figures, Owned, Place, Recorded, Rows, Standing, signed_units
from licensing_server.usage import chains, gone_store
from licensing_server.usage.store import HALF, exceptions, standing, usage_records
from meterkit import envelopes
from meterkit.canonical import from_bytes
from meterkit.errors import MeterkitError
from meterkit.exposure import spent
from meterkit.ledger import Total
from meterkit.licenses import Meter
from meterkit.limits import RECEIPT_BYTES_MAX
from meterkit.receipts import totals_from_claims

_OUT_OF_COVERAGE = ("retired", "lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a statement is about: a period as two instants (half-open), and whose; everybody's, if not named."""

    from_at: int
    to_at: int
    known_at: int
    customer: str | None = None
    license_id: str | None = None

    @property
    def upto(self) -> int:
        """Through when devices should have reported by now."""
        return min(self.to_at, self.known_at)

    def licensed(self, column: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
        """Which licenses are meant."""
        if self.license_id is not None:
            return column == self.license_id
        if self.customer is not None:
            return column.in_(sa.select(licenses.c.id).where(licenses.c.customer == self.customer))
        return sa.true()


def device_ids(connection: sa.Connection, scope: Scope, after: str | None, devices_max: int) -> list[str]:
    """The next devices that a statement is about, in the database's own order."""
    chosen = sa.select(devices.c.id).order_by(devices.c.id).limit(devices_max)
    if after is not None:
        chosen = chosen.where(devices.c.id > after)
    if scope.customer is not None or scope.license_id is not None:
        given = sa.exists().where(tokens.c.device == devices.c.id, scope.licensed(tokens.c.license))
        record = usage_records.c
        used = sa.exists().where(record.device == devices.c.id, scope.licensed(record.license))
        chosen = chosen.where(sa.or_(given, used))
    return list(connection.execute(chosen).scalars())


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What was read of some devices."""

    rows: Rows
    signed: dict[Owned, int | None]
    recorded: dict[Owned, Recorded]
    exceptions: list[tuple[str, str, int]]


def read(connection: sa.Connection, scope: Scope, ids: list[str]) -> Piece:
    """Read what a statement says of some devices."""
    tips = _tips(connection, ids)
    used, recorded = _used(connection, scope, ids)
    figures: dict[Place, Figures] = {}
    for found in (used, _granted(connection, scope, ids), _exposed(connection, scope, ids, tips)):
        for place, own in found:
            figures[place] = figures.get(place, Figures()).plus(own)
    expected = _expected(connection, scope, ids)
    named = {place[0] for place in figures} | {license_id for license_id, _ in expected}
    rows = Rows(
        figures=figures,
        expected=expected,
        standings=_standings(connection, ids, tips),
        customers=_customers(connection, named),
    )
    return Piece(
        rows=rows,
        signed=_signed(connection, tips),
        recorded=recorded,
        exceptions=_exceptions(connection, scope, ids),
    )


def _halves(name: str, condition: sa.ColumnElement[bool], units: Any) -> list[sa.ColumnElement[Any]]:
    """Two sums that no engine's integers are too small for."""
    high, low = sa.case((condition, units // HALF), else_=0), sa.case((condition, units % HALF), else_=0)
    return [sa.func.sum(high).label(f"{name}_high"), sa.func.sum(low).label(f"{name}_low")]


def _whole(row: Any, name: str) -> int:
    return int(getattr(row, f"{name}_high")) * HALF + int(getattr(row, f"{name}_low"))


def _in_period(scope: Scope) -> list[sa.ColumnElement[Any]]:
    """The sums over records by service time."""
    record = usage_records.c
    held, both = standing(record), record.units + record.unsettled
    inside = sa.and_(record.service_at >= scope.from_at, record.service_at < scope.to_at)
    over_limit = sa.cast(record.flags, sa.Text).like('%"over_limit"%')  # a closed list of plain names, as JSON
    counted = sa.and_(inside, held.counted)
    return [
        sa.func.sum(sa.case((inside, 1), else_=0)).label("records"),
        *_halves("reported", counted, held.units),
        *_halves("over_limit", sa.and_(counted, over_limit), held.units),
        *_halves("unsettled", counted, record.unsettled),
        *_halves("quarantined", sa.and_(inside, held.aside), both),
        *_halves("dismissed", sa.and_(inside, held.dismissed), both),
        *_halves("repeated", counted, held.repeated),
    ]


def _figures(row: Any) -> Figures:
    return Figures(
        records=int(row.records),
        reported=_whole(row, "reported"),
        over_limit=_whole(row, "over_limit"),
        unsettled=_whole(row, "unsettled"),
        quarantined=_whole(row, "quarantined"),
        dismissed=_whole(row, "dismissed"),
        repeated=_whole(row, "repeated"),
    )


def _used(
    connection: sa.Connection, scope: Scope, ids: list[str]
) -> tuple[list[tuple[Place, Figures]], dict[Owned, Recorded]]:
    """What records say of the period, for the licenses meant; and what became of all that was ever signed."""
    record = usage_records.c
    held, both = standing(record), record.units + record.unsettled
    key = (record.license, record.device, record.model, record.unit)
    meant = scope.licensed(record.license)
    chosen = sa.select(
        *key,
        sa.func.max(sa.case((meant, 1), else_=0)).label("meant"),
        *_in_period(scope),
        *_halves("all_accepted", held.counted, held.units + record.unsettled),
        *_halves("all_quarantined", held.aside, both),
        *_halves("all_dismissed", held.dismissed, both),
        *_halves("all_repeated", held.counted, held.repeated),
    ).where(record.device.in_(ids))
    figures: list[tuple[Place, Figures]] = []
    recorded: dict[Owned, Recorded] = {}
    for row in connection.execute(chosen.group_by(*key)):
        if row.meant:
            figures.append(((row.license, row.device, row.model, row.unit), _figures(row)))
        owned = (row.device, row.model, row.unit)
        found = Recorded(**{each.name: _whole(row, f"all_{each.name}") for each in fields(Recorded)})
        recorded[owned] = recorded.get(owned, Recorded()).plus(found)
    return figures, recorded


def license_totals(connection: sa.Connection, scope: Scope) -> dict[str, dict[Meter, Figures]]:
    """What records say of the period license by license, added up without a look at devices."""
    record = usage_records.c
    key = (record.license, record.model, record.unit)
    inside = sa.and_(record.service_at >= scope.from_at, record.service_at < scope.to_at)
    chosen = sa.select(*key, *_in_period(scope)).where(inside, scope.licensed(record.license)).group_by(*key)
    found: dict[str, dict[Meter, Figures]] = {}
    for row in connection.execute(chosen):
        found.setdefault(row.license, {})[row.model, row.unit] = _figures(row)
    return found


def _granted(connection: sa.Connection, scope: Scope, ids: list[str]) -> Iterator[tuple[Place, Figures]]:
    """The limits of the tokens issued in the period."""
    token, limit = tokens.c, token_limits.c
    key = (token.license, token.device, limit.model, limit.unit)
    unlimited = sa.or_(limit.units_max.is_(None), limit.flagged.is_(True))
    chosen = (
        sa.select(
            *key,
            sa.func.count().label("tokens"),
            sa.func.sum(sa.case((unlimited, 1), else_=0)).label("unlimited"),
            *_halves("granted", limit.units_max.is_not(None), limit.units_max),
        )
        .join_from(tokens, token_limits, token.jti == limit.jti)
        .where(token.device.in_(ids), token.iat >= scope.from_at, token.iat < scope.to_at)
        .where(scope.licensed(token.license))
    )
    for row in connection.execute(chosen.group_by(*key)):
        own = Figures(
            tokens=row.tokens, granted_units=_whole(row, "granted"), granted_unlimited=int(row.unlimited) > 0
        )
        yield (row.license, row.device, row.model, row.unit), own


def _exposed(
    connection: sa.Connection, scope: Scope, ids: list[str], tips: dict[tuple[str, str], list[Head]]
) -> Iterator[tuple[Place, Figures]]:
    """What usable tokens still let devices reach, and how much of it only tokens past their grace do."""
    token = tokens.c
    chosen = token_store.usable().where(token.device.in_(ids), scope.licensed(token.license))
    ledgers: dict[tuple[str, str], list[Any]] = {}
    for row in connection.execute(chosen):
        ledgers.setdefault((row.device, row.epoch), []).append(row)
    for (device, epoch), rows in ledgers.items():
        totals = [tip.chain.totals for tip in tips.get((device, epoch), [])]
        running = token_store.reach(filter(lambda row: _runs(row, scope.known_at), rows), totals)
        for (license_id, model, unit), (units, unbounded) in token_store.reach(rows, totals).items():
            still, _ = running.get((license_id, model, unit), (0, False))
            own = Figures(exposure=units, exposure_unbounded=unbounded, exposure_past_grace=units - still)
            yield (license_id, device, model, unit), own


def _runs(row: Any, now: int) -> bool:
    return bool(row.runs_on) or row.exp + row.grace_s > now


def _expected(connection: sa.Connection, scope: Scope, ids: list[str]) -> frozenset[tuple[str, str]]:
    """Who should have reported: whose token was valid in the period, but for those retired or lost."""
    token = tokens.c
    chosen = (
        sa.select(token.license, token.device)
        .join(devices, devices.c.id == token.device)
        .where(token.device.in_(ids), devices.c.state.not_in(_OUT_OF_COVERAGE), scope.licensed(token.license))
        .where(token.nbf < scope.to_at, token.exp > scope.from_at)
    )
    return frozenset((row.license, row.device) for row in connection.execute(chosen.distinct()))


def _tips(connection: sa.Connection, ids: list[str]) -> dict[tuple[str, str], list[Head]]:
    """Every branch's end of some devices' ledgers, with the totals that its receipt confirms."""
    here = sa.and_(*(heads.c[name] == receipts.c[name] for name in ("device", "epoch", "seq", "head")))
    chosen = (
        sa.select(heads, receipts.c.body)
        .outerjoin(receipts, here)
        .where(heads.c.device.in_(ids), heads.c.is_tip.is_(True))
    )
    found: dict[tuple[str, str], list[Head]] = {}
    for row in connection.execute(chosen):
        found.setdefault((row.device, row.epoch), []).append(ledger_store.from_row(row, _confirmed(row.body)))
    return found


def _confirmed(receipt: str | None) -> dict[Meter, Total] | None:
    if receipt is None:
        return None
    payload = envelopes.unverified_parts(envelopes.RECEIPT, receipt).payload
    claims = from_bytes(payload, bytes_max=RECEIPT_BYTES_MAX)
    return totals_from_claims(claims["totals"])


def _signed(connection: sa.Connection, tips: dict[tuple[str, str], list[Head]]) -> dict[Owned, int | None]:
    """What devices signed, from their branches' ends; a forked ledger is followed to where it parts.

    Records that are gone, of which only a receipt tells (DESIGN §6), are in no sum: they are an exception.
    """
    found: dict[Owned, int | None] = {}
    for (device, epoch), ends in tips.items():
        totals = [end.chain.totals for end in ends]
        try:
            shared = _shared(connection, device, epoch) if len(ends) > 1 else []
            signed: dict[Meter, int] = signed_units(totals, shared)
        except MeterkitError:
            found |= {(device, *meter): None for own in totals for meter in own}
            continue
        for meter, units in signed.items():
            known = found.get((device, *meter), 0)
            found[device, *meter] = None if known is None else known + units
    for gone in gone_store.read(connection, devices={device for device, _ in tips}):
        for meter, total in gone.units.items():
            known = found.get((gone.device, *meter))
            found[gone.device, *meter] = None if known is None else known - spent(total)
    return found


def _shared(connection: sa.Connection, device: str, epoch: str) -> list[tuple[Any, int]]:
    replay = chains.follow(connection, device)
    return [(replay.totals_at(position), count) for position, count in replay.fork_points(epoch)]


def _standings(
    connection: sa.Connection, ids: list[str], tips: dict[tuple[str, str], list[Head]]
) -> dict[str, Standing]:
    """What is known of devices; of several lives of a ledger the last one speaks, of its branches the furthest."""
    newest: dict[str, tuple[int, int]] = {}
    for (device, _), ends in tips.items():
        own = (max(end.acceptance for end in ends), max(end.through for end in ends))
        newest[device] = max(own, newest.get(device, own))
    table = devices.c
    chosen = sa.select(table.id, table.state, table.sdk, table.runtime, table.seen_at).where(table.id.in_(ids))
    return {
        row.id: Standing(
            device=row.id,
            state=row.state,
            sdk=row.sdk,
            runtime=row.runtime,
            seen_at=row.seen_at,
            through=newest[row.id][1] if row.id in newest else None,
        )
        for row in connection.execute(chosen)
    }


def _customers(connection: sa.Connection, named: Iterable[str]) -> dict[str, str]:
    chosen = sa.select(licenses.c.id, licenses.c.customer).where(licenses.c.id.in_(list(named)))
    return {row.id: row.customer for row in connection.execute(chosen)}


def _exceptions(connection: sa.Connection, scope: Scope, ids: list[str]) -> list[tuple[str, str, int]]:
    """Exceptions by kind and state: opened in the period, or still waiting at its begin."""
    table = exceptions.c
    concerned = sa.or_(
        table.opened_at >= scope.from_at,
        table.resolved_at.is_(None),
        table.resolved_at >= scope.from_at,
    )
    chosen = (
        sa.select(table.kind, table.state, sa.func.count().label("found"))
        .where(table.device.in_(ids), table.opened_at < scope.to_at, concerned)
        .where(sa.or_(table.license.is_(None), scope.licensed(table.license)))
    )
    rows = connection.execute(chosen.group_by(table.kind, table.state))
    return [(row.kind, row.state, int(row.found)) for row in rows]
