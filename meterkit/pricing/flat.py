"""Flat: one amount for the period, whatever is used."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meterkit import money
from meterkit.pricing.shape import AMOUNT

MEMBERS = {"amount": AMOUNT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """`amount`, owed at zero units too; a short period owes its share of it."""

    amount: Fraction

    def rate(self, units: int, share: Fraction) -> Fraction:
        """Price a period: the units do not matter."""
        del units
        return self.amount * share


def from_claims(value: dict[str, Any]) -> Flat:
    """Take over a flat price whose shape has been judged."""
    return Flat(amount=money.read_decimal(value["amount"]))
