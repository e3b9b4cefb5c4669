"""What is estimated of devices that are missing when their periods close (reference: `meterkit.estimates`).

All that is asked is asked at once for the missing devices of all the licenses that are billed together. Where
nobody is missing, nothing is asked.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import sums
from licensing_server.database import pieces
from licensing_server.devices.ledger_store import heads
from licensing_server.devices.token_store import token_limits, tokens
from licensing_server.usage.chains import follow
from meterkit import envelopes, estimates, exposure
from meterkit.attribution import Run
from meterkit.canonical import from_bytes
from meterkit.estimates import Estimates, Gap
from meterkit.exposure import Granted, spent
from meterkit.licenses import Meter
from meterkit.limits import TOKEN_BYTES_MAX
from meterkit.receipts import totals_from_claims
from meterkit.terms import Terms
from meterkit.tokens import Token

Exposed = dict[tuple[str, str, Meter], int | None]  # by license, device and meter
_HEAD, _TOKEN, _LIMIT = heads.c, tokens.c, token_limits.c


def read(
    connection: sa.Connection, run: Run, terms: Iterable[Terms], gaps: Mapping[str, Collection[Gap]]
) -> dict[str, Estimates]:
    """Work out the estimates of licenses, of those of which somebody is missing."""
    missing = {license_id: found for license_id, found in gaps.items() if found}
    if not missing:
        return {}
    by_id = {each.license_id: each for each in terms}
    licensed: dict[str, set[str]] = {}
    for license_id, found in missing.items():
        for gap in found:
            licensed.setdefault(gap.device, set()).add(license_id)
    counted: dict[Any, int] = {}
    exposed: Exposed = {}
    for devices in pieces(licensed):
        ids = sorted(set().union(*(licensed[device] for device in devices)))
        counted |= sums.of_devices(connection, run, [by_id[license_id] for license_id in ids], devices)
        exposed |= exposures(connection, run, ids, devices)
    return {
        license_id: estimates.estimate(list(found), _own(counted, license_id), _own(exposed, license_id))
        for license_id, found in missing.items()
    }


def _own(named: Mapping[Any, Any], license_id: str) -> dict[Any, Any]:
    """What is said of one license."""
    return {name[1:]: value for name, value in named.items() if name[0] == license_id}


def exposures(connection: sa.Connection, run: Run, license_ids: list[str], devices: list[str]) -> Exposed:
    """The most that devices can still report under licenses, as a run knows it (reference: `meterkit.exposure`).

    Most ledgers have one end, and tokens that are anchored where batches end: the database knows these. The others
    are followed again from their batches. Of both there are no more than one statement may hold.
    """
    rows = list(connection.execute(_usable(run, license_ids, devices)))
    odd = set(connection.execute(_odd(devices)).scalars())
    odd |= {row.device for row in rows if row.anchor_seq and row.at_anchor is None}
    found = _of_plain(row for row in rows if row.device not in odd)
    for device in sorted(odd):
        found.update(_of_odd(connection, run, license_ids, device))
    return found


def _odd(devices: list[str]) -> sa.Select[Any]:
    """The devices whose ledgers have more than one end, or go on where records are gone."""
    ends = sa.func.sum(sa.case((_HEAD.is_tip.is_(True), 1), else_=0))
    founded = sa.func.sum(sa.case((sa.and_(_HEAD.acceptance == 0, _HEAD.seq > 0), 1), else_=0))
    ledgers = sa.select(_HEAD.device).where(_HEAD.device.in_(devices)).group_by(_HEAD.device, _HEAD.epoch)
    return ledgers.having(sa.or_(ends > 1, founded > 0))


def _usable(run: Run, license_ids: list[str], devices: list[str]) -> sa.Select[Any]:
    """The tokens that the run knows as usable, meter by meter, with what was accepted at anchor and end."""
    known = sa.and_(_HEAD.device.in_(devices), _HEAD.acceptance <= run.acceptance_max)
    last = sa.select(_HEAD.device, _HEAD.epoch, sa.func.max(_HEAD.seq).label("seq"))
    newest = last.where(known).group_by(_HEAD.device, _HEAD.epoch).subquery()
    end, anchor = heads.alias("ends"), heads.alias("anchors")
    token = sa.join(tokens, token_limits, _TOKEN.jti == _LIMIT.jti)
    at_end = sa.and_(*(end.c[name] == newest.c[name] for name in ("device", "epoch", "seq")))
    of_token = sa.and_(newest.c.device == _TOKEN.device, newest.c.epoch == _TOKEN.epoch)
    at_anchor = sa.and_(
        *(anchor.c[name] == _TOKEN[name] for name in ("device", "epoch")),
        anchor.c.seq == _TOKEN.anchor_seq,
        anchor.c.head == _TOKEN.anchor_head,
        anchor.c.acceptance <= run.acceptance_max,
    )
    return (
        sa.select(
            *(_TOKEN[name] for name in ("license", "device", "epoch", "serial", "anchor_seq")),
            *(_LIMIT.model, _LIMIT.unit, _LIMIT.units_max, _LIMIT.flagged),
            anchor.c.totals.label("at_anchor"),
            end.c.totals.label("at_end"),
            sa.func.coalesce(end.c.last_token_serial, 0).label("installed"),
        )
        .select_from(token.outerjoin(newest, of_token).outerjoin(end, at_end).outerjoin(anchor, at_anchor))
        .where(_TOKEN.device.in_(devices), _TOKEN.license.in_(license_ids), _TOKEN.iat < run.cut_off)
        .where(_TOKEN.serial >= sa.func.coalesce(end.c.last_token_serial, 0))
    )


def _of_plain(rows: Iterable[Any]) -> Exposed:
    ledgers: dict[tuple[str, str, str, Meter], list[Any]] = {}
    for row in rows:
        ledgers.setdefault((row.license, row.device, row.epoch, (row.model, row.unit)), []).append(row)
    found: Exposed = {}
    for (license_id, device, _, meter), own in ledgers.items():
        name = (license_id, device, meter)
        ends = [_spent(own[0].at_end, meter)]
        most = exposure.beyond((_granted(row, meter) for row in own), own[0].installed, ends)
        found[name] = exposure.add(found.get(name, 0), most)
    return found


def _granted(row: Any, meter: Meter) -> Granted:
    units_max = None if row.flagged else row.units_max
    return Granted(serial=row.serial, at_anchor=_spent(row.at_anchor, meter), units_max=units_max)


def _spent(totals: Any, meter: Meter) -> int:
    return spent(totals_from_claims(totals or []).get(meter))


def _of_odd(
    connection: sa.Connection, run: Run, license_ids: list[str], device: str
) -> Iterator[tuple[tuple[str, str, Meter], int | None]]:
    replay = follow(connection, device, run.acceptance_max)
    chosen = sa.select(_TOKEN.body).where(_TOKEN.device == device, _TOKEN.license.in_(license_ids))
    by_license: dict[str, list[Token]] = {}
    for token in map(_open, connection.execute(chosen).scalars()):
        by_license.setdefault(token.license_id, []).append(token)
    for license_id, own in by_license.items():
        for meter, most in exposure.of_device(own, replay, run).items():
            yield (license_id, device, meter), most


def _open(text: str) -> Token:
    """Read a token that this server has signed."""
    payload = envelopes.unverified_parts(envelopes.TOKEN, text).payload
    return Token.from_claims(from_bytes(payload, bytes_max=TOKEN_BYTES_MAX))
