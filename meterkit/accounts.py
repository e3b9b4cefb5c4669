"""A customer's account in one currency, as documents draw on it: tax rates, prepaid credits, voids, refunds.

What people decided about an account is kept with the first billing run that knows of it (`since_run`), so that a
document recomputed for an earlier run comes out as it did then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from meterkit.attribution import Run
from meterkit.lines import Key, Line
from meterkit.taxes import Tax, TaxRate

CREDIT_USABLE_S = 90 * 86_400  # so long after its expiry a credit still pays for what was used in its validity


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Money paid ahead. It pays for lines whose service period began in its validity, however late they come,
    until 90 days after its end; it never is part of a line (BILLING §5).
    """

    id: str
    amount_minor: int
    priority: int
    starts_at: int
    expires_at: int | None
    purchased_at: int
    since_run: int

    @property
    def order(self) -> tuple[int, float, int, str]:
        """Which credit is used first: by priority, expiry, purchase, id."""
        expires_at = float("inf") if self.expires_at is None else self.expires_at
        return (self.priority, expires_at, self.purchased_at, self.id)

    def is_usable(self, run: Run) -> bool:
        """Whether a run may use it."""
        over = self.expires_at is not None and run.cut_off >= self.expires_at + CREDIT_USABLE_S
        return self.since_run <= run.number and not over

    def covers(self, line: Line) -> bool:
        """Whether a line's service period began in its validity."""
        at = line.key.start_at
        return self.starts_at <= at and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Void:
    """A document that counts as never billed, from a run on."""

    number: str
    since_run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """Money of a customer's balance that was paid back."""

    amount_minor: int
    since_run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Concession:
    """An amount let off on one charge and period, whatever was used: the units stay as they are.

    `key` is the charge's in the period, of kind `concession`.
    """

    key: Key
    amount_minor: int
    since_run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A key that is not billed on while it is disputed: from one run on, until another, or until now."""

    key: Key
    since_run: int
    until_run: int | None

    def holds(self, run: Run) -> bool:
        """Whether a run leaves the key alone."""
        return self.since_run <= run.number and (self.until_run is None or run.number < self.until_run)

    def known_at(self, run: Run) -> Dispute:
        """The same dispute, still open if its end was not known yet."""
        return replace(self, until_run=None) if self.holds(run) else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All that was decided about a customer's account in one currency."""

    tax_rates: tuple[TaxRate, ...] = ()
    credits: tuple[Credit, ...] = ()
    refunds: tuple[Refund, ...] = ()
    voids: tuple[Void, ...] = ()
    concessions: tuple[Concession, ...] = ()
    disputes: tuple[Dispute, ...] = ()

    def voided(self, run: Run) -> frozenset[str]:
        """The numbers of the documents that count as never billed, as a run knows it."""
        return frozenset(void.number for void in self.voids if void.since_run <= run.number)

    def conceded(self, run: Run) -> dict[Key, int]:
        """How much was let off on each key, as a run knows it."""
        found: dict[Key, int] = {}
        for each in self.concessions:
            if each.since_run <= run.number:
                found[each.key] = found.get(each.key, 0) + each.amount_minor
        return found

    def disputed(self, run: Run) -> frozenset[Key]:
        """The keys that a run leaves alone."""
        return frozenset(each.key for each in self.disputes if each.holds(run))

    def known_at(self, run: Run) -> Account:
        """The same account, with nothing that a run does not know."""

        def known(decided: Iterable[Any]) -> tuple[Any, ...]:
            return tuple(each for each in decided if each.since_run <= run.number)

        return Account(
            tax_rates=known(self.tax_rates),
            credits=known(self.credits),
            refunds=known(self.refunds),
            voids=known(self.voids),
            concessions=known(self.concessions),
            disputes=tuple(each.known_at(run) for each in known(self.disputes)),
        )

    def to_claims(self) -> dict[str, Any]:
        """Write the account as evidence carries it."""
        return asdict(self)


def from_claims(value: Mapping[str, Any]) -> Account:
    """Read an account from evidence, once its shape has been checked (`meterkit.evidence.ACCOUNT_SHAPE`)."""

    def keyed(each: Mapping[str, Any]) -> dict[str, Any]:
        return {**each, "key": Key(**each["key"])}

    return Account(
        tax_rates=tuple(TaxRate(**each) for each in value["tax_rates"]),
        credits=tuple(Credit(**each) for each in value["credits"]),
        refunds=tuple(Refund(**each) for each in value["refunds"]),
        voids=tuple(Void(**each) for each in value["voids"]),
        concessions=tuple(Concession(**keyed(each)) for each in value["concessions"]),
        disputes=tuple(Dispute(**keyed(each)) for each in value["disputes"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """The last line above zero on a key: the document that has it, and its tax."""

    number: str
    tax: Tax | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxSum:
    """A document's tax of one rate: on the sum of its lines; on a credit note also by the invoice it lowers."""

    tax: Tax
    base_minor: int
    tax_minor: int
    lowers: str | None = None

    def to_claims(self) -> dict[str, Any]:
        """Write the tax as documents carry it."""
        lowers = {} if self.lowers is None else {"lowers": self.lowers}
        amounts = {"base_minor": self.base_minor, "tax_minor": self.tax_minor}
        return {**self.tax.to_claims(), **amounts, **lowers}


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditUse:
    """What a document takes from a prepaid credit, or below zero gives back to it, and for which invoice then."""

    credit: str
    amount_minor: int
    lowers: str | None = None

    def to_claims(self) -> dict[str, Any]:
        """Write the use as documents carry it."""
        lowers = {} if self.lowers is None else {"lowers": self.lowers}
        return {"credit": self.credit, "amount_minor": self.amount_minor, **lowers}


@dataclass(slots=True, kw_only=True)
class History:
    """What earlier documents of a customer and currency left behind, those that are void left out.

    It is filled in the order of the documents' runs.
    """

    raised: dict[Key, Raised] = field(default_factory=dict)
    credited: dict[tuple[str, Tax], tuple[int, int]] = field(default_factory=dict)
    used: dict[str, dict[str, int]] = field(default_factory=dict)  # per invoice: credit → what it took in the end
    balance_minor: int = 0
    replaced: set[str] = field(default_factory=set)

    def add_line(self, number: str, key: Key, amount_minor: int, tax: Tax | None) -> None:
        """Note a line."""
        if amount_minor > 0:
            self.raised.pop(key, None)  # the last one stands last
            self.raised[key] = Raised(number=number, tax=tax)

    def add_tax(self, found: TaxSum) -> None:
        """Note a tax; of a credit note it counts toward all that was credited of the invoice."""
        if found.lowers is not None:
            base, tax = self.credited.get((found.lowers, found.tax), (0, 0))
            self.credited[found.lowers, found.tax] = (base + found.base_minor, tax + found.tax_minor)

    def add_use(self, number: str, use: CreditUse) -> None:
        """Note what was taken from a credit, or given back to it."""
        own = self.used.setdefault(use.lowers or number, {})
        own[use.credit] = own.get(use.credit, 0) + use.amount_minor

    def raised_by(self, key: Key) -> Raised | None:
        """The last line above zero that a line below zero on a key lowers; a concession lowers its charge's."""
        if key.kind != "concession":
            return self.raised.get(key)
        same = (raised for other, raised in self.raised.items() if _but_kind(other) == _but_kind(key))
        return next(reversed(list(same)), None)

    def taken(self, credit: str) -> int:
        """How much of a credit is used."""
        return sum(own.get(credit, 0) for own in self.used.values())


def _but_kind(key: Key) -> tuple[Any, ...]:
    return (key.license_id, key.start_at, key.end_at, key.charge, key.plan_id, key.version)
