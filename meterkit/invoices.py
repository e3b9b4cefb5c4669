"""What is owed now: terms × usage × what was billed before → lines (BILLING §3).

One rule, for each key = (license, charge, version, period, kind):

    bill now = round(what is owed for the key, by all that is known now) − billed before on the key

So units climb the tiers, at the price, of the period in which they were used, however late they come, and
any order of records and any schedule of runs comes to the same sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

from meterkit import money, pricing
from meterkit.attribution import Carried, Cited, Measured, Period, Run, Slot, Usage, cite
from meterkit.estimates import Estimate, Estimates
from meterkit.lateness import closed_by
from meterkit.licenses import Meter
from meterkit.lines import Beside, Bill, Billed, Key, Line
from meterkit.plans import Charge, Commitment, Plan, Recurring, UsageCharge
from meterkit.terms import Terms, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owed:
    """What is owed for a key, before it is compared with what was billed."""

    period: Period
    version: Version
    charge: Charge
    kind: str
    quantity: int
    minor: int
    cited: tuple[Cited, ...] = ()
    carried: tuple[Carried, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    on_top_of: int | None = None


_NOTHING: Estimates = MappingProxyType({})


def bill(
    terms: Terms,
    usage: Usage,
    billed: Mapping[Key, Billed],
    runs: Sequence[Run],
    *,
    closed: Mapping[Slot, Run] | None = None,
    estimated: Estimates = _NOTHING,
    conceded: Mapping[Key, int] = MappingProxyType({}),
    disputed: AbstractSet[Key] = frozenset(),
) -> Bill:
    """Work out what the last of a license's runs bills, by the one rule.

    `usage` holds what that run may know; `billed` the sums of finalized lines of this license; `runs` all
    runs that covered it, in order; `closed` which run first found each period closed (`meterkit.lateness`),
    by the terms alone if not given; `estimated` what is taken to be missing in closed periods
    (`meterkit.estimates`); `conceded` what was let off on keys of kind `concession`; a `disputed` key waits. It
    numbers, stores and rounds nothing but each key's amount.
    """
    run = runs[-1]
    closed = closed_by(terms, runs, ()) if closed is None else closed
    owed = [each for period in terms.periods for each in _owed_in(terms, period, usage, run, closed)]
    owed += _estimates(owed, estimated, run)
    owed += _commitments(terms, owed, run, closed)
    lines = [_line(terms, each, billed, run, closed) for each in owed]
    lines += [_concession(terms, key, amount, billed) for key, amount in conceded.items()]
    known = {line.key for line in lines}
    gone = [_gone(terms, key, before) for key, before in billed.items() if key not in known]
    changed = [line for line in lines + gone if line.amount_minor or line.quantity != line.quantity_before]
    changed.sort(key=lambda line: line.key)
    return Bill(
        lines=tuple(line for line in changed if line.key not in disputed),
        beside=tuple(sorted(_beside(terms, usage, run, closed))),
        pending=tuple(line for line in changed if line.key in disputed),
    )


def _due(charge: Charge, plan: Plan, period: Period, run: Run, *, closed: bool) -> bool:
    """Whether a run bills this charge for this period yet."""
    ended = period.end_at <= run.cut_off
    match charge:
        case Recurring(due="advance"):
            return period.start_at <= run.cut_off
        case UsageCharge():
            return closed or (plan.interim and period.start_at < run.cut_off)
        case _:  # what is in arrears, and a commitment, waits for the end, in interim runs too
            return closed or (plan.interim and ended)


def _owed_in(terms: Terms, period: Period, usage: Usage, run: Run, closed: Mapping[Slot, Run]) -> list[_Owed]:
    version = terms.version_at(period.start_at)
    due = (
        charge
        for charge in version.plan.charges
        if charge.interval == period.interval
        and _due(charge, version.plan, period, run, closed=period.slot in closed)
    )
    found = []
    for charge in due:
        if isinstance(charge, UsageCharge):
            found.append(_measured(charge, version, period, usage, run))
        elif isinstance(charge, Recurring) and period.nth >= charge.from_period:
            found.append(_recurring(charge, version, period, usage))
    return found


def _measured(charge: UsageCharge, version: Version, period: Period, usage: Usage, run: Run) -> _Owed:
    found = usage.measured.get((period.slot, charge.meter), Measured())
    owed = _rating(charge, period, version.plan, run)
    waived = _waived(found, owed)
    return _Owed(
        period=period,
        version=version,
        charge=charge,
        kind="measured",
        quantity=found.units + found.late - waived,
        minor=owed(found.units + found.late - waived),
        cited=found.cited if waived or not found.late else cite(found.cited, found.late_cited),
        carried=found.carried,
    )


def _estimates(owed: list[_Owed], estimated: Estimates, run: Run) -> list[_Owed]:
    """What is owed for what is missing of measured charges, where their contract has it estimated."""
    return [
        _estimated(each.charge, each, estimated.get((each.period.slot, each.charge.meter), ()), run)
        for each in owed
        if isinstance(each.charge, UsageCharge) and each.version.plan.close.policy == "estimate"
    ]


def _estimated(charge: UsageCharge, measured: _Owed, estimates: tuple[Estimate, ...], run: Run) -> _Owed:
    """What estimated units add to what the measured ones owe: they are priced as the units that follow them."""
    quantity = sum(each.quantity for each in estimates)
    owed = _rating(charge, measured.period, measured.version.plan, run)
    return replace(
        measured,
        kind="estimated",
        quantity=quantity,
        minor=owed(measured.quantity + quantity) - measured.minor,
        cited=(),
        carried=(),
        estimates=estimates,
        on_top_of=measured.quantity,
    )


def _rating(charge: UsageCharge, period: Period, plan: Plan, run: Run) -> Callable[[int], int]:
    """What so many units of a charge owe in a period, in minor units; a minimum only once it has ended."""
    ended = period.end_at <= run.cut_off

    def owed(units: int) -> int:
        exact = pricing.rate(charge.price, units, period.share, minimum=ended)
        return money.to_minor(exact, plan.currency)

    return owed


def _waived(found: Measured, owed: Callable[[int], int]) -> int:
    """The late units that a contract waives: all of them, or none where it costs less to count them."""
    if not found.late:
        return 0
    return 0 if owed(found.units + found.late) < owed(found.units) else found.late


def _recurring(charge: Recurring, version: Version, period: Period, usage: Usage) -> _Owed:
    quantity = 1 if charge.per == "license" else usage.devices.get(period.slot, 0)
    exact = pricing.rate(charge.price, quantity) * period.share
    minor = money.to_minor(exact, version.plan.currency)
    return _Owed(period=period, version=version, charge=charge, kind="recurring", quantity=quantity, minor=minor)


def _commitments(terms: Terms, owed: list[_Owed], run: Run, closed: Mapping[Slot, Run]) -> list[_Owed]:
    return [
        _commitment(charge, version, period, owed)
        for period in terms.periods
        for version in (terms.version_at(period.start_at),)
        for charge in version.plan.charges
        if isinstance(charge, Commitment)
        and charge.interval == period.interval
        and _due(charge, version.plan, period, run, closed=period.slot in closed)
    ]


def _commitment(charge: Commitment, version: Version, period: Period, owed: list[_Owed]) -> _Owed:
    """What the charges it names fall short of the commitment, after each of them was rounded."""
    reached = sum(
        each.minor
        for each in owed
        if each.charge.id in charge.over
        and (each.version.plan_id, each.version.number) == (version.plan_id, version.number)
        and period.start_at <= each.period.start_at < period.end_at
    )
    currency = version.plan.currency
    short = charge.amount * period.share - money.from_minor(reached, currency)
    minor = money.to_minor(max(Fraction(0), short), currency)
    return _Owed(
        period=period, version=version, charge=charge, kind="commitment", quantity=int(minor > 0), minor=minor
    )


def _key(terms: Terms, owed: _Owed) -> Key:
    return Key(
        license_id=terms.license_id,
        start_at=owed.period.start_at,
        end_at=owed.period.end_at,
        charge=owed.charge.id,
        plan_id=owed.version.plan_id,
        version=owed.version.number,
        kind=owed.kind,
    )


def _line(terms: Terms, owed: _Owed, billed: Mapping[Key, Billed], run: Run, closed: Mapping[Slot, Run]) -> Line:
    key = _key(terms, owed)
    before = billed.get(key, Billed())
    first = closed.get(owed.period.slot, run)
    return Line(
        key=key,
        currency=owed.version.plan.currency,
        description=_describe(owed.charge, owed.kind),
        share=owed.period.share,
        quantity=owed.quantity,
        quantity_before=before.quantity,
        owed_minor=owed.minor,
        billed_before_minor=before.amount_minor,
        late=first.number < run.number,
        cited=owed.cited,
        carried=owed.carried,
        estimates=owed.estimates,
        on_top_of=owed.on_top_of,
    )


def _concession(terms: Terms, key: Key, amount_minor: int, billed: Mapping[Key, Billed]) -> Line:
    """What was let off on a key, all of it: it is decided, not computed."""
    return Line(
        key=key,
        currency=_currency_of(terms, key),
        description=f"{key.charge}: concession",
        share=Fraction(1),
        quantity=0,
        quantity_before=0,
        owed_minor=-amount_minor,
        billed_before_minor=billed.get(key, Billed()).amount_minor,
        late=False,
        cited=(),
    )


def _currency_of(terms: Terms, key: Key) -> str:
    return next(
        each.plan.currency for each in terms.versions if (each.plan_id, each.number) == (key.plan_id, key.version)
    )


def _gone(terms: Terms, key: Key, before: Billed) -> Line:
    """A key that was billed, and that the terms as known now do not have any more: nothing is owed for it."""
    return Line(
        key=key,
        currency=_currency_of(terms, key),
        description=f"{key.charge}: withdrawn",
        share=Fraction(0),
        quantity=0,
        quantity_before=before.quantity,
        owed_minor=0,
        billed_before_minor=before.amount_minor,
        late=True,
        cited=(),
    )


def _describe(charge: Charge, kind: str) -> str:
    match charge:
        case UsageCharge(meter=(model, unit)):
            return f"{charge.id}: {model}, per {unit}{', estimated' if kind == 'estimated' else ''}"
        case Recurring(per="device"):
            return f"{charge.id}: active devices, per {charge.interval}"
        case Recurring():
            return f"{charge.id}: license, per {charge.interval}"
        case _:
            return f"{charge.id}: commitment over {', '.join(charge.over)}, per {charge.interval}"


def _beside(terms: Terms, usage: Usage, run: Run, closed: Mapping[Slot, Run]) -> Iterable[Beside]:
    """The units outside all sums, of the periods that the run bills."""
    periods = {period.slot: period for period in terms.periods}
    for (slot, (model, unit)), found in usage.measured.items():
        period = periods[slot]
        plan = terms.version_at(period.start_at).plan
        charges = (charge for charge in plan.charges if isinstance(charge, UsageCharge))
        charge = next((charge for charge in charges if charge.meter == (model, unit)), None)
        if (charge.interval if charge else plan.interval) != period.interval:
            continue
        is_closed = period.slot in closed
        due = charge is not None and _due(charge, plan, period, run, closed=is_closed)
        unpriced = 0 if charge else found.units + found.late
        waived = _waived(found, _rating(charge, period, plan, run)) if charge else 0
        beside = unpriced or waived or found.unsettled or found.quarantined or found.dismissed or found.repeated
        if beside and (due or is_closed):
            yield Beside(
                license_id=terms.license_id,
                start_at=period.start_at,
                end_at=period.end_at,
                model=model,
                unit=unit,
                unpriced=unpriced,
                unsettled=found.unsettled,
                quarantined=found.quarantined,
                dismissed=found.dismissed,
                repeated=found.repeated,
                waived=waived,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What one meter counted in one period: the key on which it is billed, None where no charge asks for it.

    `quantity` is what the key comes to, due or not; `waived` the late units that it leaves out.
    """

    meter: Meter
    key: Key | None
    quantity: int
    waived: int
    found: Measured


def metered(terms: Terms, usage: Usage, run: Run) -> Iterable[Metered]:
    """All that a run may know of a license's meters, period by period: every unit once (BILLING §5)."""
    periods = {period.slot: period for period in terms.periods}
    for (slot, meter), found in usage.measured.items():
        period = periods[slot]
        version = terms.version_at(period.start_at)
        charges = (charge for charge in version.plan.charges if isinstance(charge, UsageCharge))
        charge = next((charge for charge in charges if charge.meter == meter), None)
        if (charge.interval if charge else version.plan.interval) != period.interval:
            continue
        if charge is None:
            yield Metered(meter=meter, key=None, quantity=0, waived=0, found=found)
            continue
        owed = _measured(charge, version, period, usage, run)
        yield Metered(
            meter=meter,
            key=_key(terms, owed),
            quantity=owed.quantity,
            waived=found.units + found.late - owed.quantity,
            found=found,
        )
