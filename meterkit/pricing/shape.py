"""What prices are written with: amounts as decimal text, and members that may be left out."""

from __future__ import annotations

from typing import Any

from meterkit import money, shapes
from meterkit.errors import InputError


def amount(value: Any, where: str) -> Any:
    """Decimal text, not negative, at most 12 decimals."""
    if not isinstance(value, str):
        raise shapes.refuse(where, "must be decimal text")
    try:
        money.read_decimal(value)
    except InputError as error:
        raise shapes.refuse(where, error.detail) from None
    return value


AMOUNT: shapes.Shape = amount


def optional_members(must: dict[str, shapes.Shape], may: dict[str, shapes.Shape]) -> shapes.Shape:
    """Shape an object with exactly the members it must have, and any of those it may have."""

    def shape(value: Any, where: str) -> Any:
        present = value.keys() & may.keys() if isinstance(value, dict) else frozenset[str]()
        return shapes.Members(**must, **{name: may[name] for name in present})(value, where)

    return shape
