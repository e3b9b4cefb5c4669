"""Tax on what is billed: which rate counts when, and its one rounding (BILLING §3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from meterkit import money

PERCENT_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Tax:
    """A tax by name, and its rate in percent as decimal text. A rate of zero is a tax too: it is shown."""

    name: str
    percent: str

    def on(self, base_minor: int) -> int:
        """The tax on so many minor units, rounded half away from zero."""
        return money.round_half_away(base_minor * money.read_decimal(self.percent) / Fraction(100), 0)

    def to_claims(self) -> dict[str, str]:
        """Write the tax as documents carry it."""
        return {"name": self.name, "percent": self.percent}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRate:
    """A tax that counts for a customer from an instant on, and the first billing run that knows of it."""

    starts_at: int
    since_run: int
    name: str
    percent: str


def in_force(rates: Iterable[TaxRate], end_at: int, run_number: int) -> Tax | None:
    """The tax in force where a period ends, as a run knows it; of two from one instant on, the one known last.

    A period is half-open: a tax that counts from the instant at which it ends is the next one's.
    """
    known = [rate for rate in rates if rate.starts_at < end_at and rate.since_run <= run_number]
    if not known:
        return None
    last = max(known, key=lambda rate: (rate.starts_at, rate.since_run))
    return Tax(name=last.name, percent=last.percent)
