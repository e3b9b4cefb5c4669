"""Storing what was judged: batches, records, checkpoints, exceptions, and what they change elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from licensing_server.database import Connection, next_number
from licensing_server.devices import issue, ledger_store, token_store
from licensing_server.licenses import service as licenses
from licensing_server.licenses import store as license_store
from licensing_server.licenses.store import License
from licensing_server.server import Server
from licensing_server.usage import records, store
from licensing_server.usage.branches import Taken, View
from licensing_server.usage.records import Finding, IssuedToken
from meterkit.ledger import Total, verify_chain
from meterkit.licenses import Meter

ACCEPTANCE = "acceptance"
_ONCE_OPEN = ("over_limit", "clock")  # one open exception of these per ledger says enough


def store_all(server: Server, connection: Connection, view: View, license_: License | None, *, now: int) -> bool:
    """Store everything that a request adds, and tell whether a fork was among it. It does not commit."""
    numbers: dict[int, int] = {}
    for taken in view.taken:
        numbers[taken.acceptance] = next_number(connection, ACCEPTANCE)
        _store_batch(connection, taken, numbers, now)
        if taken.entries:
            _store_records(server, connection, taken, numbers[taken.acceptance], now)
    for head in view.heads.values():
        numbered = replace(head, acceptance=numbers.get(head.acceptance, head.acceptance))
        ledger_store.put(connection, numbered)
    for epoch in {taken.batch.epoch for taken in view.taken}:
        _settle_anchors(connection, view, epoch)
        issue.refresh(connection, view.device, epoch)
    forked = [taken for taken in view.taken if taken.fork_at is not None]
    for taken in forked:
        _open_exception(server, connection, taken, _fork(taken, numbers, license_), now)
    return bool(forked)


def _store_batch(connection: Connection, taken: Taken, numbers: Mapping[int, int], now: int) -> None:
    batch = taken.batch
    row = store.batch_row(batch, device=taken.after.device, text=taken.text, received_at=now)
    parent = taken.parent if taken.parent is None else numbers.get(taken.parent, taken.parent)
    first_new = taken.entries[0].seq if taken.entries else batch.seq_to + 1
    placed = {"acceptance": numbers[taken.acceptance], "parent": parent, "first_new": first_new}
    store.insert_batch(connection, {**row, **placed})


def _store_records(server: Server, connection: Connection, taken: Taken, acceptance: int, now: int) -> None:
    device, epoch = taken.after.device, taken.batch.epoch
    rows = token_store.read_known(connection, device, sorted(records.token_ids(taken)))
    known = {jti: IssuedToken(license=row.license, serial=row.serial, iat=row.iat) for jti, row in rows.items()}
    made = records.attribute(taken, known, received_at=now)
    store.insert_records(connection, [{**row, "acceptance": acceptance} for row in made.rows])
    _add_units(connection, [row for row in made.rows if not row["quarantined"]])
    if made.serial is not None:
        token_store.supersede(connection, device, epoch, made.serial)
    findings = list(made.findings)
    if taken.is_reset:
        findings.append(_reset(taken))
    for finding in findings:
        once = finding.kind in _ONCE_OPEN
        if not (once and store.has_open_exception(connection, device, epoch, finding.kind)):
            _open_exception(server, connection, taken, finding, now)


def _add_units(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Raise what is accepted for each license: in all, and per period where a pool counts by it."""
    added: dict[tuple[str, int], dict[Meter, Total]] = {}
    clocks: dict[str, tuple[frozenset[Meter], Callable[[int], int]] | None] = {}
    for row in rows:
        license_id, meter = row["license"], (row["model"], row["unit"])
        if license_id not in clocks:
            clocks[license_id] = _period_clock(connection, license_id)
        clock = clocks[license_id]
        periods = [0, clock[1](row["service_at"])] if clock is not None and meter in clock[0] else [0]
        for period in periods:
            totals = added.setdefault((license_id, period), {})
            totals[meter] = totals.get(meter, Total()).plus(row["units"], row["unsettled"])
    for (license_id, period), totals in sorted(added.items()):
        license_store.add_units(connection, license_id, period, totals)


def _period_clock(connection: Connection, license_id: str) -> tuple[frozenset[Meter], Callable[[int], int]] | None:
    license_ = licenses.find(connection, license_id, lock=True)
    meters = frozenset(
        grant.meter for grant in license_.grants if grant.pool_units is not None and grant.pool_per == "period"
    )
    return (meters, licenses.pool_starts(connection, license_)) if meters else None


def _settle_anchors(connection: Connection, view: View, epoch: str) -> None:
    """Note what had been accepted at anchors that were ahead of it, now that their records have come."""
    for jti, anchor in token_store.waiting_anchors(connection, view.device, epoch):
        for taken in view.taken:
            at = next((n for n, each in enumerate(taken.entries, 1) if each.hash == anchor.head), None)
            if at is not None and taken.batch.epoch == epoch:
                chain, _ = verify_chain(taken.before, [each.body for each in taken.entries[:at]])
                token_store.accept_anchor(connection, jti, chain.totals)


def _reset(taken: Taken) -> Finding:
    genesis = taken.entries[0].claims
    evidence = {"previous": genesis["previous"], "lost": genesis["lost"], "genesis": taken.entries[0].hash}
    return Finding(kind="reset", license=taken.batch.license_id, evidence=evidence)


def _fork(taken: Taken, numbers: Mapping[int, int], license_: License | None) -> Finding:
    """The proof of a fork: two heads that one device signed, and where their branches part."""
    evidence = {
        "fork_at": taken.fork_at.to_claims() if taken.fork_at else None,
        "heads": [position.to_claims() for position in (*taken.fork_of, taken.after.position)],
        "acceptance": numbers[taken.acceptance],
    }
    license_id = taken.batch.license_id or (license_.id if license_ else None)
    return Finding(kind="fork", license=license_id, evidence=evidence)


def _open_exception(server: Server, connection: Connection, taken: Taken, finding: Finding, now: int) -> None:
    row = {
        "id": server.make_id("exc"),
        "kind": finding.kind,
        "device": taken.after.device,
        "license": finding.license,
        "epoch": taken.batch.epoch,
        "evidence": finding.evidence,
        "state": "open",
        "opened_at": now,
    }
    store.insert_exception(connection, row)
