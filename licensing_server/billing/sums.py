"""What each period holds, added up by the database (the reference is `meterkit.attribution.gather`).

Most of it was added up when it came in (`usage.rollups`), in spans of which none reaches over a period's bound.
Where a run may not know all that a row holds, that row is added up again from its records; what is odd always is.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import sqlalchemy as sa

from licensing_server.billing import chains
from licensing_server.billing.license_sums import Ledger, LicenseSums
from licensing_server.billing.run_sums import run_sums
from licensing_server.database import pieces, total
from licensing_server.devices.ledger_store import heads
from licensing_server.devices.token_store import tokens
from licensing_server.licenses import spans
from licensing_server.licenses.periods import license_periods
from licensing_server.licenses.spans import license_spans
from licensing_server.usage.rollups import HOLDS, METERED, usage_rollups
from licensing_server.usage.store import HALF, ODD, batches, standing, usage_records
from meterkit.attribution import Calendar, Measured, Record, Run, Slot, Usage, gather
from meterkit.licenses import Meter
from meterkit.plans import Recurring
from meterkit.terms import Terms

_ROWS_AT_ONCE = 2_000
_ROLLED, _RECORD = usage_rollups.c, usage_records.c
_SUMS = (total(_RECORD.units), total(_RECORD.unsettled), sa.func.min(_RECORD.seq), sa.func.max(_RECORD.seq))
_TOGETHER = (_ROLLED.license, _ROLLED.start_at, _ROLLED.model, _ROLLED.unit)
_APART = (*_TOGETHER, _ROLLED.device, _ROLLED.epoch)


def read(connection: sa.Connection, run: Run, terms: Iterable[Terms], *, cited: bool) -> dict[str, Usage]:
    """Add up the usage of licenses, by the limits of one run.

    Where it is `cited`, ledger by ledger: then one that has forked is followed again from its batches, to say
    which branch each record is on. Where not, no ledger is told from another, but for a plan that counts devices.
    """
    found: dict[str, Usage] = {}
    by_id = {each.license_id: each for each in terms}
    for some in pieces(by_id):
        own = [by_id[license_id] for license_id in some]
        apart = [each for each in own if cited or _counts_devices(each)]
        together = [each for each in own if not (cited or _counts_devices(each))]
        found |= _read_apart(connection, run, apart) if apart else {}
        found |= _read_together(connection, run, together) if together else {}
    return found


def _read_together(connection: sa.Connection, run: Run, terms: list[Terms]) -> dict[str, Usage]:
    """The sums of all ledgers, put together by the database."""
    sums = {each.license_id: LicenseSums(each) for each in terms}
    rows = chain(_together(connection, list(sums), run), _own(connection, sums, run))
    for license_id, start_at, model, unit, units, unsettled in rows:
        for held in sums[license_id].holding(start_at, model, unit):
            held.units += units
            held.unsettled += unsettled
    for row in connection.execute(_odd(list(sums), run)):
        for held in sums[row.license].holding(row.start_at, row.model, row.unit):
            held.add_odd(row)
    return {name: each.usage(None, {}) for name, each in sums.items()}


def _read_apart(connection: sa.Connection, run: Run, terms: list[Terms]) -> dict[str, Usage]:
    """The sums of each ledger, and what it is cited by."""
    ids = [each.license_id for each in terms]
    sums = {each.license_id: LicenseSums(each) for each in terms}
    for license_id, start_at, model, unit, device, epoch, units, unsettled, first, last in _apart(
        connection, ids, run
    ):
        for held in sums[license_id].holding(start_at, model, unit):
            held.units += units
            held.unsettled += unsettled
            held.ranges.append((device, epoch, first, last))
    for row in connection.execute(_odd(ids, run)):
        for held in sums[row.license].holding(row.start_at, row.model, row.unit):
            held.add_odd(row)
    heads_of, forked = tips(connection, ids, run)
    devices = _devices(connection, run, [sums[each.license_id] for each in terms if _counts_devices(each)])
    found = {name: each.usage(heads_of, devices.get(name, {})) for name, each in sums.items()}
    records = [record for device in forked for record in chains.records(connection, device, run)]
    if not records:
        return found
    return {each.license_id: _with_branches(found[each.license_id], each, run, records) for each in terms}


def of_devices(
    connection: sa.Connection, run: Run, terms: Iterable[Terms], devices: list[str]
) -> dict[tuple[str, str, Slot, Meter], int]:
    """What each of some devices used of some licenses in each period, by each meter, as a run knows it.

    Of both there are no more than one statement may hold.
    """
    by_id = {each.license_id: LicenseSums(each) for each in terms}
    odd = _odd(list(by_id), run).where(_RECORD.device.in_(devices))
    found: Counter[tuple[str, str, Slot, Meter]] = Counter()
    for row in (*_apart(connection, list(by_id), run, devices), *connection.execute(odd)):
        license_id, start_at, model, unit, device, _, units = row[:7]
        for slot in by_id[license_id].slots(start_at):
            found[license_id, device, slot, (model, unit)] += int(units)
    return found


def _counts_devices(terms: Terms) -> bool:
    charges = (charge for version in terms.versions for charge in version.plan.charges)
    return any(isinstance(charge, Recurring) and charge.per == "device" for charge in charges)


def _with_branches(usage: Usage, terms: Terms, run: Run, records: list[Record]) -> Usage:
    """The same sums, the records of forked ledgers cited branch by branch."""
    own = [record for record in records if record.license_id == terms.license_id]
    followed = gather(Calendar(terms.periods, terms.ends_at), run, own, ()).measured
    devices = {record.device for record in records}
    measured = {}
    for name, held in usage.measured.items():
        others = (cited for cited in held.cited if cited.device not in devices)
        cited = sorted((*others, *followed.get(name, Measured()).cited))
        measured[name] = replace(held, cited=tuple(cited))
    return replace(usage, measured=measured)


def _together(connection: sa.Connection, ids: list[str], run: Run) -> Iterator[Any]:
    """What the run may know of what was added up: places, units, unsettled ones."""
    whole = sa.case((_beyond(run), 0), else_=1)
    sums = (total(whole * _ROLLED.units), total(whole * _ROLLED.unsettled), sa.func.count(), sa.func.sum(whole))
    in_part = False
    chosen = sa.select(*_TOGETHER, *sums).where(_begun(ids, run)).group_by(*_TOGETHER)
    for *row, rows, whole_rows in connection.execute(chosen):
        in_part = in_part or whole_rows < rows
        if whole_rows:
            yield row
    if in_part:
        for *row, _, _ in connection.execute(_parts(ids, run, _TOGETHER)):
            yield row


def _own(connection: sa.Connection, ids: Collection[str], run: Run) -> Iterator[Any]:
    """The same of licenses whose usage is not added up yet, as the run has summed it up for itself."""
    if own := spans.read_of_run(connection, ids, run.number):
        yield from connection.execute(sa.select(run_sums).where(run_sums.c.license.in_(list(own))))


def _apart(connection: sa.Connection, ids: list[str], run: Run, devices: list[str] | None = None) -> Iterator[Any]:
    """The same of each ledger, with its first and last record; of all devices, if none are named."""
    meant = sa.true() if devices is None else _ROLLED.device.in_(devices)
    sums = (_ROLLED.units, _ROLLED.unsettled, _ROLLED.seq_first, _ROLLED.seq_last)
    chosen = sa.select(*_APART, *sums, _beyond(run).label("beyond")).where(_begun(ids, run), meant)
    in_part = False
    for rows in connection.execute(chosen).partitions(_ROWS_AT_ONCE):
        for row in rows:
            if row[-1]:
                in_part = True
            else:
                yield row[:-1]
    if in_part:
        yield from connection.execute(_parts(ids, run, _APART).where(meant))
    if own := spans.read_of_run(connection, ids, run.number):
        mine = sa.true() if devices is None else _RECORD.device.in_(devices)
        yield from connection.execute(_whole(list(own), run).where(mine))


def _begun(ids: list[str], run: Run) -> sa.ColumnElement[bool]:
    """Which rows hold anything that a run may know."""
    return sa.and_(_ROLLED.license.in_(ids), _ROLLED.service_first < run.cut_off)


def _beyond(run: Run) -> sa.ColumnElement[bool]:
    """Whether what was added up is more than a run may know."""
    return sa.or_(_ROLLED.acceptance_last > run.acceptance_max, _ROLLED.service_last >= run.cut_off)


def _parts(ids: list[str], run: Run, place: Sequence[sa.ColumnElement[Any]]) -> sa.Select[Any]:
    """What the run may know a part of, added up from its records."""
    same = sa.and_(*(_RECORD[name] == _ROLLED[name] for name in METERED))
    in_span = _RECORD.service_at.between(_ROLLED.service_first, _ROLLED.service_last)
    return (
        sa.select(*place, *_SUMS)
        .join_from(usage_rollups, usage_records, sa.and_(same, in_span))
        .where(_begun(ids, run), _beyond(run), sa.not_(ODD), known(run))
        .group_by(*place)
    )


def _whole(ids: list[str], run: Run) -> sa.Select[Any]:
    """What the run may know of licenses whose usage is not added up yet, ledger by ledger."""
    place = [license_spans.c[each.name] if each.name == "start_at" else _RECORD[each.name] for each in _APART]
    sums = sa.select(*place, *_SUMS).join_from(usage_records, license_spans, HOLDS)
    return sums.where(_RECORD.license.in_(ids), sa.not_(ODD), known(run)).group_by(*place)


def known(run: Run) -> sa.ColumnElement[bool]:
    """Which records a run may know."""
    return sa.and_(_RECORD.service_at < run.cut_off, _RECORD.acceptance <= run.acceptance_max)


def _odd(ids: list[str], run: Run) -> sa.Select[Any]:
    """What is in no rollup, by the decisions that the run knows."""
    held, both = standing(_RECORD, run.number), _RECORD.units + _RECORD.unsettled
    place = (_RECORD.license, license_spans.c.start_at, _RECORD.model, _RECORD.unit, _RECORD.device, _RECORD.epoch)
    sums = sa.select(
        *place,
        total(sa.case((held.counted, held.units), else_=0)).label("units"),
        total(sa.case((held.counted, _RECORD.unsettled), else_=0)).label("unsettled"),
        total(sa.case((held.aside, both // HALF), else_=0)).label("aside_high"),
        total(sa.case((held.aside, both % HALF), else_=0)).label("aside_low"),
        total(sa.case((held.dismissed, both), else_=0)).label("dismissed"),
        total(sa.case((held.counted, held.repeated), else_=0)).label("repeated"),
        sa.func.min(sa.case((held.counted, _RECORD.seq))).label("seq_first"),
        sa.func.max(sa.case((held.counted, _RECORD.seq))).label("seq_last"),
    )
    joined = sums.join_from(usage_records, license_spans, HOLDS)
    return joined.where(ODD, _RECORD.license.in_(ids), known(run)).group_by(*place)


def tips(connection: sa.Connection, ids: list[str], run: Run) -> tuple[dict[Ledger, str], list[str]]:
    """How far each ledger that used these licenses was accepted at the run: by that its records are cited.

    Gives too the devices whose ledgers have more than one branch, whose records need a closer look.
    """
    own = list(spans.read_of_run(connection, ids, run.number))
    used = sa.union_all(
        sa.select(_ROLLED.device).where(_ROLLED.license.in_(ids)),
        sa.select(_RECORD.device).where(ODD, _RECORD.license.in_(ids)),
        *([sa.select(_RECORD.device).where(_RECORD.license.in_(own))] if own else []),
    )
    chosen = sa.select(heads.c.device, heads.c.epoch, heads.c.head, heads.c.acceptance)
    found: dict[Ledger, str] = {}
    forked, ahead = set(), set()
    for device, epoch, head, acceptance in connection.execute(
        chosen.where(heads.c.is_tip.is_(True), heads.c.device.in_(used))
    ):
        if (device, epoch) in found:
            forked.add(device)
        found[device, epoch] = head
        if acceptance > run.acceptance_max:
            ahead.add(device)
    for some in pieces(ahead - forked):
        found |= _furthest(connection, some, run)
    return found, sorted(forked)


def _furthest(connection: sa.Connection, devices: list[str], run: Run) -> dict[Ledger, str]:
    """How far the ledgers of devices were accepted at a run before the newest batch."""
    batch = batches.c
    accepted = sa.and_(batch.device.in_(devices), batch.acceptance <= run.acceptance_max)
    place = sa.select(batch.device, batch.epoch, sa.func.max(batch.to_seq).label("to_seq"))
    furthest = place.where(accepted).group_by(batch.device, batch.epoch).subquery()
    here = sa.and_(*(batch[name] == furthest.c[name] for name in ("device", "epoch", "to_seq")))
    rows = connection.execute(
        sa.select(batch.device, batch.epoch, batch.head).join(furthest, here).where(accepted)
    )
    return {(row.device, row.epoch): row.head for row in rows}


def _devices(connection: sa.Connection, run: Run, licenses: list[LicenseSums]) -> dict[str, dict[Slot, int]]:
    """How many devices were active in each period: a record of them starts in it, or a token was."""
    active: dict[str, dict[Slot, set[str]]] = {}
    for each in licenses:
        slots = active.setdefault(each.id, {})
        for (slot, _), held in each.sums.items():
            slots.setdefault(slot, set()).update(each[0] for each in held.ranges)
    if active:
        for license_id, interval, start_at, device in connection.execute(_by_token(active, run)):
            active[license_id].setdefault((interval, start_at), set()).add(device)
    return {name: {slot: len(each) for slot, each in slots.items() if each} for name, slots in active.items()}


def _by_token(ids: Iterable[str], run: Run) -> sa.Select[Any]:
    """The devices that a token was issued to, or was valid for, in the periods that the run knows."""
    token, period = tokens.c, license_periods.c
    issued = sa.and_(token.iat >= period.start_at, token.iat < period.end_at)
    valid = sa.and_(token.nbf < period.end_at, token.exp > period.start_at)
    begun = sa.and_(period.start_at <= run.cut_off, period.since_run <= run.number)
    return (
        sa.select(period.license, period.interval, period.start_at, token.device)
        .join_from(tokens, license_periods, sa.and_(period.license == token.license, sa.or_(issued, valid)))
        .where(token.license.in_(list(ids)), token.iat < run.cut_off, begun)
        .distinct()
    )
