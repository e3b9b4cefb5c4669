"""Devices, and the activation requests that they signed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import listed, metadata
from licensing_server.prepared import Prepared
from licensing_server.sodium import SodiumVerifyKey
from meterkit.keys import VerifyKey

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("product", sa.Text, nullable=False),
    sa.Column("license", sa.Text, sa.ForeignKey("licenses.id"), index=True),
    sa.Column("sign_key", sa.Text, nullable=False),
    sa.Column("seal_key", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("held", sa.Boolean, nullable=False),  # by its license's fork policy: receipts only
    sa.Column("activated_at", sa.BigInteger, nullable=False),
    sa.Column("activation_request", sa.Text, nullable=False),
    sa.Column("sdk", sa.Text, nullable=False),
    sa.Column("runtime", sa.Text, nullable=False),
    sa.Column("platform", sa.Text, nullable=False),
    # The highest serial given, the highest that the device says it holds, and when it was last heard of.
    sa.Column("serial", sa.BigInteger, nullable=False),
    sa.Column("serial_seen", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    # Moves with every change to what is accepted of the device: what was judged before it moved is judged anew.
    sa.Column("revision", sa.BigInteger, nullable=False),
)
activations = sa.Table(
    "activations",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, nullable=False, index=True),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("license", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device: its keys, the license it runs under, and how far its serials are."""

    id: str
    product: str
    license: str | None
    sign_key: str
    seal_key: str
    state: str
    activated_at: int
    activation_request: str
    sdk: str
    runtime: str
    platform: str
    held: bool = False
    serial: int = 0
    serial_seen: int = 0
    seen_at: int = 0
    revision: int = 0

    @property
    def verify_key(self) -> VerifyKey:
        """The key that its batches must be signed with."""
        return SodiumVerifyKey(self.sign_key)

    def to_document(self) -> pages.Document:
        """Show the device to people."""
        hidden = ("activation_request", "revision", "serial_seen")
        return {name: value for name, value in to_row(self).items() if name not in hidden}


_OWN = tuple(column.name for column in devices.columns)


_NOTED = ("serial", "serial_seen", "seen_at")
_ALL = Prepared(sa.select(devices).where(listed(devices.c.id, "ids")))
_REVISIONS = Prepared(sa.select(devices.c.id, devices.c.revision).where(listed(devices.c.id, "ids")))
_NOTE = Prepared(
    sa.update(devices)
    .where(devices.c.id == sa.bindparam("this"))
    .values({name: sa.bindparam(f"new_{name}") for name in _NOTED})
    .values(revision=devices.c.revision + 1)
)


def from_row(row: Any) -> Device:
    """Read a row that begins with all columns; a page's have what they are ordered by behind."""
    return Device(**dict(zip(_OWN, row, strict=False)))


def to_row(device: Device) -> dict[str, Any]:
    """Write a row."""
    return {name: getattr(device, name) for name in _OWN}


def find(connection: sa.Connection, device_id: str) -> Device | None:
    """Find a device."""
    row = connection.execute(sa.select(devices).where(devices.c.id == device_id)).one_or_none()
    return from_row(row) if row else None


def find_all(connection: sa.Connection, device_ids: Collection[str]) -> dict[str, Device]:
    """Find several devices."""
    return {row.id: from_row(row) for row in _ALL.all(connection, ids=device_ids)}


def read_revisions(connection: sa.Connection, device_ids: Collection[str]) -> dict[str, int]:
    """How often what is accepted of several devices has changed."""
    return {row.id: row.revision for row in _REVISIONS.all(connection, ids=device_ids)}


def insert(connection: sa.Connection, device: Device) -> None:
    """Store a new device."""
    connection.execute(sa.insert(devices), [to_row(device)])


def update(connection: sa.Connection, device: Device) -> bool:
    """Store a device's new state, if nobody changed it since it was read; tells whether that was so."""
    this = sa.and_(devices.c.id == device.id, devices.c.revision == device.revision)
    values = {**to_row(device), "revision": device.revision + 1}
    return connection.execute(sa.update(devices).where(this).values(values)).rowcount == 1


def note_exchanges(connection: sa.Connection, changed: Sequence[Device]) -> None:
    """Store what an exchange changes of devices that were read in this transaction; their revisions move on."""
    rows = [{"this": each.id, **{f"new_{name}": getattr(each, name) for name in _NOTED}} for each in changed]
    _NOTE.each(connection, rows)


def page(connection: sa.Connection, asked: pages.Page, license_id: str | None) -> pages.Document:
    """List devices, of one license if named."""
    chosen = sa.select(devices)
    if license_id is not None:
        chosen = chosen.where(devices.c.license == license_id)
    return pages.fetch(
        connection,
        chosen,
        asked,
        at=devices.c.activated_at,
        key=devices.c.id,
        to_document=lambda row: from_row(row).to_document(),
    )


def has_activation(connection: sa.Connection, digest: str) -> bool:
    """Tell whether exactly this activation request was taken before."""
    return (
        connection.execute(sa.select(activations.c.digest).where(activations.c.digest == digest)).first()
        is not None
    )


def insert_activation(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store an activation request as it was signed."""
    connection.execute(sa.insert(activations), [row])
