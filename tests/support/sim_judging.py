"""How a simulated run says that something differs."""

from __future__ import annotations

from typing import Any

from meterkit.ledger import Total


class DifferenceError(AssertionError):
    """The server and the model do not agree."""


def same(what: str, found: Any, true: Any) -> None:
    if found != true:
        raise DifferenceError(f"{what}: the server has {found!r}, true is {true!r}")


def must(what: str, holds: object) -> None:
    if not holds:
        raise DifferenceError(what)


def spent(total: Total | None) -> int:
    return total.units + total.unsettled if total else 0
