"""What devices that have not reported are taken to have used in a period that has closed (BILLING §4).

    estimate = units per second in the last period that the device covered × seconds not covered, rounded down

and at most its exposure (`meterkit.exposure`), of which each period takes what earlier ones have left: all that is
missing of a device is no more than it can still report. It is a figure of the contract's, and no measurement: once
the device has reported beyond a period's end, nothing of it is estimated there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meterkit.attribution import Calendar, Period, Record, Run, Slot, gather
from meterkit.lateness import Reporting
from meterkit.licenses import Meter
from meterkit.plans import UsageCharge
from meterkit.terms import Terms

Counted = Mapping[tuple[str, Slot, Meter], int]  # what each device used in a period, by one meter
Exposed = Mapping[tuple[str, Meter], int | None]  # the most that it can still report; None without a bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A device that should have reported beyond a period's end, and has not: so many seconds are not covered.

    `basis` is the last period of the same interval that it covered; `meters` are those charged in this one.
    """

    device: str
    period: Period
    basis: Period
    seconds: int
    meters: tuple[Meter, ...]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Estimate:
    """So many units that a device is taken to have used in a period, by what it used in another, its basis.

    `quantity_max` is what its tokens still allowed it, None where that has no bound.
    """

    device: str
    quantity: int
    seconds: int
    basis_start_at: int
    basis_end_at: int
    basis_quantity: int
    quantity_max: int | None

    def to_claims(self) -> dict[str, Any]:
        """Write the estimate as a line carries it."""
        return {
            "device": self.device,
            "quantity": self.quantity,
            "seconds": self.seconds,
            "basis_start_at": self.basis_start_at,
            "basis_end_at": self.basis_end_at,
            "basis_quantity": self.basis_quantity,
            "quantity_max": self.quantity_max,
        }


Estimates = Mapping[tuple[Slot, Meter], tuple[Estimate, ...]]


def gaps(terms: Terms, closed: Mapping[Slot, Run], run: Run, fleet: Iterable[Reporting]) -> tuple[Gap, ...]:
    """Find who is missing in the periods that have closed, where the contract estimates it, as a run knows it.

    A device that has covered no period yet has no basis: nothing of it is estimated.
    """
    if all(version.plan.close.policy != "estimate" for version in terms.versions):
        return ()
    asked = [(period, _meters(terms, period)) for period in terms.periods if period.slot in closed]
    asked = [(period, meters) for period, meters in asked if meters]
    found = []
    for device in fleet if asked else ():
        through = device.through(run)
        for period, meters in asked:
            if through >= period.end_at or not device.should_report(period, run):
                continue
            basis = _basis(terms, period, device, run)
            if basis is not None:
                seconds = period.end_at - max(period.start_at, through)
                gap = Gap(device=device.device, period=period, basis=basis, seconds=seconds, meters=meters)
                found.append(gap)
    return tuple(found)


def _meters(terms: Terms, period: Period) -> tuple[Meter, ...]:
    """The meters of which a period's plan wants what is missing estimated."""
    plan = terms.version_at(period.start_at).plan
    charges = plan.charges if plan.close.policy == "estimate" else ()
    own = (charge for charge in charges if charge.interval == period.interval)
    return tuple(charge.meter for charge in own if isinstance(charge, UsageCharge))


def _basis(terms: Terms, period: Period, device: Reporting, run: Run) -> Period | None:
    """The last period that a device covered: it had a token in it, and has reported beyond its end."""
    through = device.through(run)
    covered = (
        each
        for each in terms.periods
        if each.interval == period.interval and each.end_at <= through and device.is_licensed(each, run)
    )
    return max(covered, key=lambda each: each.start_at, default=None)


def estimate(found: Sequence[Gap], counted: Counted, exposed: Exposed) -> Estimates:
    """Work out what is estimated in each period by each meter, device by device; what comes to 0 is left out."""
    left = dict(exposed)
    made: dict[tuple[Slot, Meter], list[Estimate]] = {}
    for gap in sorted(found, key=lambda gap: (gap.period.start_at, gap.period.interval, gap.device)):
        for meter in gap.meters:
            name = (gap.device, meter)
            own = _estimate(gap, counted.get((gap.device, gap.basis.slot, meter), 0), left.get(name, 0))
            if own.quantity:
                made.setdefault((gap.period.slot, meter), []).append(own)
                if own.quantity_max is not None:
                    left[name] = own.quantity_max - own.quantity
    return {name: tuple(each) for name, each in made.items()}


def _estimate(gap: Gap, units: int, quantity_max: int | None) -> Estimate:
    quantity = units * gap.seconds // (gap.basis.end_at - gap.basis.start_at)
    return Estimate(
        device=gap.device,
        quantity=quantity if quantity_max is None else min(quantity, quantity_max),
        seconds=gap.seconds,
        basis_start_at=gap.basis.start_at,
        basis_end_at=gap.basis.end_at,
        basis_quantity=units,
        quantity_max=quantity_max,
    )


def count(found: Iterable[Gap], calendar: Calendar, run: Run, records: Iterable[Record]) -> Counted:
    """Add up what missing devices used, of one license's records: when it was used counts, not when it came."""
    own: dict[str, list[Record]] = {gap.device: [] for gap in found}
    for record in records if own else ():
        if record.device in own:
            own[record.device].append(record)
    units: Counter[tuple[str, Slot, Meter]] = Counter()
    for device, each in own.items():
        for (slot, meter), held in gather(calendar, run, each, ()).measured.items():
            units[device, slot, meter] = held.units
    return units
