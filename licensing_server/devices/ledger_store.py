"""How far each device's ledgers are accepted: checkpoints, their branches' tips, and the receipts given."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.database import insert_all, listed, metadata
from licensing_server.prepared import Prepared
from meterkit.ledger import Chain, TokenRef, Total
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.receipts import totals_from_claims, totals_to_claims

# One row where each accepted batch starts or ends; `acceptance` names the batch that first brought its record.
heads = sa.Table(
    "heads",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("head", sa.Text, primary_key=True),
    sa.Column("totals", sa.JSON, nullable=False),
    sa.Column("last_token_jti", sa.Text),
    sa.Column("last_token_serial", sa.BigInteger),
    sa.Column("last_token_iat", sa.BigInteger),
    sa.Column("last_token_license", sa.Text),
    sa.Column("is_tip", sa.Boolean, nullable=False),
    sa.Column("through", sa.BigInteger, nullable=False),
    sa.Column("acceptance", sa.BigInteger, nullable=False),
)
_IS_TIP = heads.c.is_tip.is_(True)
sa.Index(
    "heads_tips",
    *(heads.c[name] for name in ("device", "epoch", "seq", "head", "acceptance")),
    sqlite_where=_IS_TIP,
    postgresql_where=_IS_TIP,
)
receipts = sa.Table(
    "receipts",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("head", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
)


_PLACE = (heads.c.device, heads.c.epoch, heads.c.seq, heads.c.head)
_TIPS = Prepared(sa.select(heads).where(listed(heads.c.device, "devices"), heads.c.is_tip.is_(True)))
_PLACES = Prepared(sa.select(*_PLACE).where(listed(heads.c.device, "devices"), listed(heads.c.head, "heads")))
_END = Prepared(
    sa.update(heads).where(*(each == sa.bindparam(f"this_{each.name}") for each in _PLACE)).values(is_tip=False)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A checkpoint: the chain as known at one position, and through when its branch has reported.

    `acceptance` is the number of the batch that first brought the record at this position.
    """

    chain: Chain
    acceptance: int
    is_tip: bool
    through: int = 0

    @property
    def position(self) -> Position:
        """Where it is."""
        return self.chain.position


def from_row(row: Any, totals: Mapping[Meter, Total] | None = None) -> Head:
    """Read a checkpoint's row, with other totals than its own if they are given."""
    token = None
    if row.last_token_jti is not None:
        token = TokenRef(
            jti=row.last_token_jti,
            serial=row.last_token_serial,
            iat=row.last_token_iat,
            license_id=row.last_token_license,
        )
    chain = Chain(
        device=row.device,
        position=Position(epoch=row.epoch, seq=row.seq, head=row.head),
        token=token,
        totals=totals_from_claims(row.totals) if totals is None else totals,
    )
    return Head(chain=chain, acceptance=row.acceptance, is_tip=row.is_tip, through=row.through)


def to_row(head: Head) -> dict[str, Any]:
    """Write a checkpoint's row."""
    chain, token = head.chain, head.chain.token
    return {
        "device": chain.device,
        **chain.position.to_claims(),
        "totals": totals_to_claims(chain.totals),
        "last_token_jti": token.jti if token else None,
        "last_token_serial": token.serial if token else None,
        "last_token_iat": token.iat if token else None,
        "last_token_license": token.license_id if token else None,
        "is_tip": head.is_tip,
        "through": head.through,
        "acceptance": head.acceptance,
    }


def _at(table: sa.Table, device: str, position: Position) -> sa.ColumnElement[bool]:
    return sa.and_(
        table.c.device == device,
        table.c.epoch == position.epoch,
        table.c.seq == position.seq,
        table.c.head == position.head,
    )


def find(connection: sa.Connection, device: str, position: Position) -> Head | None:
    """Find the checkpoint at exactly this position."""
    row = connection.execute(sa.select(heads).where(_at(heads, device, position))).one_or_none()
    return from_row(row) if row else None


def read_tips(connection: sa.Connection, device: str, epoch: str) -> list[Head]:
    """The ends of an epoch's branches: one, unless it has forked."""
    chosen = sa.select(heads).where(heads.c.device == device, heads.c.epoch == epoch, heads.c.is_tip.is_(True))
    return [from_row(row) for row in connection.execute(chosen.order_by(heads.c.seq, heads.c.head))]


def read_all_tips(connection: sa.Connection, devices: Collection[str]) -> list[Head]:
    """The ends of all branches of several devices' ledgers."""
    return [from_row(row) for row in _TIPS.all(connection, devices=devices)]


def known_positions(
    connection: sa.Connection, asked: Collection[tuple[str, Position]]
) -> set[tuple[str, Position]]:
    """Those of the named places, of a device and in its ledger, that are checkpoints."""
    devices, places = [device for device, _ in asked], [position.head for _, position in asked]
    rows = _PLACES.all(connection, devices=devices, heads=places)
    found = {(row.device, Position(row.epoch, row.seq, row.head)) for row in rows}
    return found.intersection(asked)


def go_on(connection: sa.Connection, ended: Sequence[Head], made: Sequence[Head]) -> None:
    """Store new checkpoints; those that their branches went on from are tips no more."""
    names = [f"this_{each.name}" for each in _PLACE]
    places = [dict(zip(names, (head.chain.device, *head.position), strict=True)) for head in ended]
    _END.each(connection, places)
    insert_all(connection, heads, [to_row(head) for head in made])


def read_foundations(connection: sa.Connection, device: str, epoch: str) -> list[Head]:
    """The checkpoints that no batch brought: receipts that stand for records that are gone."""
    own = sa.and_(heads.c.device == device, heads.c.epoch == epoch, heads.c.acceptance == 0, heads.c.seq > 0)
    return [from_row(row) for row in connection.execute(sa.select(heads).where(own).order_by(heads.c.seq))]


def has_other_epoch(connection: sa.Connection, device: str, epoch: str) -> bool:
    """Tell whether another life of this device's ledger was accepted before."""
    chosen = sa.select(heads.c.epoch).where(heads.c.device == device, heads.c.epoch != epoch)
    return connection.execute(chosen.limit(1)).first() is not None


# Branches grow; which token is in force behind records that were gone is learned when they come after all.
_CHANGING = ("is_tip", "through", "last_token_jti", "last_token_serial", "last_token_iat", "last_token_license")


def put(connection: sa.Connection, head: Head) -> None:
    """Store a checkpoint, or what has changed of it."""
    row = to_row(head)
    changed = {name: value for name, value in row.items() if name in _CHANGING}
    this = _at(heads, head.chain.device, head.position)
    if connection.execute(sa.update(heads).where(this).values(changed)).rowcount == 0:
        connection.execute(sa.insert(heads), [row])


def insert_receipts(connection: sa.Connection, given: Sequence[tuple[Head, str]], now: int) -> None:
    """Store receipts for positions that have none yet."""
    rows = [
        {"device": head.chain.device, **head.position.to_claims(), "body": body, "issued_at": now}
        for head, body in given
    ]
    insert_all(connection, receipts, rows)


def find_receipt(connection: sa.Connection, device: str, position: Position) -> str | None:
    """Find the receipt given for exactly this position."""
    chosen = sa.select(receipts.c.body).where(_at(receipts, device, position))
    return connection.execute(chosen).scalar_one_or_none()


def find_receipt_position(connection: sa.Connection, device: str, body: str) -> Position | None:
    """Find the position of a receipt that this server has given, by its text."""
    chosen = sa.select(receipts.c.epoch, receipts.c.seq, receipts.c.head).where(
        receipts.c.device == device, receipts.c.body == body
    )
    row = connection.execute(chosen).first()
    return Position(epoch=row.epoch, seq=row.seq, head=row.head) if row else None


def receipt_issued_at(connection: sa.Connection, device: str, position: Position) -> int | None:
    """When the receipt for exactly this position was given, if one was."""
    chosen = sa.select(receipts.c.issued_at).where(_at(receipts, device, position))
    return connection.execute(chosen).scalar_one_or_none()


def put_receipt(connection: sa.Connection, device: str, position: Position, body: str, now: int) -> None:
    """Store a receipt: asked again, the same text is given."""
    given = {"body": body, "issued_at": now}
    this = _at(receipts, device, position)
    if connection.execute(sa.update(receipts).where(this).values(given)).rowcount == 0:
        connection.execute(sa.insert(receipts), [{"device": device, **position.to_claims(), **given}])
