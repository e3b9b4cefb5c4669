"""Storing what was judged: batches, records, checkpoints, exceptions, and what they change elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, next_number
from licensing_server.devices import decision_store, issue, ledger_store, revocation_store, token_store
from licensing_server.licenses import service as licenses
from licensing_server.licenses import store as license_store
from licensing_server.licenses.store import License
from licensing_server.server import Server
from licensing_server.usage import gone_store, judging, records, repeats, rollbacks, rollups, store
from licensing_server.usage.branches import Adopted, Taken, View
from licensing_server.usage.missing import Missing, shows_a_clone
from licensing_server.usage.records import Finding, IssuedToken
from licensing_server.webhook_endpoints import outbox
from meterkit import limits
from meterkit.ledger import Total, verify_chain
from meterkit.licenses import Meter
from meterkit.positions import Position


def store_all(server: Server, connection: Connection, view: View, license_: License | None, *, now: int) -> bool:
    """Store everything that a request adds, and tell whether it shows a clone. It does not commit."""
    _settle_late_anchors(connection, view)
    for adopted in view.adopted:
        _store_adopted(server, connection, adopted, now)
    numbers: dict[int, int] = {}
    for taken in view.taken:
        numbers[taken.acceptance] = next_number(connection, store.ACCEPTANCE)
        _store_batch(connection, taken, numbers, now)
        if taken.entries:
            _store_records(server, connection, taken, numbers[taken.acceptance], now)
    for head in view.heads.values():
        numbered = replace(head, acceptance=numbers.get(head.acceptance, head.acceptance))
        ledger_store.put(connection, numbered)
    brought = {taken.batch.epoch: numbers[taken.acceptance] for taken in view.taken if taken.entries}
    for epoch in sorted({taken.batch.epoch for taken in view.taken}):
        if epoch in brought:  # a ledger that was written off lives
            number = brought[epoch]
            decision_store.reverse_write_offs(connection, view.device, epoch, acceptance=number, now=now)
        _settle_anchors(connection, view, epoch)
        issue.refresh(connection, view.device, epoch)
    for taken in view.taken:
        if taken.filled is not None:
            _take_back_gone(connection, view.device, taken.filled, now)
    joined = _joined(view)
    forking = [taken for taken in view.taken if taken.fork_at is not None and taken.acceptance not in joined]
    for taken in forking:
        finding = records.fork(taken, numbers[taken.acceptance], license_.id if license_ else None)
        open_exception(server, connection, (view.device, taken.batch.epoch), finding, now)
    return _shows_a_clone(connection, view.device, [each for each in view.taken if each.acceptance not in joined])


def _shows_a_clone(connection: Connection, device: str, taken: Sequence[Taken]) -> bool:
    if not any(each.is_parted for each in taken):
        return False
    missing: dict[str, list[Missing]] = {}
    for gone in gone_store.read(connection, devices=[device]):
        missing.setdefault(gone.position.epoch, []).append(Missing(gone.first, gone.position.seq))
    return any(shows_a_clone(each, missing.get(each.batch.epoch, ())) for each in taken)


def _joined(view: View) -> set[int]:
    """What of a request looked like a fork, until it led up to where records had been gone."""
    parents = {taken.acceptance: taken.parent for taken in view.taken}
    found: set[int] = set()
    for taken in view.taken:
        number = taken.parent if taken.filled is not None else None
        while number is not None and number in parents:
            found.add(number)
            number = parents[number]
    return found


def _take_back_gone(connection: Connection, device: str, filled: Position, now: int) -> None:
    """What a receipt stood for has come after all: from now on its records count, and the receipt does not."""
    for gone in gone_store.read(connection, devices=[device]):
        if gone.position == filled:
            add_units(connection, gone.rows(-1))
            gone_store.take_back(connection, gone, who=audit_log.SERVER, now=now)


def _store_adopted(server: Server, connection: Connection, adopted: Adopted, now: int) -> None:
    """Keep a forgotten receipt as the proof that it is, and count what is gone as accepted, as it was once."""
    receipt, batch = adopted.receipt, adopted.batch
    ledger_store.put_receipt(connection, receipt.device, receipt.position, batch.has.receipt or "", receipt.iat)
    rows = [
        {
            "license": batch.license_id,
            "model": model,
            "unit": unit,
            "units": total.units,
            "unsettled": total.unsettled,
            "service_at": receipt.iat,
        }
        for (model, unit), total in adopted.gone.items()
    ]
    add_units(connection, rows)
    open_exception(server, connection, (receipt.device, batch.epoch), rollbacks.gone(adopted), now)


def _store_batch(connection: Connection, taken: Taken, numbers: Mapping[int, int], now: int) -> None:
    batch = taken.batch
    row = store.batch_row(batch, device=taken.after.device)
    kept = {"received_at": now, "body": store.pack(taken.text)}
    parent = taken.parent if taken.parent is None else numbers.get(taken.parent, taken.parent)
    first_new = taken.entries[0].seq if taken.entries else batch.seq_to + 1
    placed = {"acceptance": numbers[taken.acceptance], "parent": parent, "first_new": first_new}
    store.insert_batches(connection, [{**row, **kept, **placed}])


def _store_records(server: Server, connection: Connection, taken: Taken, acceptance: int, now: int) -> None:
    device, epoch = taken.after.device, taken.batch.epoch
    known = known_tokens(connection, (device, epoch), sorted(records.token_ids(taken)))
    made = records.attribute(taken, known, received_at=now)
    findings = list(made.findings)
    if taken.is_parted:
        found = repeats.note(made.rows, taken, acceptance, _known_batches(connection, device, epoch))
        findings += [found] if found else []
    rows = [{**row, "acceptance": acceptance} for row in made.rows]
    store.insert_records(connection, rows)
    rollups.add(connection, [rollups.Brought((device, epoch), acceptance, records.plain_uses(rows))])
    counted = [row for row in made.rows if not row["quarantined"]]
    add_units(connection, [{**row, "units": row["units"] - row["repeated"]} for row in counted])
    if made.serial is not None:
        token_store.supersede(connection, device, epoch, made.serial)
    if taken.is_reset:
        findings.append(records.reset(taken))
    for finding in findings:
        open_exception(server, connection, (device, epoch), finding, now)


def _known_batches(connection: Connection, device: str, epoch: str) -> repeats.Known:
    placed = (repeats.Placed(**row._mapping) for row in store.read_placed(connection, device, epoch))  # noqa: SLF001  SQLAlchemy's public name
    return repeats.Known(
        placed={each.acceptance: each for each in placed},
        read=partial(store.read_batches, connection, device),
        standing=partial(store.read_standing, connection, device),
    )


def known_tokens(connection: Connection, ledger: tuple[str, str], jtis: list[str]) -> dict[str, IssuedToken]:
    """Those of the named tokens that were issued to the device: what they allow its ledger, and whether still."""
    device, _ = ledger
    rows = token_store.read_known(connection, device, jtis)
    reach = token_store.read_reach(connection, ledger, jtis)
    named = [device, *jtis, *{row.license for row in rows.values()}]
    revoked = revocation_store.read_instants(connection, named)
    return {
        jti: IssuedToken(
            license=row.license,
            serial=row.serial,
            iat=row.iat,
            valid_from=row.nbf,
            valid_until=limits.INTEGER_MAX if row.runs_on else row.exp + row.grace_s,
            revoked_at=min(
                (revoked[each] for each in (device, jti, row.license) if each in revoked), default=None
            ),
            reach=reach.get(jti, {}),
        )
        for jti, row in rows.items()
    }


def add_units(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Raise what is accepted for each license: in all, and per period where a pool counts by it."""
    added: dict[tuple[str, int], dict[Meter, Total]] = {}
    clocks: dict[str, tuple[frozenset[Meter], Callable[[int], int]] | None] = {}
    for row in rows:
        license_id, meter = row["license"], (row["model"], row["unit"])
        if license_id not in clocks:
            clocks[license_id] = period_clock(connection, license_id)
        clock = clocks[license_id]
        periods = [0, clock[1](row["service_at"])] if clock is not None and meter in clock[0] else [0]
        for period in periods:
            totals = added.setdefault((license_id, period), {})
            totals[meter] = totals.get(meter, Total()).plus(row["units"], row["unsettled"])
    for (license_id, period), totals in sorted(added.items()):
        license_store.add_units(connection, license_id, period, totals)


def period_clock(
    connection: Connection, license_id: str, *, lock: bool = True
) -> tuple[frozenset[Meter], Callable[[int], int]] | None:
    """The meters of a license whose pools count by period, and what says when the period of an instant began."""
    license_ = licenses.find(connection, license_id, lock=lock)
    meters = frozenset(
        grant.meter for grant in license_.grants if grant.pool_units is not None and grant.pool_per == "period"
    )
    return (meters, licenses.pool_starts(connection, license_)) if meters else None


def _settle_late_anchors(connection: Connection, view: View) -> None:
    """Note what had been accepted at anchors inside of batches: who issued their tokens saw only ends."""
    stored = judging.view_of(connection, view.device)
    for epoch in sorted({taken.batch.epoch for taken in view.taken}):
        for jti, anchor in token_store.waiting_anchors(connection, view.device, epoch):
            head = stored.chain_at(anchor)
            if head is not None:
                token_store.accept_anchor(connection, jti, head.chain.totals)


def _settle_anchors(connection: Connection, view: View, epoch: str) -> None:
    """Note what had been accepted at anchors that were ahead of it, now that their records have come."""
    for jti, anchor in token_store.waiting_anchors(connection, view.device, epoch):
        for taken in view.taken:
            at = next((n for n, each in enumerate(taken.entries, 1) if each.hash == anchor.head), None)
            if at is not None and taken.batch.epoch == epoch:
                chain, _ = verify_chain(taken.before, [each.body for each in taken.entries[:at]])
                token_store.accept_anchor(connection, jti, chain.totals)


def open_exception(
    server: Server, connection: Connection, ledger: tuple[str, str], finding: Finding, now: int
) -> None:
    """Open an exception for a ledger (device, epoch), unless one of its kind is open that says enough."""
    device, epoch = ledger
    if finding.kind in records.ONCE_OPEN and store.has_open_exception(connection, device, epoch, finding.kind):
        return
    row = {
        "id": server.make_id("exc"),
        "kind": finding.kind,
        "device": device,
        "license": finding.license,
        "epoch": epoch,
        "evidence": finding.evidence,
        "state": "open",
        "opened_at": now,
    }
    store.insert_exception(connection, row)
    told = {"exception": row["id"], "kind": finding.kind, "device": device, "license": finding.license}
    outbox.announce(server, connection, "exception.opened", str(row["id"]), told)
