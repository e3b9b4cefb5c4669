"""Tiers: the ladder that volume and graduated prices climb."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meterkit import limits, money, shapes
from meterkit.pricing.shape import AMOUNT, optional_members

_UP_TO = shapes.optional(shapes.integer(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Units up to and including `up_to` (None: all the rest), each at `unit_amount`, plus `flat_amount`."""

    up_to: int | None
    unit_amount: Fraction
    flat_amount: Fraction


def shape(value: Any, where: str) -> Any:
    """Tiers whose bounds rise, and whose last bound is null."""
    tier = optional_members({"up_to": _UP_TO, "unit_amount": AMOUNT}, {"flat_amount": AMOUNT})
    shapes.listed(tier, limits.TIERS_MAX, least=1)(value, where)
    *bounds, last = [item["up_to"] for item in value]
    if last is not None:
        raise shapes.refuse(where, "the last bound must be null")
    if None in bounds or any(low >= high for low, high in itertools.pairwise(bounds)):
        raise shapes.refuse(where, "bounds must rise")
    return value


def from_claims(value: list[dict[str, Any]]) -> tuple[Tier, ...]:
    """Take over tiers whose shape has been judged."""
    return tuple(
        Tier(
            up_to=item["up_to"],
            unit_amount=money.read_decimal(item["unit_amount"]),
            flat_amount=money.read_decimal(item.get("flat_amount", "0")),
        )
        for item in value
    )


def spans(tiers: tuple[Tier, ...]) -> Iterator[tuple[int, Tier]]:
    """Give each tier with the units that lie below it."""
    below = 0
    for tier in tiers:
        yield below, tier
        below = tier.up_to or below
