"""What a license is billed by: its timeline of versions, its periods, its end (BILLING §2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meterkit.attribution import Period, Run
from meterkit.plans import Plan

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a plan, and the instant from which the license holds it.

    `since_run` is the first billing run that knew of it: recomputed, an earlier one does not. `correction` names
    the decision by which it starts in the past.
    """

    plan_id: str
    number: int
    starts_at: int
    plan: Plan
    since_run: int = 0
    correction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a license is billed by: its timeline of versions, its periods, its end.

    `versions` are in the order of time, and after them their corrections in the order in which they were decided.
    """

    license_id: str
    ends_at: int | None
    versions: tuple[Version, ...]
    periods: tuple[Period, ...]

    def known_at(self, run: Run) -> Terms:
        """The same terms with only the versions known at a run, and the periods known that had begun."""
        versions = (version for version in self.versions if version.since_run <= run.number)
        begun = (p for p in self.periods if p.start_at <= run.cut_off and p.since_run <= run.number)
        periods = (period.known_at(run) for period in begun)
        return replace(self, versions=tuple(versions), periods=tuple(periods))

    def version_at(self, at: int) -> Version:
        """The version that counts at an instant; before the first one, the first.

        Each counts until the next one starts; of those that start at once, the one decided last.
        """
        at = max(at, self.versions[0].starts_at)
        begun = (each for each in reversed(self.versions) if each.starts_at <= at)
        return max(begun, key=lambda version: version.starts_at)  # of equals, the first that comes


def closes_at(plan: Plan, period: Period) -> int:
    """The instant from which a period's usage is late: so many days after its end as the contract says."""
    return period.end_at + plan.close.days * _DAY_S
