"""From lines to what a document asks for: tax on top, then prepaid credits, then the balance (BILLING §3, §5).

Everything here is a function of the lines, of what was decided about the account, and of earlier documents, so an
audit comes to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from meterkit import money, taxes
from meterkit.accounts import Account, CreditUse, History, TaxSum
from meterkit.attribution import Run
from meterkit.lines import Beside, Line
from meterkit.taxes import Tax

INVOICE, CREDIT_NOTE = "invoice", "credit_note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bills:
    """What one run bills a customer in one currency, over all its licenses: lines and what stands beside them."""

    lines: tuple[Line, ...]
    beside: tuple[Beside, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """One document: its lines with their taxes, and how its total is met.

    `balance_minor` is what it takes from the customer's balance; a credit note gives, and has it below zero.
    """

    kind: str
    lines: tuple[Line, ...]
    beside: tuple[Beside, ...]
    taxes: tuple[TaxSum, ...]
    credits: tuple[CreditUse, ...]
    balance_minor: int
    replaces: tuple[str, ...]

    @property
    def subtotal_minor(self) -> int:
        """The sum of the rounded lines."""
        return sum(line.amount_minor for line in self.lines)

    @property
    def tax_minor(self) -> int:
        """The sum of the taxes, each rounded once."""
        return sum(each.tax_minor for each in self.taxes)

    @property
    def total_minor(self) -> int:
        """Lines and taxes."""
        return self.subtotal_minor + self.tax_minor

    @property
    def due_minor(self) -> int:
        """What is left to pay; of a credit note zero."""
        return self.total_minor - sum(use.amount_minor for use in self.credits) - self.balance_minor

    @property
    def is_met(self) -> bool:
        """Whether it is an invoice on which nothing is due: prepaid credits and the balance have met it whole."""
        return self.kind == INVOICE and not self.due_minor

    def note_in(self, history: History, number: str) -> None:
        """Add this document to what later ones must know."""
        for line in self.lines:
            history.add_line(number, line.key, line.amount_minor, line.tax)
        for each in self.taxes:
            history.add_tax(each)
        for use in self.credits:
            history.add_use(number, use)
        history.balance_minor -= self.balance_minor


def settle(bills: Bills, *, run: Run, account: Account, history: History) -> Settled:
    """Make a document of lines: a credit note where they come to less than nothing, else an invoice.

    Where it is a credit note only by taxes that are rounded for this document alone, and not by those rounded over
    all that was credited, it is an invoice with the latter.
    """
    lines = tuple(_taxed(line, run, account, history) for line in bills.lines)
    subtotal = sum(line.amount_minor for line in lines)
    found = _taxes(lines)
    if subtotal + sum(each.tax_minor for each in found) < 0:
        found = _taxes_credited(lines, history)
    total = subtotal + sum(each.tax_minor for each in found)
    less = total < 0
    used = _give_back(lines, found, -total, history) if less else _spend(lines, total, run, account, history)
    left = total - sum(use.amount_minor for use in used)
    refunded = sum(refund.amount_minor for refund in account.refunds if refund.since_run <= run.number)
    balance = min(left, max(0, history.balance_minor - refunded))
    return Settled(
        kind=CREDIT_NOTE if less else INVOICE,
        lines=lines,
        beside=bills.beside,
        taxes=found,
        credits=used,
        balance_minor=balance,
        replaces=tuple(sorted(account.voided(run) - history.replaced)),
    )


def as_before_accounts(bills: Bills) -> Settled:
    """Make a document of lines as it was before there were accounts: an invoice, whatever its total is."""
    return Settled(
        kind=INVOICE,
        lines=bills.lines,
        beside=bills.beside,
        taxes=(),
        credits=(),
        balance_minor=0,
        replaces=(),
    )


def _taxed(line: Line, run: Run, account: Account, history: History) -> Line:
    """A line's tax is the one in force where its period ends; one that lowers another takes that one's."""
    raised = history.raised_by(line.key) if line.amount_minor < 0 else None
    if raised is not None:
        return replace(line, tax=raised.tax, lowers=raised.number)
    return replace(line, tax=taxes.in_force(account.tax_rates, line.key.end_at, run.number))


def _bases(lines: Iterable[Line], *, by_invoice: bool) -> dict[tuple[Tax, str], int]:
    found: dict[tuple[Tax, str], int] = {}
    for line in lines:
        if line.tax is not None:
            name = (line.tax, (line.lowers or "") if by_invoice else "")
            found[name] = found.get(name, 0) + line.amount_minor
    return found


def _taxes(lines: Iterable[Line]) -> tuple[TaxSum, ...]:
    """Per rate: the lines' sum, and its tax, rounded once."""
    bases = _bases(lines, by_invoice=False)
    return tuple(
        TaxSum(tax=tax, base_minor=base, tax_minor=tax.on(base)) for (tax, _), base in sorted(bases.items())
    )


def _taxes_credited(lines: Iterable[Line], history: History) -> tuple[TaxSum, ...]:
    """Per invoice and rate: tax on all that was credited so far, less what was credited of it before."""
    found = []
    for (tax, lowers), base in sorted(_bases(lines, by_invoice=True).items()):
        base_before, tax_before = history.credited.get((lowers, tax), (0, 0))
        on_all = tax.on(base_before + base) - tax_before
        found.append(TaxSum(tax=tax, base_minor=base, tax_minor=on_all, lowers=lowers or None))
    return tuple(found)


def _gross(lines: Sequence[Line]) -> list[int]:
    """Each line with its part of the tax: parts that add up to each rate's rounded tax."""
    running: dict[Tax, int] = {}
    found = []
    for line in lines:
        part = 0
        if line.tax is not None:
            before = running.get(line.tax, 0)
            running[line.tax] = before + line.amount_minor
            part = line.tax.on(running[line.tax]) - line.tax.on(before)
        found.append(line.amount_minor + part)
    return found


def _spend(
    lines: Sequence[Line], total: int, run: Run, account: Account, history: History
) -> tuple[CreditUse, ...]:
    """Use prepaid credits in their order, each for the lines that it covers; no line is paid twice."""
    usable = [credit for credit in account.credits if credit.is_usable(run)]
    if not usable or not total:
        return ()
    ordered = sorted(lines, key=lambda line: (line.key.start_at, line.key))
    open_minor = _gross(ordered)
    _pay(open_minor, range(len(ordered)), -sum(each for each in open_minor if each < 0))
    used = []
    for credit in sorted(usable, key=lambda credit: credit.order):
        covered = [place for place, line in enumerate(ordered) if credit.covers(line)]
        paid = _pay(open_minor, covered, max(0, credit.amount_minor - history.taken(credit.id)))
        if paid:
            used.append(CreditUse(credit=credit.id, amount_minor=paid))
    return tuple(used)


def _pay(open_minor: list[int], places: Iterable[int], amount_minor: int) -> int:
    """Pay open amounts in order, as far as the money goes; gives how much was paid."""
    paid = 0
    for place in places:
        part = min(amount_minor - paid, max(0, open_minor[place]))
        open_minor[place] -= part
        paid += part
    return paid


def _give_back(
    lines: Iterable[Line], found: Iterable[TaxSum], amount_minor: int, history: History
) -> tuple[CreditUse, ...]:
    """What a credit note gives back to the credits that paid the invoices it lowers, the last used first."""
    lowered: dict[str, int] = {}
    for line in lines:
        if line.lowers is not None:
            lowered[line.lowers] = lowered.get(line.lowers, 0) - line.amount_minor
    for each in found:
        if each.lowers is not None:
            lowered[each.lowers] = lowered.get(each.lowers, 0) - each.tax_minor
    given = []
    for number in sorted(lowered):
        room = min(lowered[number], amount_minor)
        for credit, taken in reversed(history.used.get(number, {}).items()):
            part = min(room, taken)
            if part > 0:
                given.append(CreditUse(credit=credit, amount_minor=-part, lowers=number))
                room, amount_minor = room - part, amount_minor - part
    return tuple(given)


def members(settled: Settled, *, run: Run, currency: str) -> dict[str, Any]:
    """Write the members of a document that are computed; what says nothing is left out."""
    found: dict[str, Any] = {
        "currency": currency,
        "run": run.to_claims(),
        "lines": [
            {
                **line.to_claims(),
                "amount": money.to_text(line.amount_minor, currency),
                "invoice_at": run.cut_off,
            }
            for line in settled.lines
        ],
        "beside": [beside.to_claims() for beside in settled.beside],
        "total_minor": settled.total_minor,
        "total": money.to_text(settled.total_minor, currency),
    }
    if settled.kind != INVOICE:
        found["kind"] = settled.kind
    if settled.taxes:
        found["taxes"] = [each.to_claims() for each in settled.taxes]
    if settled.credits:
        found["credits"] = [use.to_claims() for use in settled.credits]
    if settled.balance_minor:
        found["balance_minor"] = settled.balance_minor
    if settled.due_minor != settled.total_minor:
        found["due_minor"] = settled.due_minor
        found["due"] = money.to_text(settled.due_minor, currency)
    if settled.replaces:
        found["replaces"] = list(settled.replaces)
    return found
