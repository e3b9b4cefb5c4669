"""Per unit: each unit costs the same."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meterkit import money
from meterkit.pricing.shape import AMOUNT

MEMBERS = {"unit_amount": AMOUNT}


@dataclass(frozen=True, slots=True, kw_only=True)
class PerUnit:
    """`unit_amount` for each unit, in a short period too."""

    unit_amount: Fraction

    def rate(self, units: int, share: Fraction) -> Fraction:
        """Price the units."""
        del share
        return self.unit_amount * units


def from_claims(value: dict[str, Any]) -> PerUnit:
    """Take over a price per unit whose shape has been judged."""
    return PerUnit(unit_amount=money.read_decimal(value["unit_amount"]))
