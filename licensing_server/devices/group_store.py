"""Tokens and exposures of several devices at once: what exchanges that are taken together read and write."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from licensing_server.database import insert_all, listed, total
from licensing_server.devices.token_store import (
    LIMIT,
    Issued,
    exposures,
    limit_rows_of,
    row_of,
    token_limits,
    tokens,
)
from licensing_server.prepared import Prepared
from meterkit.licenses import Meter
from meterkit.tuples import NamedTuple

_KNOWN = (
    *("jti", "device", "license", "epoch", "serial", "iat", "nbf", "exp", "grace_s"),
    *("runs_on", "anchor_accepted", "superseded"),
)
_ALL_KNOWN = Prepared(
    sa.select(*(tokens.c[name] for name in _KNOWN), *(token_limits.c[name] for name in LIMIT))
    .join_from(tokens, token_limits, tokens.c.jti == token_limits.c.jti)
    .where(
        listed(tokens.c.device, "devices"),
        sa.or_(tokens.c.superseded.is_(False), listed(tokens.c.jti, "jtis")),
    )
)
_SUPERSEDE = Prepared(sa.update(tokens).where(listed(tokens.c.jti, "jtis")).values(superseded=True))
_METER = (exposures.c.license, exposures.c.model, exposures.c.unit)
_EXPOSED = Prepared(
    sa.select(*_METER, total(exposures.c.units).label("units"))
    .where(listed(exposures.c.license, "licenses"))
    .group_by(*_METER)
)
_EXPOSURES = Prepared(sa.select(exposures).where(listed(exposures.c.device, "devices")))
_CLEAR = Prepared(
    sa.delete(exposures).where(
        exposures.c.device == sa.bindparam("of_device"), exposures.c.epoch == sa.bindparam("of_epoch")
    )
)


class KnownLimit(NamedTuple):
    """What a token allows of one meter, and what was accepted at its anchor."""

    model: str
    unit: str
    units_max: int | None
    flagged: bool
    accepted_at_anchor: int


class KnownToken(NamedTuple):
    """A token that was issued, with its limits."""

    jti: str
    device: str
    license: str
    epoch: str
    serial: int
    iat: int
    nbf: int
    exp: int
    grace_s: int
    runs_on: bool
    anchor_accepted: bool
    superseded: bool
    limits: list[KnownLimit]

    @property
    def reach(self) -> dict[Meter, int]:
        """How far the ledger's totals may go under it, where that is bounded, and known from its anchor."""
        if not self.anchor_accepted:
            return {}
        return {
            (each.model, each.unit): each.accepted_at_anchor + each.units_max
            for each in self.limits
            if each.units_max is not None
        }


class Usable(NamedTuple):
    """A usable token and one of its limits, as `token_store.reach` takes them. Nothing of it is written off."""

    license: str
    serial: int
    anchor_accepted: bool
    model: str
    unit: str
    units_max: int | None
    flagged: bool
    accepted_at_anchor: int
    written_off: int = 0


def usable(known: Iterable[KnownToken]) -> list[Usable]:
    """Lay tokens out by their limits."""
    return [
        Usable(token.license, token.serial, token.anchor_accepted, *limit)
        for token in known
        for limit in token.limits
    ]


def read_all_known(
    connection: sa.Connection, devices: Collection[str], jtis: Collection[str]
) -> dict[str, dict[str, KnownToken]]:
    """Read several devices' tokens, by device and id: all that are usable, and of the others those named."""
    found: dict[str, dict[str, KnownToken]] = {device: {} for device in devices}
    for row in _ALL_KNOWN.all(connection, devices=devices, jtis=jtis):
        token = found[row.device].get(row.jti)
        if token is None:
            token = found[row.device][row.jti] = KnownToken(**dict(zip(_KNOWN, row, strict=False)), limits=[])
        token.limits.append(KnownLimit(*row[len(_KNOWN) :]))
    return found


def supersede_all(connection: sa.Connection, jtis: Collection[str]) -> None:
    """Note that these tokens are no longer usable."""
    if jtis:
        _SUPERSEDE.all(connection, jtis=jtis)


def just_issued(issued: Issued) -> KnownToken:
    """A token that was just issued, as it will be read."""
    row = {
        **row_of(issued),
        "limits": [KnownLimit(*(each[name] for name in LIMIT)) for each in limit_rows_of(issued)],
    }
    return KnownToken(*(row[name] for name in KnownToken._fields))


class Exposed(NamedTuple):
    """What is exposed of some licenses: by license and meter in all, and by ledger (device, epoch) of it."""

    in_all: dict[tuple[str, Meter], int]
    by_ledger: dict[tuple[str, str], dict[tuple[str, Meter], int]]


def read_exposed(connection: sa.Connection, licenses: Collection[str], devices: Collection[str]) -> Exposed:
    """Read what is exposed of licenses, and the part in it of some devices' ledgers."""
    summed = _EXPOSED.all(connection, licenses=licenses)
    in_all = {(row.license, (row.model, row.unit)): row.units for row in summed}
    by_ledger: dict[tuple[str, str], dict[tuple[str, Meter], int]] = {}
    for row in _EXPOSURES.all(connection, devices=devices):
        ledger = by_ledger.setdefault((row.device, row.epoch), {})
        ledger[row.license, (row.model, row.unit)] = row.units
    return Exposed(in_all, by_ledger)


def replace_exposures(
    connection: sa.Connection, ledgers: Collection[tuple[str, str]], rows: Sequence[dict[str, Any]]
) -> None:
    """Store anew what usable tokens let ledgers (device, epoch) reach."""
    if ledgers:
        _CLEAR.each(connection, [{"of_device": device, "of_epoch": epoch} for device, epoch in ledgers])
        insert_all(connection, exposures, rows)
