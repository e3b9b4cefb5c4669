"""A customer's book: lines settled document after document, and what must be so of each, worked out anew.

Nothing here calls the rules that it judges: taxes are fractions, credits are handed out minor unit by minor unit.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction

import billing_terms as bt
from billing_terms import DAY

from meterkit.accounts import Account, Concession, Credit, History, Refund, Void
from meterkit.attribution import Run
from meterkit.documents import Bills, Settled, settle
from meterkit.lines import Key, Line
from meterkit.taxes import Tax, TaxRate

MONTH = 30 * DAY


def key(charge: str = "calls", month: int = 0, kind: str = "measured") -> Key:
    start = month * MONTH
    return Key(
        license_id=bt.LICENSE,
        start_at=start,
        end_at=start + MONTH,
        charge=charge,
        plan_id=bt.PLAN,
        version=1,
        kind=kind,
    )


def line(about: Key, owed: int, before: int = 0) -> Line:
    return Line(
        key=about,
        currency="EUR",
        description=about.charge,
        share=Fraction(1),
        quantity=0,
        quantity_before=0,
        owed_minor=owed,
        billed_before_minor=before,
        late=False,
        cited=(),
    )


def half_away(exact: Fraction) -> int:
    whole = int(abs(exact) + Fraction(1, 2))
    return whole if exact >= 0 else -whole


def on(tax: Tax, base: int) -> int:
    """The tax on a sum of minor units, by the rule."""
    return half_away(base * Fraction(tax.percent) / 100)


@dataclass
class Book:
    """One customer and currency: what is owed, what was decided, what was billed."""

    owed: dict[Key, int] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    runs: list[Run] = field(default_factory=list)
    documents: list[tuple[Run, str, Settled]] = field(default_factory=list)
    refused: int = 0

    # -- what is decided, known from the next run on

    @property
    def next_run(self) -> int:
        return len(self.runs) + 1

    def _add(self, name: str, *decided: object) -> None:
        self.account = replace(self.account, **{name: (*getattr(self.account, name), *decided)})

    def tax(self, percent: str, starts_at: int = -1, name: str = "VAT") -> None:
        rate = TaxRate(starts_at=starts_at, since_run=self.next_run, name=name, percent=percent)
        kept = tuple(
            each
            for each in self.account.tax_rates
            if (each.starts_at, each.since_run) != (rate.starts_at, rate.since_run)
        )
        self.account = replace(self.account, tax_rates=(*kept, rate))

    def credit(self, amount: int, **named: int | None) -> str:
        values = {"priority": 0, "starts_at": 0, "expires_at": None, "purchased_at": 0} | named
        made = Credit(
            id=f"cred_{len(self.account.credits):02}",
            amount_minor=amount,
            since_run=self.next_run,
            **values,  # type: ignore[arg-type]
        )
        self._add("credits", made)
        return made.id

    def concede(self, about: Key, amount: int) -> None:
        own = replace(about, kind="concession")
        self._add("concessions", Concession(key=own, amount_minor=amount, since_run=self.next_run))
        self.owed[own] = self.owed.get(own, 0) - amount

    def refund(self, amount: int) -> None:
        self._add("refunds", Refund(amount_minor=amount, since_run=self.next_run))

    def void(self, number: str) -> bool:
        """Void a document, if it may be: nothing lowers it, and what it gave is still there."""
        lowered = any(line.lowers == number for _, other, made in self.standing() for line in made.lines)
        after = replace(self, account=self.account)
        after._add("voids", Void(number=number, since_run=self.next_run))
        if lowered or after.balance() < 0 or any(used > self.amount(c) for c, used in after.used().items()):
            self.refused += 1
            return False
        self.account = after.account
        return True

    # -- what stands

    def standing(self) -> list[tuple[Run, str, Settled]]:
        gone = {void.number for void in self.account.voids}
        return [each for each in self.documents if each[1] not in gone]

    def balance(self) -> int:
        held = -sum(made.balance_minor for _, _, made in self.standing())
        return held - sum(refund.amount_minor for refund in self.account.refunds)

    def amount(self, credit: str) -> int:
        return next(each.amount_minor for each in self.account.credits if each.id == credit)

    def used(self) -> dict[str, int]:
        found: dict[str, int] = {each.id: 0 for each in self.account.credits}
        for _, _, made in self.standing():
            for use in made.credits:
                found[use.credit] += use.amount_minor
        return found

    def billed(self) -> dict[Key, int]:
        found: dict[Key, int] = {}
        for _, _, made in self.standing():
            for each in made.lines:
                found[each.key] = found.get(each.key, 0) + each.amount_minor
        return found

    # -- billing

    def lines(self) -> tuple[Line, ...]:
        before = self.billed()
        made = [line(about, owed, before.get(about, 0)) for about, owed in sorted(self.owed.items())]
        return tuple(each for each in made if each.amount_minor)

    def history(self) -> History:
        found = History(replaced={name for _, _, made in self.documents for name in made.replaces})
        for _, number, made in self.standing():
            made.note_in(found, number)
        return found

    def run(self, day: int) -> tuple[str, Settled] | None:
        """Bill what is owed; gives the document, judged, or None where there is nothing to bill."""
        run = Run(number=self.next_run, cut_off=day * DAY, acceptance_max=0)
        found = self.lines()
        made = None
        if found:
            made = settle(Bills(lines=found, beside=()), run=run, account=self.account, history=self.history())
            self.judge(run, made)
        self.runs.append(run)
        if made is None:
            return None
        number = f"{'CN' if made.kind == 'credit_note' else 'INV'}-{len(self.documents) + 1:06d}"
        self.documents.append((run, number, made))
        assert self.billed() == {
            about: owed for about, owed in self.owed.items() if owed or about in self.billed()
        }
        assert self.balance() >= 0
        assert all(0 <= used <= self.amount(credit) for credit, used in self.used().items())
        return number, made

    # -- what must be so of a document

    def judge(self, run: Run, made: Settled) -> None:
        total = sum(each.amount_minor for each in made.lines) + sum(each.tax_minor for each in made.taxes)
        credits_minor = sum(use.amount_minor for use in made.credits)
        assert total == credits_minor + made.balance_minor + made.due_minor
        assert made.due_minor >= 0
        assert (made.kind == "credit_note") == (total < 0)
        if made.kind == "credit_note":
            assert made.due_minor == 0
            assert made.balance_minor <= 0
            assert all(use.amount_minor < 0 for use in made.credits)
        else:
            assert all(use.amount_minor > 0 for use in made.credits)
            assert made.due_minor == 0 or made.balance_minor == max(0, self.balance())
        for each in made.lines:
            self._judge_line(each, run)
        self._judge_taxes(made)
        if made.kind == "invoice" and not any(each.lowers for each in made.taxes):
            assert [(use.credit, use.amount_minor) for use in made.credits] == self._handed_out(run, made)

    def _judge_line(self, each: Line, run: Run) -> None:
        own = (
            [("measured", each.key), ("fee", replace(each.key, kind="recurring"))]
            if each.key.kind != "concession"
            else [(kind, replace(each.key, kind=kind)) for kind in ("measured", "recurring", "concession")]
        )
        keys = {each.key} if each.key.kind != "concession" else {about for _, about in own}
        above = [
            (number, billed.tax)
            for _, number, made in self.standing()
            for billed in made.lines
            if billed.key in keys and billed.amount_minor > 0
        ]
        if each.amount_minor < 0 and above:
            assert (each.lowers, each.tax) == above[-1]
            return
        rates = [r for r in self.account.tax_rates if r.starts_at < each.key.end_at and r.since_run <= run.number]
        last = sorted(rates, key=lambda rate: (rate.starts_at, rate.since_run))[-1:]
        assert each.lowers is None
        assert each.tax == (Tax(name=last[0].name, percent=last[0].percent) if last else None)

    def _judge_taxes(self, made: Settled) -> None:
        """Per rate on an invoice; on a credit note over all of them, per invoice that they lower, and rate."""
        by_rate: dict[Tax, int] = {}
        for each in made.lines:
            if each.tax:
                by_rate[each.tax] = by_rate.get(each.tax, 0) + each.amount_minor
        if not any(each.lowers for each in made.taxes) and made.kind == "invoice":
            assert {each.tax: (each.base_minor, each.tax_minor) for each in made.taxes} == {
                tax: (base, on(tax, base)) for tax, base in by_rate.items()
            }
            return
        notes = [
            other
            for _, _, other in [*self.standing(), (None, "", made)]
            if other.kind == "credit_note" or any(each.lowers for each in other.taxes)
        ]
        for each in made.taxes:
            same = [
                billed.amount_minor
                for other in (notes if each.lowers else [made])
                for billed in other.lines
                if (billed.tax, billed.lowers) == (each.tax, each.lowers)
            ]
            credited = [
                found.tax_minor
                for other in (notes if each.lowers else [made])
                for found in other.taxes
                if (found.tax, found.lowers) == (each.tax, each.lowers)
            ]
            assert sum(credited) == on(each.tax, sum(same))
        assert sum(each.base_minor for each in made.taxes) == sum(by_rate.values())

    def _handed_out(self, run: Run, made: Settled) -> list[tuple[str, int]]:
        """Prepaid credits, minor unit by minor unit."""
        units: list[Line] = []
        below, running = 0, dict.fromkeys((each.tax for each in made.lines), 0)
        for each in sorted(made.lines, key=lambda own: (own.key.start_at, own.key)):
            gross = each.amount_minor
            if each.tax:
                before = running[each.tax]
                running[each.tax] += each.amount_minor
                gross += on(each.tax, running[each.tax]) - on(each.tax, before)
            units += [each] * max(0, gross)
            below += max(0, -gross)
        del units[:below]
        found = []
        used = self.used()
        order = sorted(
            self.account.credits,
            key=lambda c: (c.priority, c.expires_at is None, c.expires_at or 0, c.purchased_at, c.id),
        )
        for credit in order:
            over = credit.expires_at is not None and run.cut_off >= credit.expires_at + 90 * DAY
            left, kept, paid = credit.amount_minor - used[credit.id], [], 0
            for unit in units:
                at = unit.key.start_at
                covered = credit.starts_at <= at and (credit.expires_at is None or at < credit.expires_at)
                if covered and not over and credit.since_run <= run.number and paid < left:
                    paid += 1
                else:
                    kept.append(unit)
            units = kept
            if paid:
                found.append((credit.id, paid))
        return found
