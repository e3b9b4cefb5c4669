"""Issuing one token: within the license's places, pools and end, anchored where the ledger is accepted."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from licensing_server.catalog import store as catalog
from licensing_server.catalog.store import Model
from licensing_server.database import Connection
from licensing_server.devices import decision_store, ledger_store, revocation_store, token_store
from licensing_server.devices.store import Device
from licensing_server.licenses import service as licenses
from licensing_server.licenses import store as license_store
from licensing_server.licenses.store import Grant, License
from licensing_server.server import Server
from meterkit import envelopes, limits
from meterkit.canonical import from_bytes
from meterkit.errors import ServiceError
from meterkit.exposure import spent
from meterkit.ledger import Total
from meterkit.licenses import Meter, ModelTerms, token_limit
from meterkit.positions import Position
from meterkit.tokens import Token

REUSE_S = 3_600  # a reply asked for again within this time brings the same token
_SERIAL_BELIEVED_MAX = limits.INTEGER_MAX // 2
_OWN_TO_EACH = ("jti", "iat", "nbf", "exp", "serial", "time_floor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Where a token is anchored: the position, whether it is accepted, and what is accepted up to it.

    `ahead` is the most that may have been used beyond that, by license, up to a position not accepted yet.
    """

    position: Position
    accepted: bool
    totals: Mapping[Meter, Total]
    ahead: Mapping[tuple[str, Meter], int] = field(default_factory=dict)

    def spent(self, meter: Meter) -> int:
        """The most that may have been used of a meter up to here, under whatever license."""
        ahead = max((units for (_, each), units in self.ahead.items() if each == meter), default=0)
        return spent(self.totals.get(meter)) + ahead


def believed_serial(told: int) -> int:
    """The serial that a device says it holds, as far as it could be one."""
    return min(told, _SERIAL_BELIEVED_MAX)


def issue(
    server: Server, connection: Connection, *, device: Device, license_: License, anchor: Anchor, now: int
) -> tuple[str, int]:
    """Issue a token to a device; gives its text and its serial, which the caller stores with the device.

    Whether the license is active, and the device neither held nor revoked, is the caller's question. The
    license must have been read with `lock`.

    Raises:
        ServiceError: `code_used_up` if all places are taken, `license_inactive` if nothing is left of its
            time, `signing_unavailable`.
    """
    taken = token_store.places_taken(connection, license_.id, now, but=device.id)
    if taken >= license_.devices_max:
        raise ServiceError("code_used_up", f"{license_.devices_max} places")
    known = catalog.read_models(connection, license_.product, [grant.model for grant in license_.grants])
    left = {
        grant.meter: _pool_left(connection, license_, grant, device.id, anchor, now=now)
        for grant in license_.grants
    }
    offered = compose(server, device=device, license_=license_, anchor=anchor, models=known, left=left, now=now)
    again = _same_as_last(connection, device, offered)
    if again is not None:
        return again, device.serial
    issued = seal(server, offered, license_, anchor)
    token_store.insert(connection, [issued])
    refresh(connection, device.id, anchor.position.epoch)
    return issued.text, offered.serial


def compose(
    server: Server,
    *,
    device: Device,
    license_: License,
    anchor: Anchor,
    models: Mapping[str, Model],
    left: Mapping[Meter, int | None],
    now: int,
) -> Token:
    """Put together what a token issued now says; `left` is what is left of each meter's pool, None without one.

    Raises:
        ServiceError: `license_inactive` if nothing is left of its time, `signing_unavailable` too far ahead.
    """
    nbf, exp, grace_s = window(license_, now)
    return Token(
        issuer=server.issuer,
        product=license_.product,
        device=device.id,
        jti=server.make_id("tok"),
        iat=now,
        nbf=nbf,
        exp=exp,
        serial=max(device.serial, device.serial_seen, now) + 1,
        license_id=license_.id,
        license_ends=license_.ends_at,
        grace_s=grace_s,
        anchor=anchor.position,
        time_floor=None,
        models=tuple(
            ModelTerms(
                name=grant.model,
                unit=grant.unit,
                axis=models[grant.model].axis,
                limit=token_limit(grant.token_units_max, left[grant.meter]),
                sha256=models[grant.model].sha256,
            )
            for grant in license_.grants
        ),
        policy=license_.policy,
        features=license_.features,
    )


def seal(server: Server, token: Token, license_: License, anchor: Anchor) -> token_store.Issued:
    """Sign a token, and note beside it what was accepted at its anchor."""
    text = server.sign(envelopes.TOKEN, token.to_claims())
    at_anchor = {grant.meter: anchor.spent(grant.meter) for grant in license_.grants}
    return token_store.Issued(token=token, text=text, anchor_accepted=anchor.accepted, at_anchor=at_anchor)


def window(license_: License, now: int) -> tuple[int, int, int]:
    """When a token issued now begins and ends, and its grace: never beyond the license's end.

    Where time runs short, the life is shortened first, down to the least there is, and then the grace.
    """
    nbf = max(now, license_.starts_at)
    exp, grace_s = nbf + license_.token_life_s, license_.grace_s
    if license_.ends_at is not None:
        left_s = license_.ends_at - nbf
        if left_s < 1:
            raise ServiceError("license_inactive", "nothing is left of its time")
        grace_s = min(grace_s, max(0, left_s - limits.TOKEN_LIFE_MIN_S))
        exp = min(exp, license_.ends_at - grace_s)
    if exp + grace_s > limits.TIME_MAX_S:
        raise ServiceError("signing_unavailable", "the clock lies too far ahead")
    return nbf, exp, grace_s


def _pool_left(
    connection: Connection, license_: License, grant: Grant, device: str, anchor: Anchor, *, now: int
) -> int | None:
    """Pool − accepted − Σ exposure (DESIGN §4), but for what this ledger may reach beyond the anchor already."""
    if grant.pool_units is None:
        return None
    period = 0 if grant.pool_per == "license" else licenses.pool_starts(connection, license_)(now)
    accepted = license_store.accepted_units(connection, license_.id, grant.meter, period)
    ledger = (device, anchor.position.epoch)
    exposed = token_store.exposed_units(connection, license_.id, grant.meter, but=ledger)
    return grant.pool_units - accepted - exposed - anchor.ahead.get((license_.id, grant.meter), 0)


def _same_as_last(connection: Connection, device: Device, token: Token) -> str | None:
    """The last token given, if the device may not have got it and it still says what a new one would."""
    if device.serial <= device.serial_seen:
        return None
    last = token_store.find_serial(connection, device.id, device.serial)
    if last is None or not token.iat - REUSE_S <= last.iat <= token.iat:
        return None
    if revocation_store.is_revoked(connection, "token", last.jti):
        return None
    if last.serial <= decision_store.written_off_serial(connection, device.id, last.epoch):
        return None
    body: str = last.body
    claims = from_bytes(
        envelopes.unverified_parts(envelopes.TOKEN, body).payload, bytes_max=limits.TOKEN_BYTES_MAX
    )
    offered = token.to_claims()
    same = all(claims[name] == value for name, value in offered.items() if name not in _OWN_TO_EACH)
    return body if same and claims["exp"] <= offered["exp"] else None


def refresh(connection: Connection, device: str, epoch: str) -> None:
    """Work out anew what the usable tokens let one ledger reach."""
    tips = ledger_store.read_tips(connection, device, epoch)
    token_store.refresh_exposures(connection, device, epoch, [tip.chain.totals for tip in tips])
