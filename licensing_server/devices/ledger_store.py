"""How far each device's ledgers are accepted: checkpoints, their branches' tips, and the receipts given."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.database import metadata
from meterkit.ledger import Chain, TokenRef
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
    sa.Index("heads_tips", "device", "epoch", "is_tip"),
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


def from_row(row: Any) -> Head:
    """Read a checkpoint's row."""
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
        totals=totals_from_claims(row.totals),
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


def has_other_epoch(connection: sa.Connection, device: str, epoch: str) -> bool:
    """Tell whether another life of this device's ledger was accepted before."""
    chosen = sa.select(heads.c.epoch).where(heads.c.device == device, heads.c.epoch != epoch)
    return connection.execute(chosen.limit(1)).first() is not None


def put(connection: sa.Connection, head: Head) -> None:
    """Store a checkpoint, or what has changed of it."""
    row = to_row(head)
    changed = {"is_tip": row["is_tip"], "through": row["through"]}
    this = _at(heads, head.chain.device, head.position)
    if connection.execute(sa.update(heads).where(this).values(changed)).rowcount == 0:
        connection.execute(sa.insert(heads), [row])


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


def insert_receipt(connection: sa.Connection, device: str, position: Position, body: str, now: int) -> None:
    """Store a receipt: asked again, the same text is given."""
    row = {"device": device, **position.to_claims(), "body": body, "issued_at": now}
    connection.execute(sa.insert(receipts), [row])
