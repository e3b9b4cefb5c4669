"""The lines of documents: what one is about, what it bills, and what stands beside it (BILLING §3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from meterkit.attribution import Carried, Cited
from meterkit.estimates import Estimate
from meterkit.taxes import Tax

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """What one line is about. All that was ever billed on a key adds up to what is owed for it."""

    license_id: str
    start_at: int
    end_at: int
    charge: str
    plan_id: str
    version: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """What finalized documents have billed on a key: the sum of their lines, and the last quantity."""

    amount_minor: int = 0
    quantity: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: what is owed for a key, what was billed before, and the difference.

    `quantity` is all of the key's units as known now. Amounts are minor units of `currency`. An estimated line has
    its `estimates`, device by device, and how many measured units of its charge and period it is `on_top_of`.
    """

    key: Key
    currency: str
    description: str
    share: Fraction
    quantity: int
    quantity_before: int
    owed_minor: int
    billed_before_minor: int
    late: bool
    cited: tuple[Cited, ...]
    carried: tuple[Carried, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    on_top_of: int | None = None
    tax: Tax | None = None
    lowers: str | None = None  # the document with the line above zero that this one below zero lowers

    @property
    def amount_minor(self) -> int:
        """What this line bills now; below zero where too much was billed before."""
        return self.owed_minor - self.billed_before_minor

    def to_claims(self) -> dict[str, Any]:
        """Write the line as documents carry it."""
        key = self.key
        return {
            "license": key.license_id,
            "charge": key.charge,
            "plan": key.plan_id,
            "version": key.version,
            "kind": key.kind,
            "service_start_at": key.start_at,
            "service_end_at": key.end_at,
            "share": str(self.share),
            "description": self.description,
            "quantity": self.quantity,
            "quantity_before": self.quantity_before,
            "owed_minor": self.owed_minor,
            "billed_before_minor": self.billed_before_minor,
            "amount_minor": self.amount_minor,
            "late": self.late,
            "records": [cited.to_claims() for cited in self.cited],
            **({"carried": [each.to_claims() for each in self.carried]} if self.carried else {}),
            **({"estimates": [each.to_claims() for each in self.estimates]} if self.estimates else {}),
            **({} if self.on_top_of is None else {"on_top_of": self.on_top_of}),
            **({} if self.tax is None else {"tax": self.tax.to_claims()}),
            **({} if self.lowers is None else {"lowers": self.lowers}),
        }


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Beside:
    """Units that are in no sum, shown beside the lines: of one meter, in one period."""

    license_id: str
    start_at: int
    end_at: int
    model: str
    unit: str
    unpriced: int
    unsettled: int
    quarantined: int
    dismissed: int = 0
    repeated: int = 0
    waived: int = 0

    def to_claims(self) -> dict[str, Any]:
        """Write the units as documents carry them; some only where there are any."""
        return {
            "license": self.license_id,
            "service_start_at": self.start_at,
            "service_end_at": self.end_at,
            "model": self.model,
            "unit": self.unit,
            "unpriced": self.unpriced,
            "unsettled": self.unsettled,
            "quarantined": self.quarantined,
            **({"dismissed": self.dismissed} if self.dismissed else {}),
            **({"repeated": self.repeated} if self.repeated else {}),
            **({"waived": self.waived} if self.waived else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a run bills a license: its lines, and the units that are in none of them.

    `pending` are the lines that it would have beside these, were their keys not disputed.
    """

    lines: tuple[Line, ...]
    beside: tuple[Beside, ...]
    pending: tuple[Line, ...] = ()


def billed_before(lines: Iterable[Line]) -> dict[Key, Billed]:
    """Add up lines of finalized documents per key, those of void ones left out."""
    sums: dict[Key, Billed] = {}
    for line in lines:
        before = sums.get(line.key, Billed())
        sums[line.key] = Billed(
            amount_minor=before.amount_minor + line.amount_minor,
            quantity=before.quantity + line.quantity - line.quantity_before,
        )
    return sums


def of_license(named: Mapping[Key, _Value], license_id: str) -> dict[Key, _Value]:
    """What is said of one license's keys."""
    return {key: value for key, value in named.items() if key.license_id == license_id}
