"""Tokens as they were issued, which of them are still usable, and what they let their devices reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import metadata
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
    at_anchor: Mapping[Meter, Total]


def insert(connection: sa.Connection, issued: Issued) -> None:
    """Store a token and its limits."""
    token = issued.token
    row = {
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
        "anchor_accepted": issued.anchor_accepted,
        "superseded": False,
        "runs_on": token.policy.expiry == "flag",
        "body": issued.text,
    }
    connection.execute(sa.insert(tokens), [row])
    limits = [
        {
            "jti": token.jti,
            "model": terms.name,
            "unit": terms.unit,
            "units_max": terms.limit,
            "flagged": token.policy.limit == "flag",
            "accepted_at_anchor": spent(issued.at_anchor.get(terms.meter)),
        }
        for terms in token.models
    ]
    connection.execute(sa.insert(token_limits), limits)


def spent(total: Total | None) -> int:
    """What counts against a limit: units, and unsettled units."""
    return 0 if total is None else total.units + total.unsettled


def find(connection: sa.Connection, jti: str) -> Any:
    """Find a token's row."""
    return connection.execute(sa.select(tokens).where(tokens.c.jti == jti)).one_or_none()


def find_serial(connection: sa.Connection, device: str, serial: int) -> Any:
    """Find the token of a device that has this serial."""
    chosen = sa.select(tokens).where(tokens.c.device == device, tokens.c.serial == serial)
    return connection.execute(chosen).one_or_none()


def read_known(connection: sa.Connection, device: str, jtis: Sequence[str]) -> dict[str, Any]:
    """Read those of the named tokens that were issued to this device."""
    chosen = sa.select(tokens.c.jti, tokens.c.license, tokens.c.serial, tokens.c.iat)
    rows = connection.execute(chosen.where(tokens.c.device == device, tokens.c.jti.in_(jtis)))
    return {row.jti: row for row in rows}


def _running(now: int) -> sa.ColumnElement[bool]:
    table = tokens.c
    return sa.and_(table.superseded.is_(False), sa.or_(table.runs_on.is_(True), table.exp + table.grace_s > now))


def places_taken(connection: sa.Connection, license_id: str, now: int, *, but: str) -> int:
    """How many other devices than `but` hold a place: a usable token whose end and grace are still to come."""
    others = (
        sa.select(sa.func.count(tokens.c.device.distinct()))
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


def refresh_exposures(
    connection: sa.Connection, device: str, epoch: str, tips: Sequence[Mapping[Meter, Total]]
) -> None:
    """Work out anew what usable tokens let one life of a ledger reach (DESIGN §4).

    `tips` are the totals at each branch's end. Where there are several, each token is measured against the
    branch that is least far beyond its anchor.
    """
    table, limit = tokens.c, token_limits.c
    usable = (
        sa.select(table.license, limit.model, limit.unit, limit.units_max, limit.flagged, limit.accepted_at_anchor)
        .join_from(tokens, token_limits, table.jti == limit.jti)
        .where(table.device == device, table.epoch == epoch, table.superseded.is_(False))
    )
    found: dict[tuple[str, str, str], tuple[int, bool]] = {}
    for row in connection.execute(usable):
        key = (row.license, row.model, row.unit)
        units, unbounded = found.get(key, (0, False))
        reach = row.accepted_at_anchor + (row.units_max or 0)
        at_tips = [spent(totals.get((row.model, row.unit))) for totals in tips]
        accepted = min((at for at in at_tips if at >= row.accepted_at_anchor), default=row.accepted_at_anchor)
        without_end = row.units_max is None or row.flagged
        found[key] = (max(units, reach - accepted), unbounded or without_end)
    ours = sa.and_(exposures.c.device == device, exposures.c.epoch == epoch)
    connection.execute(sa.delete(exposures).where(ours))
    rows = [
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
    if rows:
        connection.execute(sa.insert(exposures), rows)


def exposed_units(
    connection: sa.Connection, license_id: str, meter: Meter, *, but: tuple[str, str] | None = None
) -> int:
    """The exposure of a license on one meter, but for one device's ledger (device, epoch)."""
    table = exposures.c
    chosen = sa.select(sa.func.coalesce(sa.func.sum(table.units), 0)).where(
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
