"""Working out every projection anew from what devices signed, and saying what differs (DESIGN §7).

Projections come from three things only: batches, their `received_at`, and what people decided. Tokens are kept as
they were signed; what is noted of them is rebuilt too. What nobody signed stays as it is: what devices said when
they were last heard, and whether a license's rule holds them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, read, write
from licensing_server.devices import service as devices
from licensing_server.devices.store import Device
from licensing_server.pages import Document
from licensing_server.server import Server
from licensing_server.usage import chains, decision_store, gone_store, projection_store, rebuilding, store, taking
from licensing_server.usage.rebuilding import Difference, Found, Rebuilt, Received, Shown
from licensing_server.usage.records import IssuedToken
from meterkit.errors import MeterkitError, TrustError
from meterkit.exchange import open_batch
from meterkit.keys import VerifyKey
from meterkit.ledger import Total
from meterkit.licenses import Meter
from meterkit.limits import INTEGER_MAX
from meterkit.positions import Position
from meterkit.receipts import read_own
from meterkit.replay import Replay

_DEVICES_A_PIECE = 500
_SHOWN_MAX = 1_000  # differences that are named; all are counted


@dataclass(slots=True)
class _Report:
    """What was found, and what could not be put right."""

    counts: Counter[str] = field(default_factory=Counter)
    named: list[Document] = field(default_factory=list)
    devices: int = 0
    left: int = 0

    def add(self, document: Document, *, right: bool) -> None:
        self.counts[document["table"]] += 1
        self.left += not right
        if len(self.named) < _SHOWN_MAX:
            self.named.append(document)

    def to_document(self, *, check: bool) -> Document:
        return {
            "check": check,
            "devices": self.devices,
            "differences": sum(self.counts.values()),
            "tables": dict(sorted(self.counts.items())),
            "left": self.left,
            "items": self.named,
        }


def rebuild(
    server: Server, *, check: bool = False, device: str | None = None, who: str = audit_log.COMMAND
) -> Document:
    """Rebuild the projections of one device, or all, one transaction each; say what differed, and put it right.

    With `check` it only compares. Evidence is never touched: a batch that cannot be followed, a token that does
    not say what is stored, or an exception without ground is told, and left to a person.

    Raises:
        ServiceError: `not_found` for a device.
    """
    work = _Work(server=server, who=None if check else who)
    for device_id in _devices(server, device):
        with _transaction(server, check=check) as connection:
            work.device(connection, device_id)
    with read(server) as connection:
        named = projection_store.license_ids(connection, device)
    for license_id in named:
        with _transaction(server, check=check) as connection:
            work.license(connection, license_id)
    return work.report.to_document(check=check)


def _transaction(server: Server, *, check: bool) -> Any:
    return read(server) if check else write(server)


def _devices(server: Server, device: str | None) -> Iterator[str]:
    if device is not None:
        yield device
        return
    after = None
    while True:
        with read(server) as connection:
            ids = projection_store.device_ids(connection, after, _DEVICES_A_PIECE)
        if not ids:
            return
        yield from ids
        after = ids[-1]


@dataclass(slots=True, kw_only=True)
class _Work:
    """One rebuilding; it puts right what differs if somebody is named who asks for that."""

    server: Server
    who: str | None
    report: _Report = field(default_factory=_Report)

    def device(self, connection: Connection, device_id: str) -> None:
        """Rebuild what is known of a device."""
        self.report.devices += 1
        device = devices.find(connection, device_id)
        if self.who is not None:
            devices.save(connection, device)  # what is judged of it meanwhile is judged anew
        try:
            rebuilt = _replayed(connection, device)
        except MeterkitError as error:
            self.report.add(_told("batches", str(error), [device_id]), right=False)
            return
        found = [
            difference
            for name, rows in projection_store.rebuilt_rows(connection, rebuilt).items()
            for difference in rebuilding.compare(
                name, projection_store.stored_rows(connection, name, device_id), rows
            )
        ]
        opened = self._exceptions(connection, device, rebuilt, found)
        self._settle(connection, ("device.rebuild", device_id), found, Counter(exceptions=opened))

    def _exceptions(
        self, connection: Connection, device: Device, rebuilt: Rebuilt, differences: list[Difference]
    ) -> int:
        """Compare exceptions with what the records give cause for, and how they stand with what was decided.

        One that is missing is opened; one without ground is told and stays: somebody may have decided about it.
        Gives how many were opened, and adds what else differs.
        """
        shown: list[Shown] = []
        for row, decisions in projection_store.exceptions_of(connection, device.id):
            names = ("id", "epoch", "kind", "license", "evidence", "opened_at")
            times = rebuilding.waiting(row.opened_at, row.resolved_at, decisions)
            shown.append(Shown(**{name: getattr(row, name) for name in names}, waiting=times))
            state = rebuilding.decided_state(decisions)
            if state is not None:
                stored = {(row.id,): {name: getattr(row, name) for name in state}}
                differences += rebuilding.compare("exceptions", stored, {(row.id,): state})
        missing, unfounded = rebuilding.compare_found(rebuilt.found, shown)
        for found in missing:
            about = [device.id, found.epoch, found.finding.kind, found.at]
            self.report.add(_told("exceptions", "missing", about), right=self.who is not None)
            if self.who is not None:
                _open(self.server, connection, device, found)
        for own in unfounded:
            self.report.add(_told("exceptions", "unfounded", [own.id]), right=False)
        return len(missing)

    def license(self, connection: Connection, license_id: str) -> None:
        """Add up anew what counts for a license, in all and for its pools' periods; where records are gone, what
        the receipts say that stand for them.
        """
        clock = taking.period_clock(connection, license_id, lock=self.who is not None)
        sums: dict[tuple[Meter, int], Total] = {}
        for meter, at, total in projection_store.counted_units(connection, license_id, by_instant=False):
            sums[meter, at] = total
        gone = [
            ((row["model"], row["unit"]), row["service_at"], Total(row["units"], row["unsettled"]))
            for each in gone_store.read(connection, license_id=license_id)
            for row in each.rows()
        ]
        for meter, _, total in gone:
            sums[meter, 0] = sums.get((meter, 0), Total()).plus(total.units, total.unsettled)
        if clock is not None:
            meters, start = clock
            dated = projection_store.counted_units(connection, license_id, by_instant=True)
            for meter, at, total in (*dated, *gone):
                if meter in meters:
                    name = (meter, start(at))
                    sums[name] = sums.get(name, Total()).plus(total.units, total.unsettled)
        if self.who is not None:
            projection_store.clear_units(connection, license_id)
        stored = projection_store.stored_units(connection, license_id)
        found = rebuilding.compare("license_units", stored, projection_store.rebuilt_units(license_id, sums))
        self._settle(connection, ("license.rebuild", license_id), found, Counter())

    def _settle(
        self, connection: Connection, what: tuple[str, str], found: list[Difference], mended: Counter[str]
    ) -> None:
        """Tell differences, and where they are to be put right, do so and log it."""
        for difference in found:
            right = self.who is not None and projection_store.put_right(connection, difference)
            mended[difference.table] += right
            self.report.add(difference.to_document(), right=right)
        if self.who is not None and mended.total():
            action, subject = what
            body = dict(sorted((+mended).items()))
            audit_log.append(self.server, connection, who=self.who, action=action, subject=subject, body=body)


def _told(table: str, what: str, key: list[Any]) -> Document:
    return {"table": table, "key": key, "what": what, "stored": None, "rebuilt": None}


def _replayed(connection: Connection, device: Device) -> Rebuilt:
    """Follow a device's batches, each by its signature, and what was decided about them."""
    tokens = list(projection_store.known_tokens(connection, device.id))
    known: dict[str, IssuedToken] = {}
    for epoch in sorted({row.epoch for row in tokens}):
        jtis = [row.jti for row in tokens if row.epoch == epoch]
        known |= taking.known_tokens(connection, (device.id, epoch), jtis)
    foundations = map(read_own, chains.foundations(connection, [device.id]))
    rebuilt = Rebuilt(
        device=device.id,
        product=device.product,
        known=known,
        anchors={row.jti: Position(epoch=row.epoch, seq=row.anchor_seq, head=row.anchor_head) for row in tokens},
        foundations={receipt.position: receipt for receipt in foundations},
    )
    _follow(connection, device, rebuilt)
    for each in decision_store.releases(connection, device.id):
        if each.since_run is not None:
            rebuilt.release(each.kind, each.epoch, each.evidence, each.since_run)
    return rebuilt


def _follow(connection: Connection, device: Device, rebuilt: Rebuilt) -> None:
    """Add the batches in order; and dismissals, each where it was decided: what came later was judged by it."""
    find = partial(_own_key, VerifyKey(device.sign_key))  # as auditors judge what was taken, by whatever version
    dismissals = decision_store.dismissals(connection, [device.id], INTEGER_MAX)
    dismissals.sort(key=lambda row: row["acceptance"])
    replay = Replay(device.id)
    for receipt in rebuilt.foundations.values():
        replay.stand_on(receipt)
    for signed in chains.read(connection, [device.id]):
        _, batch = open_batch(signed.text, find)
        while dismissals and dismissals[0]["acceptance"] < signed.acceptance:
            _dismiss(rebuilt, replay, dismissals.pop(0))
        rebuilt.add(
            Received(acceptance=signed.acceptance, received_at=signed.received_at, text=signed.text, batch=batch)
        )
        if dismissals:
            replay.add(batch, acceptance=signed.acceptance, received_at=signed.received_at)
    for row in dismissals:
        _dismiss(rebuilt, replay, row)


def _dismiss(rebuilt: Rebuilt, replay: Replay, row: Document) -> None:
    tip = decision_store.tip_position(row["epoch"], row)
    rebuilt.dismiss(replay.own_records(tip, row["acceptance"]) or (), row["since_run"])


def _own_key(key: VerifyKey, kid: str) -> VerifyKey:
    if kid != key.kid:
        raise TrustError("key_unknown", "another device signed it")
    return key


def _open(server: Server, connection: Connection, device: Device, found: Found) -> None:
    finding = found.finding
    row = {
        "id": server.make_id("exc"),
        "kind": finding.kind,
        "device": device.id,
        "license": finding.license or device.license,
        "epoch": found.epoch,
        "evidence": finding.evidence,
        "state": "open",
        "opened_at": found.at,
    }
    store.insert_exception(connection, row)
