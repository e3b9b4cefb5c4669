"""What is known of the devices of a group of requests: read at once, and kept up to date while they are taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from licensing_server.audit_log import store as audit_log
from licensing_server.catalog import store as catalog
from licensing_server.catalog.store import Model
from licensing_server.database import Connection
from licensing_server.devices import decision_store, group_store, ledger_store, revocation_store
from licensing_server.devices import store as device_store
from licensing_server.devices.group_store import Exposed, KnownToken
from licensing_server.devices.ledger_store import Head
from licensing_server.devices.store import Device
from licensing_server.licenses import service as licenses
from licensing_server.licenses import store as license_store
from licensing_server.licenses.store import Grant, License
from licensing_server.usage import store
from licensing_server.usage.opening import Opened
from meterkit.errors import MeterkitError
from meterkit.ledger import Total
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.receipts import read_own

UnitsKey = tuple[str, Meter, int]  # of a license, in all (0) or since a period began


@dataclass(slots=True, kw_only=True)
class Pools:
    """What is accepted of licenses, and exposed: as the database says, and with what this group adds to it."""

    accepted: dict[UnitsKey, Total] = field(default_factory=dict)
    exposed: Exposed = field(default_factory=lambda: Exposed({}, {}))

    def accepted_units(self, key: UnitsKey) -> int:
        """What counts against a pool so far."""
        return sum(self.accepted.get(key, Total()))

    def add(self, added: Mapping[UnitsKey, Total]) -> None:
        """Count units that are accepted."""
        for key, total in added.items():
            self.accepted[key] = self.accepted.get(key, Total()).plus(*total)

    def exposed_elsewhere(self, license_id: str, meter: Meter, ledger: tuple[str, str]) -> int:
        """The exposure of a license on one meter, but for one ledger."""
        key = (license_id, meter)
        return self.exposed.in_all.get(key, 0) - self.exposed.by_ledger.get(ledger, {}).get(key, 0)

    def expose(self, ledger: tuple[str, str], reach: dict[tuple[str, Meter], int]) -> None:
        """Note what a ledger's tokens let it reach from now on."""
        for key, units in self.exposed.by_ledger.get(ledger, {}).items():
            self.exposed.in_all[key] = self.exposed.in_all.get(key, 0) - units
        for key, units in reach.items():
            self.exposed.in_all[key] = self.exposed.in_all.get(key, 0) + units
        self.exposed.by_ledger[ledger] = reach


@dataclass(slots=True, kw_only=True)
class Known:
    """Everything that is asked of the database to take a group of plain requests."""

    devices: dict[str, Device]
    tips: dict[str, list[Head]]
    checkpoints: set[tuple[str, Position]]
    tokens: dict[str, dict[str, KnownToken]]
    licenses: dict[str, License]
    models: dict[str, dict[str, Model]]
    starts: dict[str, Callable[[int], int]]
    pools: Pools
    written_off: set[str]
    revoked: dict[str, int]
    open_kinds: set[tuple[str, str, str]]
    decisions: int
    newest_revocations: tuple[int, str | None]

    def has_pools(self) -> bool:
        """Whether any of these devices shares what it may use with others."""
        return any(grant.pool_units is not None for each in self.licenses.values() for grant in each.grants)

    def is_current(self, connection: Connection) -> bool:
        """Whether what was judged by is still so, but for pools: no decision was logged since, and no device moved
        on.
        """
        if audit_log.count(connection) != self.decisions:
            return False
        known = {device.id: device.revision for device in self.devices.values()}
        return device_store.read_revisions(connection, known) == known

    def by_period(self, license_id: str, meter: Meter) -> bool:
        """Whether a license's pool on a meter is filled anew in each period."""
        return any(counts_by_period(grant) for grant in self.licenses[license_id].grants if grant.meter == meter)


def receipt_position(opened: Opened) -> Position | None:
    """Where the newest receipt stands that the device says it has; None without one, or if it cannot be read."""
    text = opened.batches[0].batch.has.receipt
    try:
        return read_own(text).position if text else None
    except MeterkitError:
        return None


def read(connection: Connection, group: Sequence[Opened]) -> Known:
    """Read it, in as many statements for a group as for one request."""
    ids = [each.device for each in group]
    devices = device_store.find_all(connection, ids)
    jtis = {jti for each in group for jti in _named_tokens(each)}
    tokens = group_store.read_all_known(connection, ids, jtis)
    tips: dict[str, list[Head]] = {device: [] for device in ids}
    for head in ledger_store.read_all_tips(connection, ids):
        tips[head.chain.device].append(head)
    named = {device.license for device in devices.values() if device.license is not None}
    named |= {each.license for known in tokens.values() for each in known.values()}
    found = license_store.find_all(connection, sorted(named))
    subjects = [*ids, *named, *(jti for known in tokens.values() for jti in known)]
    places = {(each.device, position) for each in group if (position := receipt_position(each)) is not None}
    return Known(
        devices=devices,
        tips=tips,
        checkpoints=ledger_store.known_positions(connection, places) if places else set(),
        tokens=tokens,
        licenses=found,
        models=_models(connection, found),
        starts=_starts(connection, found),
        pools=_pools(connection, found, ids),
        written_off=decision_store.devices_with_write_offs(connection, ids),
        revoked=revocation_store.read_instants(connection, subjects),
        decisions=audit_log.count(connection),
        open_kinds=store.read_open_kinds(connection, ids),
        newest_revocations=revocation_store.newest(connection),
    )


def _named_tokens(opened: Opened) -> set[str]:
    entries = [entry for each in opened.batches for entry in each.entries]
    named = {entry.claims["token"] for entry in entries if entry.claims["kind"] == "usage"}
    named = named.union(*(each.run.tokens for each in opened.batches if each.run is not None))
    return named | {entry.claims["jti"] for entry in entries if entry.claims["kind"] == "token"}


def _models(connection: Connection, found: dict[str, License]) -> dict[str, dict[str, Model]]:
    names: dict[str, set[str]] = {}
    for each in found.values():
        names.setdefault(each.product, set()).update(grant.model for grant in each.grants)
    return {product: catalog.read_models(connection, product, sorted(models)) for product, models in names.items()}


def _starts(connection: Connection, found: dict[str, License]) -> dict[str, Callable[[int], int]]:
    """Of licenses whose pools count by period: what says when the period of an instant began."""
    return {
        license_id: licenses.pool_starts(connection, each)
        for license_id, each in found.items()
        if any(counts_by_period(grant) for grant in each.grants)
    }


def counts_by_period(grant: Grant) -> bool:
    """Whether a grant's pool is filled anew in each period."""
    return grant.pool_units is not None and grant.pool_per == "period"


def _pools(connection: Connection, found: dict[str, License], ids: list[str]) -> Pools:
    pooled = sorted(
        each.id for each in found.values() if any(grant.pool_units is not None for grant in each.grants)
    )
    if not pooled:
        return Pools()
    accepted = license_store.read_units(connection, pooled)
    return Pools(accepted=accepted, exposed=group_store.read_exposed(connection, pooled, ids))
