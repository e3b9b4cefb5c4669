"""Tokens as they were issued, which of them are still usable, and what they let their devices reach."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import insert_all, metadata, total
from licensing_server.devices.decision_store import written_off_up_to
from licensing_server.devices.store import devices
from meterkit.exposure import spent
from meterkit.ledger import Total
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.tokens import Token

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("jti", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("license", sa.Text, sa.ForeignKey("licenses.id"), nullable=False),
    sa.Column("serial", sa.BigInteger, nullable=False),
    sa.Column("iat", sa.BigInteger, nullable=False),
    sa.Column("nbf", sa.BigInteger, nullable=False),
    sa.Column("exp", sa.BigInteger, nullable=False),
    sa.Column("grace_s", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Text, nullable=False),
    sa.Column("anchor_seq", sa.BigInteger, nullable=False),
    sa.Column("anchor_head", sa.Text, nullable=False),
    sa.Column("anchor_accepted", sa.Boolean, nullable=False),
    sa.Column("superseded", sa.Boolean, nullable=False),
    sa.Column("runs_on", sa.Boolean, nullable=False),  # past its end, flagged
    sa.Column("body", sa.Text, nullable=False),
    sa.Index("tokens_by_device", "device", "epoch", "superseded"),
    sa.Index("tokens_by_license", "license", "superseded"),
)
token_limits = sa.Table(
    "token_limits",
    metadata,
    sa.Column("jti", sa.Text, sa.ForeignKey("tokens.jti"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("units_max", sa.BigInteger),
    sa.Column("flagged", sa.Boolean, nullable=False),  # beyond it the device runs on, flagged
    sa.Column("accepted_at_anchor", sa.BigInteger, nullable=False),
)
LIMIT = ("model", "unit", "units_max", "flagged", "accepted_at_anchor")
# A projection: the most that usable tokens let one life of a ledger reach, beyond what is accepted of it.
exposures = sa.Table(
    "exposures",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("license", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("unbounded", sa.Boolean, nullable=False),
    sa.Index("exposures_by_license", "license", "model", "unit"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A token to be stored: what it says, its text, and what was accepted at its anchor."""

    token: Token
    text: str
    anchor_accepted: bool
    at_anchor: Mapping[Meter, int]


def insert(connection: sa.Connection, issued: Sequence[Issued]) -> None:
    """Store tokens and their limits."""
    insert_all(connection, tokens, [row_of(each) for each in issued])
    insert_all(connection, token_limits, [row for each in issued for row in limit_rows_of(each)])


def row_of(issued: Issued) -> dict[str, Any]:
    """Write the row of a token that was just issued."""
    noted = {"anchor_accepted": issued.anchor_accepted, "superseded": False}
    return {**to_row(issued.token, issued.text), **noted}


def limit_rows_of(issued: Issued) -> list[dict[str, Any]]:
    """Write what a token that was just issued allows, meter by meter."""
    rows = limits_to_rows(issued.token)
    return [{**row, "accepted_at_anchor": issued.at_anchor[row["model"], row["unit"]]} for row in rows]


def to_row(token: Token, text: str) -> dict[str, Any]:
    """Write what a token's row takes from the token itself."""
    return {
        "jti": token.jti,
        "device": token.device,
        "license": token.license_id,
        "serial": token.serial,
        "iat": token.iat,
        "nbf": token.nbf,
        "exp": token.exp,
        "grace_s": token.grace_s,
        "epoch": token.anchor.epoch,
        "anchor_seq": token.anchor.seq,
        "anchor_head": token.anchor.head,
        "runs_on": token.policy.expiry == "flag",
        "body": text,
    }


def limits_to_rows(token: Token) -> list[dict[str, Any]]:
    """Write what a token allows, meter by meter."""
    return [
        {
            "jti": token.jti,
            "model": terms.name,
            "unit": terms.unit,
            "units_max": terms.limit,
            "flagged": token.policy.limit == "flag",
        }
        for terms in token.models
    ]


def find(connection: sa.Connection, jti: str) -> Any:
    """Find a token's row."""
    return connection.execute(sa.select(tokens).where(tokens.c.jti == jti)).one_or_none()


def was_given(connection: sa.Connection, device: str, license_id: str) -> bool:
    """Tell whether a device was ever given a token of a license."""
    chosen = sa.select(tokens.c.jti).where(tokens.c.device == device, tokens.c.license == license_id)
    return connection.execute(chosen.limit(1)).first() is not None


def find_serial(connection: sa.Connection, device: str, serial: int) -> Any:
    """Find the token of a device that has this serial."""
    chosen = sa.select(tokens).where(tokens.c.device == device, tokens.c.serial == serial)
    return connection.execute(chosen).one_or_none()


def read_known(connection: sa.Connection, device: str, jtis: Sequence[str]) -> dict[str, Any]:
    """Read those of the named tokens that were issued to this device."""
    table = tokens.c
    shown = (table.jti, table.license, table.serial, table.iat, table.nbf, table.exp, table.grace_s, table.runs_on)
    rows = connection.execute(sa.select(*shown).where(table.device == device, table.jti.in_(jtis)))
    return {row.jti: row for row in rows}


def read_reach(
    connection: sa.Connection, ledger: tuple[str, str], jtis: Sequence[str]
) -> dict[str, dict[Meter, int]]:
    """How far the totals of a ledger (device, epoch) may go under each of the named tokens.

    Only where that is bounded, and what was accepted at the token's anchor is known.
    """
    table, limit = tokens.c, token_limits.c
    chosen = (
        sa.select(limit.jti, limit.model, limit.unit, limit.accepted_at_anchor, limit.units_max)
        .join_from(tokens, token_limits, table.jti == limit.jti)
        .where(table.device == ledger[0], table.epoch == ledger[1], table.jti.in_(jtis))
        .where(table.anchor_accepted.is_(True), limit.units_max.is_not(None))
    )
    found: dict[str, dict[Meter, int]] = {}
    for row in connection.execute(chosen):
        found.setdefault(row.jti, {})[row.model, row.unit] = row.accepted_at_anchor + row.units_max
    return found


def _running(now: int) -> sa.ColumnElement[bool]:
    table = tokens.c
    return sa.and_(table.superseded.is_(False), sa.or_(table.runs_on.is_(True), table.exp + table.grace_s > now))


def places_taken(connection: sa.Connection, license_id: str, now: int, *, but: str) -> int:
    """How many other devices than `but` hold a place: a usable token whose end and grace are still to come.

    A device that was replaced has left its place to another.
    """
    others = (
        sa.select(sa.func.count(tokens.c.device.distinct()))
        .join_from(tokens, devices, devices.c.id == tokens.c.device)
        .where(devices.c.state != "replaced")
        .where(tokens.c.license == license_id, tokens.c.device != but)
        .where(tokens.c.superseded.is_(False), tokens.c.exp + tokens.c.grace_s > now)
    )
    return connection.execute(others).scalar_one()


def is_running(connection: sa.Connection, kind: str, subject: str, now: int) -> bool:
    """Tell whether anything that a revocation names could still run: a token, or any of a license or device."""
    column = {"token": tokens.c.jti, "license": tokens.c.license, "device": tokens.c.device}[kind]
    chosen = sa.select(tokens.c.jti).where(column == subject)
    if kind == "token":
        running = sa.or_(tokens.c.runs_on.is_(True), tokens.c.exp + tokens.c.grace_s > now)
        return connection.execute(chosen.where(running)).first() is not None
    return connection.execute(chosen.where(_running(now))).first() is not None


def supersede(connection: sa.Connection, device: str, epoch: str, serial: int) -> None:
    """Take a ledger's word that a token with this serial is installed: earlier ones are no longer usable in it."""
    table = tokens.c
    earlier = sa.and_(table.device == device, table.epoch == epoch, table.serial < serial)
    connection.execute(sa.update(tokens).where(earlier, table.superseded.is_(False)).values(superseded=True))


def waiting_anchors(connection: sa.Connection, device: str, epoch: str) -> list[tuple[str, Position]]:
    """Tokens whose anchor was ahead of what had been accepted when they were issued."""
    table = tokens.c
    chosen = sa.select(table.jti, table.epoch, table.anchor_seq, table.anchor_head).where(
        table.device == device, table.epoch == epoch, table.anchor_accepted.is_(False)
    )
    return [
        (row.jti, Position(epoch=row.epoch, seq=row.anchor_seq, head=row.anchor_head))
        for row in connection.execute(chosen)
    ]


def accept_anchor(connection: sa.Connection, jti: str, totals: Mapping[Meter, Total]) -> None:
    """Note what had been accepted at a token's anchor, now that it is known."""
    connection.execute(sa.update(tokens).where(tokens.c.jti == jti).values(anchor_accepted=True))
    table = token_limits.c
    for row in connection.execute(sa.select(table.model, table.unit).where(table.jti == jti)).all():
        this = sa.and_(table.jti == jti, table.model == row.model, table.unit == row.unit)
        accepted = spent(totals.get((row.model, row.unit)))
        connection.execute(sa.update(token_limits).where(this).values(accepted_at_anchor=accepted))


def usable() -> sa.Select[Any]:
    """Select tokens that are usable, each with its limits, meter by meter, and with the highest serial of its
    ledger that is written off.
    """
    table, limit = tokens.c, token_limits.c
    return (
        sa.select(
            *(table.license, table.device, table.epoch, table.serial, table.exp, table.grace_s, table.runs_on),
            *(table.anchor_accepted, *(limit[name] for name in LIMIT)),
            written_off_up_to(table.device, table.epoch).label("written_off"),
        )
        .join_from(tokens, token_limits, table.jti == limit.jti)
        .where(table.superseded.is_(False))
    )


def reach(
    rows: Iterable[Any], tips: Sequence[Mapping[Meter, Total]]
) -> dict[tuple[str, str, str], tuple[int, bool]]:
    """What the usable tokens of one life of a ledger let it reach, per license and meter (DESIGN §4).

    The units beyond what is accepted, and whether there is no bound. `tips` are the totals at each branch's end.
    Where there are several, each token is measured against the branch that is least far beyond its anchor; one
    whose anchor is still to come, against the shortest, and all of its limit is still to come too. Tokens that
    are written off count as 0.
    """
    found: dict[tuple[str, str, str], tuple[int, bool]] = {}
    for row in rows:
        key = (row.license, row.model, row.unit)
        units, unbounded = found.setdefault(key, (0, False))
        if row.serial <= row.written_off:
            continue
        limit = row.accepted_at_anchor + (row.units_max or 0)
        at_tips = [spent(totals.get((row.model, row.unit))) for totals in tips]
        if row.anchor_accepted:
            at_tips = [at for at in at_tips if at >= row.accepted_at_anchor] or [row.accepted_at_anchor]
        beyond = limit - min(at_tips, default=0)
        if not row.anchor_accepted:
            beyond = max(beyond, row.units_max or 0)
        without_end = row.units_max is None or row.flagged
        found[key] = (max(units, beyond), unbounded or without_end)
    return found


def refresh_exposures(
    connection: sa.Connection, device: str, epoch: str, tips: Sequence[Mapping[Meter, Total]]
) -> None:
    """Work out anew what usable tokens let one life of a ledger reach; `tips` are as `reach` takes them."""
    found = reach(connection.execute(_usable_in(device, epoch)), tips)
    ours = sa.and_(exposures.c.device == device, exposures.c.epoch == epoch)
    connection.execute(sa.delete(exposures).where(ours))
    rows = exposure_rows(device, epoch, found)
    if rows:
        connection.execute(sa.insert(exposures), rows)


def exposure_rows(
    device: str, epoch: str, found: Mapping[tuple[str, str, str], tuple[int, bool]]
) -> list[dict[str, Any]]:
    """Write what `reach` found."""
    return [
        {
            "device": device,
            "epoch": epoch,
            "license": license_id,
            "model": model,
            "unit": unit,
            "units": units,
            "unbounded": unbounded,
        }
        for (license_id, model, unit), (units, unbounded) in found.items()
    ]


def _usable_in(device: str, epoch: str) -> sa.Select[Any]:
    return usable().where(tokens.c.device == device, tokens.c.epoch == epoch)


def reach_ahead(connection: sa.Connection, device: str, position: Position) -> dict[tuple[str, Meter], int]:
    """The most that usable tokens, by license and meter, let a ledger have counted up to a position ahead.

    Tokens that are anchored at the position itself begin there, and do not count.
    """
    elsewhere = sa.or_(tokens.c.anchor_seq != position.seq, tokens.c.anchor_head != position.head)
    found: dict[tuple[str, Meter], int] = {}
    for row in connection.execute(_usable_in(device, position.epoch).where(elsewhere)):
        key = (row.license, (row.model, row.unit))
        found[key] = max(found.get(key, 0), row.accepted_at_anchor + (row.units_max or 0))
    return found


def read_exposures(connection: sa.Connection, device: str) -> list[pages.Document]:
    """Read what usable tokens let each life of a device's ledger reach."""
    shown = [column for column in exposures.columns if column.name != "device"]
    rows = connection.execute(sa.select(*shown).where(exposures.c.device == device))
    found = [{column.name: getattr(row, column.name) for column in shown} for row in rows]
    return sorted(found, key=lambda each: [each[name] for name in ("epoch", "license", "model", "unit")])


def exposed_units(
    connection: sa.Connection, license_id: str, meter: Meter, *, but: tuple[str, str] | None = None
) -> int:
    """The exposure of a license on one meter, but for one device's ledger (device, epoch)."""
    table = exposures.c
    chosen = sa.select(sa.func.coalesce(total(table.units), 0)).where(
        table.license == license_id, table.model == meter[0], table.unit == meter[1]
    )
    if but is not None:
        chosen = chosen.where(sa.or_(table.device != but[0], table.epoch != but[1]))
    return int(connection.execute(chosen).scalar_one())


def page(connection: sa.Connection, device: str, asked: pages.Page) -> pages.Document:
    """List the tokens of a device, without their texts."""
    shown = [column for column in tokens.columns if column.name != "body"]
    return pages.fetch(
        connection,
        sa.select(*shown).where(tokens.c.device == device),
        asked,
        at=tokens.c.serial,
        key=tokens.c.jti,
        to_document=lambda row: {column.name: getattr(row, column.name) for column in shown},
    )
