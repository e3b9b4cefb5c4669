"""Volume: all units cost what the total's tier says."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meterkit.pricing import tiers
from meterkit.pricing.tiers import Tier

MEMBERS = {"tiers": tiers.shape}


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One tier for all units, plus its flat. More can cost less: that is what the contract says."""

    tiers: tuple[Tier, ...]

    def rate(self, units: int, share: Fraction) -> Fraction:
        """Price all units at the tier that the total falls in; bounds are inclusive."""
        del share
        tier = next(tier for tier in self.tiers if tier.up_to is None or units <= tier.up_to)
        return tier.unit_amount * units + tier.flat_amount


def from_claims(value: dict[str, Any]) -> Volume:
    """Take over a volume price whose shape has been judged."""
    return Volume(tiers=tiers.from_claims(value["tiers"]))
