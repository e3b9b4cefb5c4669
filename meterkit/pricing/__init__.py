"""What units cost, exactly: one file per price model, one line per model in the table (BILLING §1).

Around any model, in this order: included units (not charged) → price → discount → maximum → minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from meterkit import money, shapes
from meterkit.errors import InputError
from meterkit.pricing import flat, graduated, package, per_unit, volume
from meterkit.pricing.shape import AMOUNT, optional_members


class Model(Protocol):
    """A price model: exact, and the same for the same units."""

    def rate(self, units: int, share: Fraction) -> Fraction:
        """Price whole units; `share` is the part of a whole period that a short one is."""
        ...  # pragma: no cover


_MODELS: dict[str, tuple[Mapping[str, shapes.Shape], Callable[[dict[str, Any]], Model]]] = {
    "flat": (flat.MEMBERS, flat.from_claims),
    "per_unit": (per_unit.MEMBERS, per_unit.from_claims),
    "package": (package.MEMBERS, package.from_claims),
    "volume": (volume.MEMBERS, volume.from_claims),
    "graduated": (graduated.MEMBERS, graduated.from_claims),
}


def _percent(value: Any, where: str) -> Any:
    """From 0 to 100, as decimal text like every amount, or as a whole number."""
    if type(value) is int:
        return shapes.integer(0, 100)(value, where)
    AMOUNT(value, where)
    if money.read_decimal(value) > 100:
        raise shapes.refuse(where, "must be from 0 to 100")
    return value


_MODIFIERS: dict[str, shapes.Shape] = {
    "included_units": shapes.integer(),
    "discount_percent": _percent,
    "maximum_amount": AMOUNT,
    "minimum_amount": AMOUNT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A price as a contract states it: a model, and what stands around it."""

    model: Model
    included_units: int = 0
    discount_percent: Fraction = Fraction(0)
    maximum_amount: Fraction | None = None
    minimum_amount: Fraction | None = None


def read(value: Any, where: str = "price") -> Price:
    """Read a price from its JSON.

    Raises:
        InputError: `malformed_price`, for a minimum above the maximum, a percent outside 0-100, a size below
            1, tiers that do not rise, a last bound that is not null, or an unknown or missing member.
    """
    try:
        return _read(value, where)
    except InputError as error:
        raise InputError("malformed_price", error.detail) from None


def _read(value: Any, where: str) -> Price:
    name = value.get("model") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in _MODELS:
        raise shapes.refuse(where, f"model must be one of {', '.join(_MODELS)}")
    members, from_claims = _MODELS[name]
    optional_members({"model": shapes.one_of(name), **members}, _MODIFIERS)(value, where)
    price = Price(
        model=from_claims(value),
        included_units=value.get("included_units", 0),
        discount_percent=money.read_decimal(str(value.get("discount_percent", "0"))),
        maximum_amount=_amount(value, "maximum_amount"),
        minimum_amount=_amount(value, "minimum_amount"),
    )
    low, high = price.minimum_amount, price.maximum_amount
    if low is not None and high is not None and low > high:
        raise shapes.refuse(where, "the minimum is above the maximum")
    return price


def _amount(value: dict[str, Any], name: str) -> Fraction | None:
    return money.read_decimal(value[name]) if name in value else None


def rate(price: Price, units: int, share: Fraction = Fraction(1), *, minimum: bool = True) -> Fraction:
    """Price whole units exactly; nothing is rounded here.

    In a short period `share` scales a flat amount, minimum, maximum and the included units (rounded up);
    tier bounds, tier flats, package sizes and unit prices are not scaled. `minimum=False` leaves the minimum
    out, as before a period's end. Units are not negative, and 0 ≤ share ≤ 1.
    """
    if units < 0 or not 0 <= share <= 1:
        raise ValueError("units must not be negative, and a share is from 0 to 1")
    included = price.included_units * share
    charged = max(0, units - -(-included.numerator // included.denominator))
    amount = price.model.rate(charged, share) * (100 - price.discount_percent) / 100
    if price.maximum_amount is not None:
        amount = min(amount, price.maximum_amount * share)
    if minimum and price.minimum_amount is not None:
        amount = max(amount, price.minimum_amount * share)
    return amount
