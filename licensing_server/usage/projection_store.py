"""The projections of one device as they are stored, and putting right what differs."""

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa

from licensing_server.devices import decision_store, token_store
from licensing_server.devices.ledger_store import heads
from licensing_server.devices.ledger_store import to_row as head_to_row
from licensing_server.devices.store import devices
from licensing_server.devices.token_store import exposures, token_limits, tokens
from licensing_server.licenses.store import license_units, licenses
from licensing_server.usage import rollups
from licensing_server.usage.decision_store import exception_decisions
from licensing_server.usage.rebuilding import Difference, Key, Rebuilt, Row
from licensing_server.usage.rollups import usage_rollups
from licensing_server.usage.store import batches, exceptions, standing, usage_records
from meterkit import envelopes
from meterkit.canonical import from_bytes
from meterkit.exposure import spent
from meterkit.ledger import Total
from meterkit.licenses import Meter
from meterkit.limits import TOKEN_BYTES_MAX
from meterkit.tokens import Token

TABLES = {
    table.name: table
    for table in (
        *(batches, heads, usage_records, usage_rollups, tokens, token_limits, exposures, license_units),
        exceptions,
    )
}
_EVIDENCE = ("batches", "tokens", "token_limits", "exceptions")  # their rows are put right, never added or removed


def device_ids(connection: sa.Connection, after: str | None, devices_max: int) -> list[str]:
    """The next devices, in the database's own order."""
    chosen = sa.select(devices.c.id).order_by(devices.c.id).limit(devices_max)
    return list(connection.execute(chosen if after is None else chosen.where(devices.c.id > after)).scalars())


def stored_rows(connection: sa.Connection, name: str, device: str) -> dict[Key, Row]:
    """A table's rows of one device, by key; without what was signed."""
    table = TABLES[name]
    columns = [column for column in table.columns if column.name != "body"]
    chosen = sa.select(*columns)
    if name == "token_limits":
        chosen = chosen.join(tokens, tokens.c.jti == token_limits.c.jti).where(tokens.c.device == device)
    else:
        chosen = chosen.where(table.c.device == device)
    return _by_key(table, (dict(row._mapping) for row in connection.execute(chosen)))  # noqa: SLF001


def _by_key(table: sa.Table, rows: Iterable[Row]) -> dict[Key, Row]:
    keys = [column.name for column in table.primary_key.columns]
    return {tuple(row[name] for name in keys): row for row in rows}


def rebuilt_rows(connection: sa.Connection, rebuilt: Rebuilt) -> dict[str, dict[Key, Row]]:
    """The rows that a device's batches, and the tokens that it was given, come to."""
    found = {
        "batches": _by_key(batches, ({"acceptance": number, **row} for number, row in rebuilt.placements.items())),
        "heads": _by_key(heads, map(head_to_row, rebuilt.ledgers.heads.values())),
        "usage_records": _by_key(usage_records, rebuilt.records),
        "usage_rollups": _by_key(usage_rollups, rollups.added_up(connection, rebuilt.records)),
    }
    return found | _rebuilt_tokens(connection, rebuilt)


def _rebuilt_tokens(connection: sa.Connection, rebuilt: Rebuilt) -> dict[str, dict[Key, Row]]:
    token_rows: list[Row] = []
    limit_rows: list[Row] = []
    chosen = sa.select(tokens).where(tokens.c.device == rebuilt.device)
    limits = stored_rows(connection, "token_limits", rebuilt.device)
    for row in connection.execute(chosen):
        token = _open(row.body)
        accepted, spent = _anchor(row, token, rebuilt)
        superseded = token.serial < rebuilt.installed.get(token.anchor.epoch, 0)
        noted = {"anchor_accepted": accepted, "superseded": superseded}
        own = token_store.to_row(token, row.body)
        del own["body"]
        token_rows.append({**own, **noted})
        for limit in token_store.limits_to_rows(token):
            meter = (limit["model"], limit["unit"])
            stored = limits.get((token.jti, *meter), {}).get("accepted_at_anchor", 0)
            limit_rows.append({**limit, "accepted_at_anchor": stored if spent is None else spent.get(meter, 0)})
    return {
        "tokens": _by_key(tokens, token_rows),
        "token_limits": _by_key(token_limits, limit_rows),
        "exposures": _by_key(exposures, _exposures(connection, rebuilt, token_rows, limit_rows)),
    }


def _open(text: str) -> Token:
    """Read a token that this server signed and kept."""
    payload = envelopes.unverified_parts(envelopes.TOKEN, text).payload
    return Token.from_claims(from_bytes(payload, bytes_max=TOKEN_BYTES_MAX))


def _anchor(row: Any, token: Token, rebuilt: Rebuilt) -> tuple[bool, dict[tuple[str, str], int] | None]:
    """Whether a token's anchor is accepted, and what was spent up to it; None where that stays as it was noted."""
    chain = rebuilt.chain_at(token.anchor)
    if chain is None or not (row.anchor_accepted or rebuilt.is_settled(token.anchor, token.iat)):
        return False, None
    return True, {meter: spent(total) for meter, total in chain.totals.items()}


def _exposures(
    connection: sa.Connection, rebuilt: Rebuilt, token_rows: list[Row], limit_rows: list[Row]
) -> Iterator[Row]:
    """What the usable tokens let the device's ledgers reach."""
    limits: dict[str, list[Row]] = {}
    for limit in limit_rows:
        limits.setdefault(limit["jti"], []).append(limit)
    usable: dict[str, list[SimpleNamespace]] = {}
    for token in token_rows:
        if not token["superseded"]:
            own = usable.setdefault(token["epoch"], [])
            off = decision_store.written_off_serial(connection, rebuilt.device, token["epoch"])
            noted = {**token, "written_off": off}
            own += [SimpleNamespace(**noted, **_but_jti(limit)) for limit in limits.get(token["jti"], [])]
    for epoch, rows in usable.items():
        tips = [tip.chain.totals for tip in rebuilt.ledgers.tips(epoch)]
        for (license_id, model, unit), (units, unbounded) in token_store.reach(rows, tips).items():
            yield {
                "device": rebuilt.device,
                "epoch": epoch,
                "license": license_id,
                "model": model,
                "unit": unit,
                "units": units,
                "unbounded": unbounded,
            }


def _but_jti(limit: Row) -> Row:
    return {name: value for name, value in limit.items() if name != "jti"}


def put_right(connection: sa.Connection, difference: Difference) -> bool:
    """Make a row what it was rebuilt to; tells whether that could be done: no row of evidence comes or goes."""
    table = TABLES[difference.table]
    these = sa.and_(
        *(column == value for column, value in zip(table.primary_key.columns, difference.key, strict=True))
    )
    if difference.stored is not None and difference.rebuilt is not None:
        connection.execute(sa.update(table).where(these).values(difference.rebuilt))
    elif difference.table in _EVIDENCE:
        return False
    elif difference.rebuilt is not None:
        connection.execute(sa.insert(table), [difference.rebuilt])
    else:
        connection.execute(sa.delete(table).where(these))
    return True


def known_tokens(connection: sa.Connection, device: str) -> Iterator[Any]:
    """The tokens that a device was given: what its records may name, and where they are anchored."""
    table = tokens.c
    chosen = sa.select(table.jti, table.epoch, table.anchor_seq, table.anchor_head)
    yield from connection.execute(chosen.where(table.device == device))


def license_ids(connection: sa.Connection, device: str | None) -> list[str]:
    """Every license that units are counted for, or that a device has used."""
    used = sa.select(usage_records.c.license).join(licenses, licenses.c.id == usage_records.c.license)
    if device is not None:
        return sorted(set(connection.execute(used.where(usage_records.c.device == device)).scalars()))
    counted = sa.select(license_units.c.license).join(licenses, licenses.c.id == license_units.c.license)
    return sorted(connection.execute(sa.union(used, counted)).scalars())


def counted_units(
    connection: sa.Connection, license_id: str, *, by_instant: bool
) -> Iterator[tuple[Meter, int, Total]]:
    """What counts for a license, meter by meter: in all (at instant 0), or at each instant of service."""
    record = usage_records.c
    at = record.service_at if by_instant else sa.literal(0).label("service_at")
    group = (record.model, record.unit, *((record.service_at,) if by_instant else ()))
    counted = sa.func.sum(standing(record).units).label("units")
    sums = (counted, sa.func.sum(record.unsettled).label("unsettled"))
    chosen = sa.select(record.model, record.unit, at, *sums)
    chosen = chosen.where(record.license == license_id, standing(record).counted).group_by(*group)
    for row in connection.execute(chosen):
        yield (row.model, row.unit), row.service_at, Total(units=int(row.units), unsettled=int(row.unsettled))


def stored_units(connection: sa.Connection, license_id: str) -> dict[Key, Row]:
    """What is stored as counted for a license; where nothing is left of it, as nothing."""
    table = license_units.c
    rows = connection.execute(sa.select(license_units).where(table.license == license_id))
    found = (dict(row._mapping) for row in rows)  # noqa: SLF001  SQLAlchemy's public name
    return _by_key(license_units, (row for row in found if row["units"] or row["unsettled"]))


def rebuilt_units(license_id: str, sums: Mapping[tuple[Meter, int], Total]) -> dict[Key, Row]:
    """Write what counts for a license, by meter and period."""
    rows = (
        {
            "license": license_id,
            "model": model,
            "unit": unit,
            "period_start": period,
            "units": total.units,
            "unsettled": total.unsettled,
        }
        for ((model, unit), period), total in sums.items()
        if total != Total()
    )
    return _by_key(license_units, rows)


def clear_units(connection: sa.Connection, license_id: str) -> None:
    """Remove rows of which nothing is left: they say what no row says."""
    table = license_units.c
    empty = sa.and_(table.license == license_id, table.units == 0, table.unsettled == 0)
    connection.execute(sa.delete(license_units).where(empty))


def exceptions_of(connection: sa.Connection, device: str) -> list[tuple[Any, list[Any]]]:
    """A device's exceptions, each with what was decided about it, in order."""
    table, decided = exceptions.c, exception_decisions.c
    about = sa.select(exceptions.c.id).where(table.device == device)
    decisions: dict[str, list[Any]] = {}
    chosen = sa.select(exception_decisions).where(decided.exception.in_(about))
    for row in connection.execute(chosen.order_by(decided.exception, decided.number)):
        decisions.setdefault(row.exception, []).append(row)
    rows = connection.execute(sa.select(exceptions).where(table.device == device).order_by(table.opened_at))
    return [(row, decisions.get(row.id, [])) for row in rows]
