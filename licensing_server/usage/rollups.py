"""What is added up of usage as it comes in: per ledger, license and meter, in each of the license's spans.

A projection of `usage_records`, kept in every transaction that changes them. It holds *plain* records alone: such
as no rule set aside, nobody dismissed, and of which all units count; what is odd is added from the records. A row
tells how far it reaches, in time and in acceptance: whoever may know less than that asks the records too.

A license whose usage is not added up yet (its records are older than these tables) has no rows, and no spans or
such as are one billing run's alone.
"""

import operator
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from licensing_server.database import add_rows, add_to, metadata, pieces, total
from licensing_server.licenses import spans
from licensing_server.licenses.spans import EVER, Cuts, license_spans
from licensing_server.usage.records import Uses
from licensing_server.usage.store import ODD, usage_records
from meterkit.limits import INTEGER_MAX
from meterkit.tuples import NamedTuple

usage_rollups = sa.Table(
    "usage_rollups",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("license", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True),  # of the span
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("unsettled", sa.BigInteger, nullable=False),
    sa.Column("seq_first", sa.BigInteger, nullable=False),
    sa.Column("seq_last", sa.BigInteger, nullable=False),
    sa.Column("service_first", sa.BigInteger, nullable=False),
    sa.Column("service_last", sa.BigInteger, nullable=False),
    sa.Column("acceptance_last", sa.BigInteger, nullable=False),
    sa.Index("rollups_by_license", "license", "start_at"),
)
FEW = 50  # licenses: the records of more are found sooner by reading all
METERED = ("device", "epoch", "license", "model", "unit")
_RECORD, _SPAN = usage_records.c, license_spans.c
_SUMS = {
    "units": total(_RECORD.units),
    "unsettled": total(_RECORD.unsettled),
    "seq_first": sa.func.min(_RECORD.seq),
    "seq_last": sa.func.max(_RECORD.seq),
    "service_first": sa.func.min(_RECORD.service_at),
    "service_last": sa.func.max(_RECORD.service_at),
    "acceptance_last": sa.func.max(_RECORD.acceptance),
}
_ADDED = {"units": "+", "unsettled": "+"} | {
    name: "<" if name.endswith("_first") else ">" for name in _SUMS if name.endswith(("_first", "_last"))
}
_WAYS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "<": min, ">": max}
# The span that holds a record. Written so that databases compare a record with its license's spans in memory: to
# look each one up in the index of their key takes three times as long.
HOLDS = sa.and_(
    _SPAN.license == _RECORD.license, _RECORD.service_at - _SPAN.start_at >= 0, _RECORD.service_at < _SPAN.end_at
)


class Brought(NamedTuple):
    """What a batch brought: its ledger (device, epoch), its number, and what its plain records come to."""

    ledger: tuple[str, str]
    acceptance: int
    uses: Uses


def add(connection: sa.Connection, brought: Sequence[Brought]) -> None:
    """Add what batches brought, in the transaction that stores their records."""
    starts = spans.read(connection, {key[0] for each in brought for key in each.uses})
    sums: dict[tuple[Any, ...], dict[str, int]] = {}
    for (device, epoch), acceptance, uses in brought:
        for (license_id, model, unit, at), used in uses.items():
            if license_id in starts:
                start_at = starts[license_id][bisect_right(starts[license_id], at) - 1]
                key = device, epoch, license_id, model, unit, start_at
                new = dict(zip(_SUMS, (*used, at, at, acceptance), strict=True))
                sums[key] = _both(sums[key], new) if key in sums else new
    rows = [{**dict(zip((*METERED, "start_at"), key, strict=True)), **each} for key, each in sums.items()]
    add_rows(connection, usage_rollups, rows, _ADDED)


def _both(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """What two sums come to, column by column as the database adds them."""
    return {name: _WAYS[sign](one[name], other[name]) for name, sign in _ADDED.items()}


def renew(connection: sa.Connection, device: str, epochs: Iterable[str]) -> None:
    """Add up some ledgers of a device anew, of whose records some are plain no more."""
    for some in pieces(set(epochs)):
        mine = sa.and_(usage_rollups.c.device == device, usage_rollups.c.epoch.in_(some))
        connection.execute(sa.delete(usage_rollups).where(mine))
        records = sa.and_(_RECORD.device == device, _RECORD.epoch.in_(some))
        spans.disown(connection, _SPAN.license.in_(sa.select(_RECORD.license).where(records)))
        _add_up(connection, records)


def added_up(connection: sa.Connection, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What all of a device's records come to, worked out here: for whoever does not believe what is stored."""
    plain = [row for row in rows if not (row["quarantined"] or row["repeated"]) and row["dismissed_run"] is None]
    cuts = spans.read(connection, {row["license"] for row in plain})
    own: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in plain:
        if starts := cuts.get(row["license"]):
            start_at = starts[bisect_right(starts, row["service_at"]) - 1]
            own.setdefault((*(row[name] for name in METERED), start_at), []).append(row)
    for key, held in own.items():
        added = {name: sum(row[name] for row in held) for name in ("units", "unsettled")}
        reach = {
            f"{short}_{end}": pick(row[name] for row in held)
            for short, name in (("seq", "seq"), ("service", "service_at"), ("acceptance", "acceptance"))
            for end, pick in (("first", min), ("last", max))
        }
        del reach["acceptance_first"]
        yield {**dict(zip((*METERED, "start_at"), key, strict=True)), **added, **reach}


def align(connection: sa.Connection, known: Cuts, wanted: Mapping[str, Iterable[int]]) -> None:
    """Let the spans of licenses, which begin as `known`, begin at every one of the `wanted` instants too.

    What was added up across one is added up anew, and what was never added up, for the first time.
    """
    cuts = {each: {EVER, *starts} - set(known.get(each, ())) for each, starts in wanted.items()}
    changed = {each: [*known.get(each, ()), *new] for each, new in cuts.items() if new}
    if not changed:
        return
    spans.put(connection, changed)
    add_up(connection, [each for each in changed if each not in known])
    for each in changed:
        if each in known:
            _divide(connection, each, known[each], sorted(cuts[each]))


def add_up(connection: sa.Connection, license_ids: Collection[str]) -> None:
    """Add up the usage of licenses, none of which is added up yet, in the spans that they have."""
    for some in pieces(license_ids):
        mine = _RECORD.license.in_(some), _SPAN.license.in_(some)
        _add_up(connection, *mine, many=len(some) > FEW)


def _divide(connection: sa.Connection, license_id: str, before: Sequence[int], cuts: Sequence[int]) -> None:
    """Add up anew what lies in spans that were cut, if anything reaches over a cut."""
    table = usage_rollups.c
    start_at = max(start for start in before if start < cuts[0])
    end_at = min((start for start in before if start > cuts[-1]), default=INTEGER_MAX)
    inside = sa.and_(table.license == license_id, table.start_at >= start_at, table.start_at < end_at)
    beyond = sa.select(table.device).where(inside, table.service_last >= cuts[0]).limit(1)
    if connection.execute(beyond).first() is None:
        return
    connection.execute(sa.delete(usage_rollups).where(inside))
    used = sa.and_(_RECORD.license == license_id, _RECORD.service_at >= start_at, _RECORD.service_at < end_at)
    _add_up(connection, used, _SPAN.license == license_id)


def _add_up(connection: sa.Connection, *which: sa.ColumnElement[bool], many: bool = False) -> None:
    """Add some of the plain records to the rows of their spans, where these are not one run's alone."""
    add_to(connection, usage_rollups, _summed(_SPAN.only_run.is_(None), *which), _ADDED, many=many)


def _summed(*which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    key = [*(_RECORD[name] for name in METERED), _SPAN.start_at]
    sums = [column.label(name) for name, column in _SUMS.items()]
    chosen = sa.select(*key, *sums).join_from(usage_records, license_spans, HOLDS).where(sa.not_(ODD), *which)
    return chosen.group_by(*key)
