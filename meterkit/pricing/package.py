"""Package: units are sold in packages, and a started one is a whole one."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meterkit import money, shapes
from meterkit.pricing.shape import AMOUNT

MEMBERS = {"size": shapes.integer(1), "amount": AMOUNT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """`amount` for each started package of `size` units; zero units cost nothing."""

    size: int
    amount: Fraction

    def rate(self, units: int, share: Fraction) -> Fraction:
        """Price the packages that the units start."""
        del share
        return self.amount * -(-units // self.size)


def from_claims(value: dict[str, Any]) -> Package:
    """Take over a package price whose shape has been judged."""
    return Package(size=value["size"], amount=money.read_decimal(value["amount"]))
