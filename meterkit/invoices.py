"""What is owed now: terms × usage × what was billed before → lines (BILLING §3).

One rule, for each key = (license, charge, version, period, kind):

    bill now = round(what is owed for the key, by all that is known now) − billed before on the key

So units climb the tiers, at the price, of the period in which they were used, however late they come, and
any order of records and any schedule of runs comes to the same sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

from meterkit import money, pricing
from meterkit.attribution import Cited, Measured, Period, Run, Usage
from meterkit.lines import Beside, Bill, Billed, Key, Line
from meterkit.plans import Charge, Commitment, Plan, Recurring, UsageCharge

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a plan, and the instant from which the license holds it.

    `since_run` is the first billing run that knew of it: recomputed, an earlier one does not.
    """

    plan_id: str
    number: int
    starts_at: int
    plan: Plan
    since_run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a license is billed by: its timeline of versions, its periods, its end."""

    license_id: str
    ends_at: int | None
    versions: tuple[Version, ...]
    periods: tuple[Period, ...]

    def known_at(self, run: Run) -> Terms:
        """The same terms with only the versions known at a run, and the periods known that had begun."""
        versions = (version for version in self.versions if version.since_run <= run.number)
        periods = (p for p in self.periods if p.start_at <= run.cut_off and p.since_run <= run.number)
        return replace(self, versions=tuple(versions), periods=tuple(periods))

    def version_at(self, at: int) -> Version:
        """The version that counts at an instant; before the first one, the first."""
        ordered = sorted(self.versions, key=lambda version: version.starts_at)
        return next((each for each in reversed(ordered) if each.starts_at <= at), ordered[0])


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


def closes_at(plan: Plan, period: Period) -> int:
    """The instant from which a period's usage is late: so many days after its end as the contract says."""
    return period.end_at + plan.close.days * _DAY_S


def bill(
    terms: Terms,
    usage: Usage,
    billed: Mapping[Key, Billed],
    runs: Sequence[Run],
    *,
    conceded: Mapping[Key, int] = MappingProxyType({}),
    disputed: AbstractSet[Key] = frozenset(),
) -> Bill:
    """Work out what the last of a license's runs bills, by the one rule.

    `usage` holds what that run may know; `billed` the sums of finalized lines of this license; `runs` all
    runs that covered it, in order; `conceded` what was let off on keys of kind `concession`; a `disputed` key
    waits. It numbers, stores and rounds nothing but each key's amount.
    """
    run = runs[-1]
    owed = [each for period in terms.periods for each in _owed_in(terms, period, usage, run)]
    owed += _commitments(terms, owed, run)
    lines = [_line(terms, each, billed, runs) for each in owed]
    lines += [_concession(terms, key, amount, billed) for key, amount in conceded.items()]
    known = {line.key for line in lines}
    gone = [_gone(terms, key, before) for key, before in billed.items() if key not in known]
    changed = [line for line in lines + gone if line.amount_minor or line.quantity != line.quantity_before]
    return Bill(
        lines=tuple(sorted((line for line in changed if line.key not in disputed), key=lambda line: line.key)),
        beside=tuple(sorted(_beside(terms, usage, run))),
    )


def _due(charge: Charge, plan: Plan, period: Period, run: Run) -> bool:
    """Whether a run bills this charge for this period yet."""
    closed = closes_at(plan, period) <= run.cut_off
    ended = period.end_at <= run.cut_off
    match charge:
        case Recurring(due="advance"):
            return period.start_at <= run.cut_off
        case UsageCharge():
            return closed or (plan.interim and period.start_at < run.cut_off)
        case _:  # what is in arrears, and a commitment, waits for the end, in interim runs too
            return closed or (plan.interim and ended)


def _owed_in(terms: Terms, period: Period, usage: Usage, run: Run) -> list[_Owed]:
    version = terms.version_at(period.start_at)
    due = (
        charge
        for charge in version.plan.charges
        if charge.interval == period.interval and _due(charge, version.plan, period, run)
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
    ended = period.end_at <= run.cut_off
    exact = pricing.rate(charge.price, found.units, period.share, minimum=ended)
    return _Owed(
        period=period,
        version=version,
        charge=charge,
        kind="measured",
        quantity=found.units,
        minor=money.to_minor(exact, version.plan.currency),
        cited=found.cited,
    )


def _recurring(charge: Recurring, version: Version, period: Period, usage: Usage) -> _Owed:
    quantity = 1 if charge.per == "license" else usage.devices.get(period.slot, 0)
    exact = pricing.rate(charge.price, quantity) * period.share
    minor = money.to_minor(exact, version.plan.currency)
    return _Owed(period=period, version=version, charge=charge, kind="recurring", quantity=quantity, minor=minor)


def _commitments(terms: Terms, owed: list[_Owed], run: Run) -> list[_Owed]:
    return [
        _commitment(charge, version, period, owed)
        for period in terms.periods
        for version in (terms.version_at(period.start_at),)
        for charge in version.plan.charges
        if isinstance(charge, Commitment)
        and charge.interval == period.interval
        and _due(charge, version.plan, period, run)
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


def _line(terms: Terms, owed: _Owed, billed: Mapping[Key, Billed], runs: Sequence[Run]) -> Line:
    key = Key(
        license_id=terms.license_id,
        start_at=owed.period.start_at,
        end_at=owed.period.end_at,
        charge=owed.charge.id,
        plan_id=owed.version.plan_id,
        version=owed.version.number,
        kind=owed.kind,
    )
    before = billed.get(key, Billed())
    closed_at = closes_at(owed.version.plan, owed.period)
    return Line(
        key=key,
        currency=owed.version.plan.currency,
        description=_describe(owed.charge),
        share=owed.period.share,
        quantity=owed.quantity,
        quantity_before=before.quantity,
        owed_minor=owed.minor,
        billed_before_minor=before.amount_minor,
        late=any(run.cut_off >= closed_at for run in runs[:-1]),
        cited=owed.cited,
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


def _describe(charge: Charge) -> str:
    match charge:
        case UsageCharge(meter=(model, unit)):
            return f"{charge.id}: {model}, per {unit}"
        case Recurring(per="device"):
            return f"{charge.id}: active devices, per {charge.interval}"
        case Recurring():
            return f"{charge.id}: license, per {charge.interval}"
        case _:
            return f"{charge.id}: commitment over {', '.join(charge.over)}, per {charge.interval}"


def _beside(terms: Terms, usage: Usage, run: Run) -> Iterable[Beside]:
    """The units outside all sums, of the periods that the run bills."""
    periods = {period.slot: period for period in terms.periods}
    for (slot, (model, unit)), found in usage.measured.items():
        period = periods[slot]
        plan = terms.version_at(period.start_at).plan
        charges = (charge for charge in plan.charges if isinstance(charge, UsageCharge))
        charge = next((charge for charge in charges if charge.meter == (model, unit)), None)
        if (charge.interval if charge else plan.interval) != period.interval:
            continue
        due = charge is not None and _due(charge, plan, period, run)
        unpriced = 0 if charge else found.units
        beside = unpriced or found.unsettled or found.quarantined or found.dismissed or found.repeated
        if beside and (due or closes_at(plan, period) <= run.cut_off):
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
            )
