"""Until when usage of a period is in time, and what a contract makes of what comes later (BILLING §4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meterkit.attribution import Deadline, Period, Run, Slot, TokenSpan
from meterkit.plans import Plan
from meterkit.terms import Terms, closes_at

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """That a device was said to be retired or lost, or active again, and the first billing run that knows it."""

    state: str
    since_run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """A device of a license as coverage sees it.

    `reports` are pairs of the acceptance of a batch, and the instant through which it had reported then.
    """

    device: str = ""
    tokens: tuple[TokenSpan, ...] = ()
    reports: tuple[tuple[int, int], ...] = ()
    declared: tuple[Declared, ...] = ()

    def should_report(self, period: Period, run: Run) -> bool:
        """Whether a token of it was valid in the period, and nobody had said that it would not report any more."""
        known = [each for each in self.declared if each.since_run <= run.number]
        return self.is_licensed(period, run) and (not known or known[-1].state == "active")

    def is_licensed(self, period: Period, run: Run) -> bool:
        """Whether a token of it was valid in the period, without grace, of those that a run knows."""
        return any(
            token.nbf < period.end_at and token.exp > period.start_at and token.iat < run.cut_off
            for token in self.tokens
        )

    def has_reported(self, period: Period, run: Run) -> bool:
        """Whether it has reported beyond the period's end, as a run knows it."""
        return self.through(run) >= period.end_at

    def through(self, run: Run) -> int:
        """Through when it has reported, as a run knows it; 0 if it never has."""
        known = (through for acceptance, through in self.reports if acceptance <= run.acceptance_max)
        return max(known, default=0)


def closed_by(terms: Terms, runs: Sequence[Run], fleet: Iterable[Reporting]) -> dict[Slot, Run]:
    """The first of a license's runs that found each period closed, for those that are.

    A period closes so many days after its end, or, where the contract closes by coverage, as soon as so many of
    the devices that should have reported have reported beyond its end. Once closed it stays closed. Where it was
    cut shorter since, a run before closed it if it found the longer one closed.
    """
    fleet = tuple(fleet)
    found = {}
    for period in terms.periods:
        plan = terms.version_at(period.start_at).plan
        run = next((run for run in runs if _is_closed(plan, period.known_at(run), run, fleet)), None)
        if run is not None:
            found[period.slot] = run
    return found


def _is_closed(plan: Plan, period: Period, run: Run, fleet: Sequence[Reporting]) -> bool:
    if closes_at(plan, period) <= run.cut_off:
        return True
    if plan.close.percent is None or period.end_at > run.cut_off:
        return False
    expected = [device for device in fleet if device.should_report(period, run)]
    reported = sum(device.has_reported(period, run) for device in expected)
    return 100 * reported >= plan.close.percent * len(expected)


def deadlines(terms: Terms, closed: Mapping[Slot, Run], run: Run) -> dict[Slot, Deadline]:
    """Until when usage of each period is in time, where a contract asks; `closed` as `closed_by` gives it.

    The run that finds a period closed still takes all that it knows as in time.
    """
    found = {}
    for period in terms.periods:
        late = terms.version_at(period.start_at).plan.late
        first = closed.get(period.slot)
        if late.policy == "waive" and late.days is not None:
            found[period.slot] = Deadline(received_max=period.end_at + late.days * _DAY_S)
        elif late.policy == "carry_over" and first is not None and first.number < run.number:
            found[period.slot] = Deadline(acceptance_max=first.acceptance_max)
    return found
