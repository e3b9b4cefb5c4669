"""Graduated: each unit costs what its own tier says."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meterkit.pricing import tiers
from meterkit.pricing.tiers import Tier

MEMBERS = {"tiers": tiers.shape}


@dataclass(frozen=True, slots=True, kw_only=True)
class Graduated:
    """Each unit at its own tier's price; a tier's flat is owed once it is entered, the first one's always."""

    tiers: tuple[Tier, ...]

    def rate(self, units: int, share: Fraction) -> Fraction:
        """Price each unit where it falls; bounds are inclusive."""
        del share
        total = Fraction(0)
        for below, tier in tiers.spans(self.tiers):
            if below and units <= below:
                break
            within = units - below if tier.up_to is None else min(units, tier.up_to) - below
            total += tier.unit_amount * within + tier.flat_amount
        return total


def from_claims(value: dict[str, Any]) -> Graduated:
    """Take over a graduated price whose shape has been judged."""
    return Graduated(tiers=tiers.from_claims(value["tiers"]))
