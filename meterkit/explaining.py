"""One line of an invoice in words: from its amount back to the records that devices signed (BILLING §6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from meterkit import money
from meterkit.attribution import Calendar, Period, Record, Run
from meterkit.audit import AuditResult
from meterkit.errors import InputError
from meterkit.lines import Line
from meterkit.local_times import UTC, LocalTimes
from meterkit.plans import Charge, Commitment, Recurring, UsageCharge
from meterkit.pricing.steps import exact, steps
from meterkit.recomputing import Recomputation
from meterkit.terms import Terms, Version

_Records = dict[tuple[str, str, str], list[Record]]  # by device, ledger, and head of the branch


def explain(result: AuditResult, place: int, times: LocalTimes = UTC) -> list[str]:
    """Explain one line of an audited document, counted from 1, as the evidence gives it.

    What it says is what was recomputed, not what the document states: where these differ, the audit says so. Its
    times are by the clock of `times`, whose zone it names once.

    Raises:
        InputError: `malformed_members` for a line that the document does not have.
    """
    work = result.work
    lines = work.done[-1][1].lines if work else ()
    if work is None or not 1 <= place <= len(lines):
        raise InputError("malformed_members", f"line: the document has {len(lines)}")
    return list(_explained(work, lines[place - 1], f"Line {place} of {result.number}", times))


def _explained(work: Recomputation, line: Line, title: str, times: LocalTimes) -> Iterator[str]:
    key = line.key
    terms = next(each for each in work.terms if each.license_id == key.license_id)
    run = work.runs[-1]
    yield f"{title}: {line.description}"
    yield f"for {_span(key.start_at, key.end_at, times)} ({times.name}), license {key.license_id}"
    yield f"by version {key.version} of plan {key.plan_id}"
    charge = _charge(terms, line)
    held = terms.known_at(run).version_at(key.start_at)
    if held.correction is not None:
        yield from _corrected(held, line, times)
    if key.kind == "concession":
        yield f"{_money(-line.owed_minor, line)} were let off by decision, whatever was used."
    elif not _is_by(held, line):
        yield "Nothing is owed by this version for this period any more."
    elif isinstance(charge, UsageCharge) and key.kind == "estimated":
        yield from _estimated(charge, line, run, times)
    elif isinstance(charge, UsageCharge):
        own = _own(work, terms, charge, line, run)
        yield from _counted(charge, line, own, times)
        yield from _priced(charge, line, run)
        yield from _parts(line, own)
    elif isinstance(charge, Recurring):
        yield f"{line.quantity} {'active devices' if charge.per == 'device' else 'license'}"
        yield from _priced(charge, line, run)
    elif isinstance(charge, Commitment):
        least = exact(charge.amount * line.share)
        yield f"{', '.join(charge.over)} must come to {least} {line.currency}"
        yield f"{_money(line.owed_minor, line)} is missing."
    yield from _billed(line)


def _is_by(held: Version, line: Line) -> bool:
    return (held.plan_id, held.number) == (line.key.plan_id, line.key.version)


def _corrected(held: Version, line: Line, times: LocalTimes) -> Iterator[str]:
    """By which decision a version counts that did not count from the start, or does not count any more."""
    since = times.second(held.starts_at)
    by = f"by correction {held.correction}, from {since}, known from run {held.since_run} on"
    if _is_by(held, line):
        yield f"which counts {by}"
    else:
        yield f"in whose place version {held.number} of plan {held.plan_id} counts {by}"


def _charge(terms: Terms, line: Line) -> Charge | None:
    key = line.key
    plan = next(each.plan for each in terms.versions if (each.plan_id, each.number) == (key.plan_id, key.version))
    return next((charge for charge in plan.charges if charge.id == key.charge), None)


def _own(work: Recomputation, terms: Terms, charge: UsageCharge, line: Line, run: Run) -> _Records:
    """The records that a line cites, by device, ledger and branch."""
    known = terms.known_at(run)
    calendar = Calendar([each for each in known.periods if each.interval == charge.interval], known.ends_at)
    own: _Records = {}
    for record in work.proven.records(run):
        if _is_cited(record, charge, line, calendar):
            own.setdefault((record.device, record.epoch, record.branch), []).append(record)
    return own


def _units(records: Iterable[Record]) -> int:
    return sum(record.units - record.repeated for record in records)


def _counted(charge: UsageCharge, line: Line, own: _Records, times: LocalTimes) -> Iterator[str]:
    """Device by device, what its cited records count."""
    yield f"{line.quantity} units of {charge.meter[0]}, per {charge.meter[1]}:"
    for carried in line.carried:
        used = _span(carried.start_at, carried.end_at, times)
        yield f"  {carried.units} of them were used in {used}, and reported after it was closed"
    for (device, epoch, head), records in sorted(own.items()):
        first, last = min(each.seq for each in records), max(each.seq for each in records)
        began, ended = (times.second(at(each.service_at for each in records)) for at in (min, max))
        yield f"  {_units(records)} by {device}, in {len(records)} records from {began} to {ended}"
        yield f"    numbers {first} to {last} of ledger {epoch}, whose head is {head}"


def _estimated(charge: UsageCharge, line: Line, run: Run, times: LocalTimes) -> Iterator[str]:
    """Device by device, what it is taken to have used; and what that adds to the price of what was measured."""
    yield f"{line.quantity} ESTIMATED units of {charge.meter[0]}, per {charge.meter[1]}: no device has signed them"
    for each in line.estimates:
        basis = _span(each.basis_start_at, each.basis_end_at, times)
        yield f"  {each.quantity} for {each.device}, which has not reported on {each.seconds} s of the period"
        yield f"    it used {each.basis_quantity} in {basis}, the last period that it has reported on"
        if each.quantity == each.quantity_max:
            yield f"    no more than the {each.quantity_max} that its tokens still allowed it"
    if line.on_top_of is None:
        return
    measured = line.on_top_of
    told = ((measured, "the measured ones"), (measured + line.quantity, "measured and estimated"))
    for units, what in told:
        found = steps(charge.price, units, line.share, minimum=line.key.end_at <= run.cut_off)
        yield from (f"  {step.text}: {exact(step.amount)}" for step in found)
        total = sum((step.amount for step in found), Fraction(0))
        rounded = _money(money.to_minor(total, line.currency), line)
        yield f"For {units} units, {what}, that is {exact(total)} {line.currency}, rounded {rounded}."
    yield f"The estimate adds {_money(line.owed_minor, line)}."


def _is_cited(record: Record, charge: UsageCharge, line: Line, calendar: Calendar) -> bool:
    if record.license_id != line.key.license_id or record.meter != charge.meter:
        return False
    if record.quarantined or record.dismissed:
        return False
    inside = any(
        each.device == record.device and each.head == record.branch and each.first <= record.seq <= each.last
        for each in line.cited
    )
    return inside and any(_is_of(period, line) for period in calendar.holding(record.service_at))


def _is_of(period: Period, line: Line) -> bool:
    own = period.start_at == line.key.start_at
    return own or any(period.start_at == carried.start_at for carried in line.carried)


def _priced(charge: UsageCharge | Recurring, line: Line, run: Run) -> Iterator[str]:
    scaled = isinstance(charge, UsageCharge)
    share = line.share if scaled else Fraction(1)
    minimum = not scaled or line.key.end_at <= run.cut_off
    found = steps(charge.price, line.quantity, share, minimum=minimum)
    for step in found:
        yield f"  {step.text}: {exact(step.amount)}"
    total = sum((step.amount for step in found), Fraction(0))
    if not scaled and line.share != 1:
        total *= line.share
        yield f"  × {line.share.numerator}/{line.share.denominator} of the period: {exact(total)}"
    yield f"That is {exact(total)} {line.currency}, rounded {_money(line.owed_minor, line)}."


def _parts(line: Line, own: _Records) -> Iterator[str]:
    """What each of several devices has of the rounded amount, by its units: cut from it, never rounded."""
    units: dict[str, int] = {}
    for (device, _, _), records in own.items():
        units[device] = units.get(device, 0) + _units(records)
    if len(units) > 1:
        for device, part in sorted(money.split(line.owed_minor, units).items()):
            yield f"  {_money(part, line)} of it for {units[device]} units of {device}"


def _billed(line: Line) -> Iterator[str]:
    if line.billed_before_minor or line.quantity_before:
        before = _money(line.billed_before_minor, line)
        yield f"Billed before: {before}, for {line.quantity_before} units."
    if line.late:
        yield "This line corrects a period that was billed already."
    if line.lowers is not None:
        yield f"It lowers {line.lowers}."
    on_top = f", and {line.tax.name} of {line.tax.percent} % on top" if line.tax else ""
    yield f"This line bills {_money(line.amount_minor, line)}{on_top}."


def _money(minor: int, line: Line) -> str:
    return f"{money.to_text(minor, line.currency)} {line.currency}"


def _span(start_at: int, end_at: int, times: LocalTimes) -> str:
    return f"{times.second(start_at)} – {times.second(end_at)}"
