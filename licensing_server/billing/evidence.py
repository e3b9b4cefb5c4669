"""Gathering the evidence of an invoice, as it is known at its run (FORMATS, "Evidence")."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import run_store, store
from licensing_server.billing.store import Invoice
from licensing_server.catalog import store as catalog_store
from licensing_server.devices import decision_store as device_decisions
from licensing_server.devices.ledger_store import receipts
from licensing_server.devices.store import devices
from licensing_server.devices.token_store import tokens
from licensing_server.licenses.store import licenses
from licensing_server.server import Server
from licensing_server.usage import chains, decision_store
from licensing_server.usage.store import usage_records
from meterkit import evidence
from meterkit.attribution import Period, Run
from meterkit.canonical import to_bytes
from meterkit.receipts import read_own
from meterkit.terms import Terms

Parts = dict[str, bytes]


def gather(server: Server, connection: sa.Connection, invoice: Invoice, run: Run, terms: Iterable[Terms]) -> Parts:
    """Gather every part but the invoice itself: what was signed as it was signed, what was decided as stored."""
    terms = list(terms)
    ids = [each.license_id for each in terms]
    named = _devices(connection, ids, run)
    return {
        evidence.LICENSES: to_bytes([_license(connection, each) for each in terms]),
        evidence.RUNS: to_bytes(
            [each.to_claims() for each in run_store.runs_of(connection, invoice.customer, run.number)]
        ),
        **_plans(connection, terms),
        **_keyrings(server),
        **{f"earlier/{each.number}.json": each.body for each in store.earlier_documents(connection, invoice)},
        **_activations(connection, named),
        **_batches(connection, named, run),
        **_foundations(connection, named),
        **_tokens(connection, ids),
        evidence.DECISIONS: to_bytes(
            {
                "quarantined": _quarantined(connection, named, run),
                "released": _released(connection, named, run),
                "dismissed": decision_store.dismissals(connection, named, run.number),
                "declared": device_decisions.read_declarations(connection, named, run.number),
            }
        ),
    }


def _devices(connection: sa.Connection, ids: list[str], run: Run) -> list[str]:
    """The devices that used these licenses, or were given a token for them, as known at the run."""
    record, token = usage_records.c, tokens.c
    used = sa.select(record.device).where(record.license.in_(ids), record.acceptance <= run.acceptance_max)
    given = sa.select(token.device).where(token.license.in_(ids), token.iat < run.cut_off)
    return sorted(connection.execute(sa.union(used, given)).scalars())


def _license(connection: sa.Connection, terms: Terms) -> dict[str, Any]:
    starts_at = connection.execute(
        sa.select(licenses.c.starts_at).where(licenses.c.id == terms.license_id)
    ).scalar_one()
    names = ("interval", "nth", "start_at", "end_at", "whole_start_at", "whole_end_at", "since_run")
    return {
        "license": terms.license_id,
        "starts_at": starts_at,
        "ends_at": terms.ends_at,
        "versions": [
            {
                "plan": each.plan_id,
                "version": each.number,
                "starts_at": each.starts_at,
                "since_run": each.since_run,
                **({} if each.correction is None else {"correction": each.correction}),
            }
            for each in terms.versions
        ],
        "periods": [
            {**{name: getattr(period, name) for name in names}, **_cut(period)} for period in terms.periods
        ],
    }


def _cut(period: Period) -> dict[str, Any]:
    """How a period that was cut shorter ended before, for those that were."""
    if period.end_before is None:
        return {}
    return {"cut_run": period.cut_run, "end_before": period.end_before}


def _plans(connection: sa.Connection, terms: list[Terms]) -> Parts:
    names = {(each.plan_id, each.number) for own in terms for each in own.versions}
    return {
        f"plans/{plan_id}.{number}.json": to_bytes(catalog_store.read_version(connection, plan_id, number))
        for plan_id, number in sorted(names)
    }


def _keyrings(server: Server) -> Parts:
    return {f"keyrings/{version}.json": to_bytes(list(document)) for version, document in server.keyrings.items()}


def _activations(connection: sa.Connection, named: list[str]) -> Parts:
    chosen = sa.select(devices.c.id, devices.c.activation_request).where(devices.c.id.in_(named))
    return {f"activations/{row.id}.jws": row.activation_request.encode() for row in connection.execute(chosen)}


def _batches(connection: sa.Connection, named: list[str], run: Run) -> Parts:
    """The batches, when each was received, and the receipts given for where they end."""
    parts: Parts = {}
    noted = []
    ends = set()
    for stored in chains.read(connection, named, run.acceptance_max):
        parts[f"batches/{stored.acceptance:012d}.jws"] = stored.text.encode()
        noted.append({"acceptance": stored.acceptance, "device": stored.device, "received_at": stored.received_at})
        ends.add((stored.device, stored.epoch, stored.to_seq, stored.head))
    table = receipts.c
    for row in connection.execute(sa.select(receipts).where(table.device.in_(named))):
        if (row.device, row.epoch, row.seq, row.head) in ends:
            parts[f"receipts/{row.device}.{row.epoch}.{row.seq}.{row.head}.jws"] = row.body.encode()
    parts[evidence.ACCEPTANCES] = to_bytes(noted)
    return parts


def _foundations(connection: sa.Connection, named: list[str]) -> Parts:
    """The receipts that stand for records that are gone."""
    parts: Parts = {}
    for text in chains.foundations(connection, named):
        own = read_own(text)
        at = own.position
        parts[f"receipts/{own.device}.{at.epoch}.{at.seq}.{at.head}.jws"] = text.encode()
    return parts


def _tokens(connection: sa.Connection, ids: list[str]) -> Parts:
    """The tokens of these licenses, and those that their records name: a call may be older than its license."""
    table, record = tokens.c, usage_records.c
    named = sa.select(record.token).where(record.license.in_(ids))
    chosen = sa.select(table.jti, table.body).where(table.license.in_(ids) | table.jti.in_(named))
    return {f"tokens/{row.jti}.jws": row.body.encode() for row in connection.execute(chosen)}


def _quarantined(connection: sa.Connection, named: list[str], run: Run) -> list[dict[str, Any]]:
    """What the rule set aside, whatever was decided since."""
    table = usage_records.c
    chosen = sa.select(table.device, table.epoch, table.seq, table.hash).where(
        table.device.in_(named), table.quarantined.is_(True), table.acceptance <= run.acceptance_max
    )
    return _ordered(connection, chosen)


def _released(connection: sa.Connection, named: list[str], run: Run) -> list[dict[str, Any]]:
    """What a person let in again, as known at the run."""
    table = usage_records.c
    since_run = table.released_run.label("since_run")
    chosen = sa.select(table.device, table.epoch, table.seq, table.hash, since_run).where(
        table.device.in_(named), table.released_run <= run.number, table.acceptance <= run.acceptance_max
    )
    return _ordered(connection, chosen)


def _ordered(connection: sa.Connection, chosen: sa.Select[Any]) -> list[dict[str, Any]]:
    table = usage_records.c
    ordered = chosen.order_by(table.device, table.epoch, table.seq, table.hash)
    return [dict(row._mapping) for row in connection.execute(ordered)]  # noqa: SLF001  SQLAlchemy's public name
