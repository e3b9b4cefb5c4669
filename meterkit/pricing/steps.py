"""How a price comes to its amount, step by step, in words: the steps add up to `meterkit.pricing.rate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from meterkit.pricing import Price, tiers
from meterkit.pricing.flat import Flat
from meterkit.pricing.graduated import Graduated
from meterkit.pricing.package import Package
from meterkit.pricing.per_unit import PerUnit
from meterkit.pricing.volume import Volume

_DECIMALS_MAX = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: what it is, and what it adds; below zero, what it takes off."""

    text: str
    amount: Fraction


def exact(amount: Fraction) -> str:
    """Write an amount with the decimals it has; one without end is cut, and says so."""
    scaled, rest = divmod(abs(amount.numerator) * 10**_DECIMALS_MAX, amount.denominator)
    whole, decimals = divmod(scaled, 10**_DECIMALS_MAX)
    text = f"{whole}.{decimals:0{_DECIMALS_MAX}}".rstrip("0").rstrip(".")
    return ("-" if amount < 0 else "") + text + ("…" if rest else "")


def steps(price: Price, units: int, share: Fraction = Fraction(1), *, minimum: bool = True) -> list[Step]:
    """Say how whole units are priced; takes what `meterkit.pricing.rate` takes."""
    included = price.included_units * share
    free = min(units, -(-included.numerator // included.denominator))
    found = [Step(text=f"{free} units included", amount=Fraction(0))] if free else []
    found += _of_model(price, units - free, share)
    amount = sum((step.amount for step in found), Fraction(0))
    if price.discount_percent:
        off = amount * price.discount_percent / 100
        found.append(Step(text=f"{exact(price.discount_percent)} % discount", amount=-off))
        amount -= off
    if price.maximum_amount is not None and amount > price.maximum_amount * share:
        text = f"no more than the maximum of {exact(price.maximum_amount)}{_part(share)}"
        found.append(Step(text=text, amount=price.maximum_amount * share - amount))
        amount = price.maximum_amount * share
    if minimum and price.minimum_amount is not None and amount < price.minimum_amount * share:
        text = f"no less than the minimum of {exact(price.minimum_amount)}{_part(share)}"
        found.append(Step(text=text, amount=price.minimum_amount * share - amount))
    return found


def _part(share: Fraction) -> str:
    return "" if share == 1 else f" × {share.numerator}/{share.denominator} of the period"


def _of_model(price: Price, units: int, share: Fraction) -> Iterator[Step]:
    match price.model:
        case Flat(amount=amount):
            yield Step(text=f"{exact(amount)} for the period{_part(share)}", amount=amount * share)
        case PerUnit(unit_amount=amount):
            yield Step(text=f"{units} × {exact(amount)}", amount=units * amount)
        case Package(size=size, amount=amount):
            packages = -(-units // size)
            yield Step(text=f"{packages} packages of {size} × {exact(amount)}", amount=packages * amount)
        case Volume(tiers=ladder):
            tier = next(tier for tier in ladder if tier.up_to is None or units <= tier.up_to)
            bound = "beyond all bounds" if tier.up_to is None else f"up to {tier.up_to}"
            text = f"{units} × {exact(tier.unit_amount)}, the price of all units for a total {bound}"
            yield Step(text=text, amount=units * tier.unit_amount)
            if tier.flat_amount:
                yield Step(text="the flat amount of that tier", amount=tier.flat_amount)
        case Graduated(tiers=ladder):
            yield from _climbed(ladder, units)


def _climbed(ladder: tuple[tiers.Tier, ...], units: int) -> Iterator[Step]:
    for below, tier in tiers.spans(ladder):
        if below and units <= below:
            return
        within = units - below if tier.up_to is None else min(units, tier.up_to) - below
        text = f"{within} × {exact(tier.unit_amount)}, units {below + 1} to {below + within}"
        if within:
            yield Step(text=text, amount=within * tier.unit_amount)
        if tier.flat_amount:
            yield Step(text=f"the flat amount of the tier from unit {below + 1} on", amount=tier.flat_amount)
