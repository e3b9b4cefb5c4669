"""What customers are billed by at a run, read for all of them at once, and what the one rule makes of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from licensing_server.billing import account_store, dispute_store, estimating, lateness, run_store, store, sums
from licensing_server.billing import terms as customer_terms
from licensing_server.customers.store import Customer
from meterkit import estimates, invoices
from meterkit.accounts import Account
from meterkit.attribution import Run, Slot, Usage
from meterkit.documents import Bills
from meterkit.estimates import Estimates
from meterkit.lateness import closed_by, deadlines
from meterkit.lines import Beside, Bill, Billed, Key, Line, of_license
from meterkit.terms import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Licensed:
    """What is known of one license at a run: which of its periods are closed, and what was used, is missing, was
    billed.
    """

    terms: Terms
    closed: Mapping[Slot, Run]
    usage: Usage
    estimated: Estimates
    billed: Mapping[Key, Billed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """One customer at the last of its `runs`, and what it is billed by.

    `has_account` where anything was decided about its account; `decided` is what of it is about lines.
    """

    id: str
    runs: Sequence[Run]
    has_account: bool
    decided: Account
    licenses: Sequence[Licensed]

    @property
    def terms(self) -> tuple[Terms, ...]:
        """The terms of its licenses."""
        return tuple(each.terms for each in self.licenses)

    def bills_by_currency(self) -> dict[str, Bills]:
        """Bill its licenses; gives what makes a document, in each currency that has lines."""
        lines: dict[str, list[Line]] = {}
        beside: list[Beside] = []
        for made in self._bills():
            beside += made.beside
            for line in made.lines:
                lines.setdefault(line.currency, []).append(line)
        return {
            currency: Bills(
                lines=tuple(sorted(lines[currency], key=lambda line: line.key)), beside=tuple(sorted(beside))
            )
            for currency in sorted(lines)
        }

    def pending(self) -> list[Line]:
        """What waits because its key is disputed: the lines that it would be."""
        return sorted((line for made in self._bills() for line in made.pending), key=lambda line: line.key)

    def _bills(self) -> Iterator[Bill]:
        """What each of its licenses is billed."""
        run = self.runs[-1]
        conceded, disputed = self.decided.conceded(run), self.decided.disputed(run)
        for each in self.licenses:
            yield invoices.bill(
                each.terms,
                each.usage,
                each.billed,
                self.runs,
                closed=each.closed,
                estimated=each.estimated,
                conceded=of_license(conceded, each.terms.license_id),
                disputed=disputed,
            )


def read_all(
    connection: sa.Connection, customers: Iterable[Customer], run: Run, *, cited: bool = False
) -> Iterator[Billing]:
    """Read what several customers are billed by; with the records of each sum, if they are to be cited."""
    terms = customer_terms.read_all(connection, {each.id: each.zone for each in customers}, run)
    runs = run_store.runs_of_all(connection, terms, run.number)
    with_account = account_store.with_account(connection, terms)
    decided = dispute_store.read_decided(connection, with_account)
    licensed = _licensed(connection, terms, runs, run, cited=cited)
    for customer in terms:
        yield Billing(
            id=customer,
            runs=runs[customer],
            has_account=customer in with_account,
            decided=decided.get(customer, Account()),
            licenses=licensed[customer],
        )


def _licensed(
    connection: sa.Connection,
    terms: Mapping[str, list[Terms]],
    runs: Mapping[str, list[Run]],
    run: Run,
    *,
    cited: bool,
) -> dict[str, list[Licensed]]:
    every = [each for own in terms.values() for each in own]
    usage = sums.read(connection, run, every, cited=cited)
    billed: dict[str, dict[Key, Billed]] = {}
    for key, before in store.read_billed(connection, [each.license_id for each in every], run.number).items():
        billed.setdefault(key.license_id, {})[key] = before
    fleets = lateness.fleets(connection, every, run)
    closed = {
        each.license_id: closed_by(each, runs[customer], fleets.get(each.license_id, ()))
        for customer, own in terms.items()
        for each in own
    }
    estimated = _estimated(connection, every, run, closed, fleets)

    def licensed(each: Terms) -> Licensed:
        name = each.license_id
        return Licensed(
            terms=each,
            closed=closed[name],
            usage=_in_time(connection, each, run, closed[name], usage.get(name, Usage())),
            estimated=estimated.get(name, {}),
            billed=billed.get(name, {}),
        )

    return {customer: [licensed(each) for each in own] for customer, own in terms.items()}


def _estimated(
    connection: sa.Connection,
    terms: Iterable[Terms],
    run: Run,
    closed: Mapping[str, Mapping[Slot, Run]],
    fleets: lateness.Fleets,
) -> dict[str, Estimates]:
    """What is taken to be missing, by license."""
    gaps = {
        each.license_id: estimates.gaps(each, closed[each.license_id], run, fleets.get(each.license_id, ()))
        for each in terms
    }
    return estimating.read(connection, run, terms, gaps)


def _in_time(connection: sa.Connection, terms: Terms, run: Run, closed: Mapping[Slot, Run], usage: Usage) -> Usage:
    """The usage by the contract's own deadlines, where it has any."""
    late = deadlines(terms, closed, run)
    if not late:
        return usage
    return replace(usage, measured=lateness.measure(connection, terms, run, late))
