"""Several customers' accounts, and what their earlier documents left behind, read at once as a run knows them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.accounts import store as accounts
from licensing_server.accounts.store import Owner
from licensing_server.billing.account_store import (
    credit_uses,
    invoice_replacements,
    invoice_taxes,
    tax_of,
)
from licensing_server.billing.store import counted, invoice_lines, invoices, key_from_row
from licensing_server.database import pieces, total
from meterkit.accounts import Account, Credit, CreditUse, History, Refund, TaxSum, Void
from meterkit.attribution import Run
from meterkit.taxes import Tax, TaxRate


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What is known of some customers at a run, by customer, or by customer and currency."""

    run: Run
    decided: Mapping[str, Account]  # concessions and disputes, in any currency
    tax_rates: Mapping[str, list[TaxRate]]
    credits: Mapping[Owner, list[Credit]]
    refunds: Mapping[Owner, list[Refund]]
    voids: Mapping[Owner, list[Void]]
    histories: Mapping[Owner, History]

    def account(self, customer: str, currency: str) -> Account:
        """What was decided about a customer's account in one currency."""
        owner, decided = (customer, currency), self.decided.get(customer, Account())
        return Account(
            tax_rates=tuple(self.tax_rates.get(customer, ())),
            credits=tuple(self.credits.get(owner, ())),
            refunds=tuple(self.refunds.get(owner, ())),
            voids=tuple(self.voids.get(owner, ())),
            concessions=decided.concessions,
            disputes=decided.disputes,
        ).known_at(self.run)

    def history(self, customer: str, currency: str) -> History:
        """What a customer's earlier documents in one currency left behind."""
        return self.histories.get((customer, currency), History())


def read(connection: sa.Connection, asked: Collection[str], decided: Mapping[str, Account], run: Run) -> Books:
    """Read the books of some customers, with what was decided about their lines."""
    return Books(
        run=run,
        decided=decided,
        tax_rates=accounts.read_tax_rates(connection, asked),
        credits=accounts.read_credits(connection, asked),
        refunds=accounts.read_refunds(connection, asked),
        voids=_voids(connection, asked, run),
        histories=_histories(connection, asked, run),
    )


def _voids(connection: sa.Connection, asked: Collection[str], run: Run) -> dict[Owner, list[Void]]:
    table = invoices.c
    chosen = sa.select(table.customer, table.currency, table.number, table.void_run).order_by(table.number)
    known = sa.and_(table.void_run <= run.number, table.run < run.number, table.number.is_not(None))
    found: dict[Owner, list[Void]] = {}
    for some in pieces(asked):
        for row in connection.execute(chosen.where(table.customer.in_(some), known)):
            void = Void(number=row.number, since_run=row.void_run)
            found.setdefault((row.customer, row.currency), []).append(void)
    return found


def _histories(connection: sa.Connection, asked: Collection[str], run: Run) -> dict[Owner, History]:
    found: dict[Owner, History] = {}
    for some in pieces(asked):
        _add_histories(connection, invoices.c.customer.in_(some), run, found)
    return found


def _add_histories(
    connection: sa.Connection, mine: sa.ColumnElement[bool], run: Run, found: dict[Owner, History]
) -> None:
    def of(row: Any) -> History:
        return found.setdefault((row.customer, row.currency), History())

    counts = sa.and_(mine, counted(run.number))
    for row in _replaced(connection, mine, run):
        of(row).replaced.add(row.number)
    for row in _ordered(connection, invoice_lines, sa.and_(counts, invoice_lines.c.amount_minor > 0)):
        of(row).add_line(row.number, key_from_row(row), row.amount_minor, tax_of(row))
    for row in _ordered(connection, invoice_taxes, counts):
        tax = Tax(name=row.name, percent=row.percent)
        of(row).add_tax(TaxSum(tax=tax, base_minor=row.base_minor, tax_minor=row.tax_minor, lowers=row.lowers))
    for row in _ordered(connection, credit_uses, counts):
        of(row).add_use(row.number, CreditUse(credit=row.credit, amount_minor=row.amount_minor, lowers=row.lowers))
    table = invoices.c
    taken = sa.select(table.customer, table.currency, total(table.balance_minor).label("taken")).where(counts)
    for row in connection.execute(taken.group_by(table.customer, table.currency)):
        of(row).balance_minor = -int(row.taken)


def _ordered(connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> Iterable[Any]:
    """Rows of documents, in the order of their runs."""
    of_document = (invoices.c.number, invoices.c.customer, invoices.c.currency)
    chosen = sa.select(table, *of_document).join(invoices, invoices.c.id == table.c.invoice).where(where)
    return connection.execute(chosen.order_by(invoices.c.run, table.c.place))


def _replaced(connection: sa.Connection, mine: sa.ColumnElement[bool], run: Run) -> Iterable[Any]:
    """The void documents that an earlier one, void itself or not, has taken the place of."""
    replaced = invoice_replacements.c
    chosen = sa.select(replaced.number, invoices.c.customer, invoices.c.currency)
    joined = chosen.join(invoices, invoices.c.id == replaced.invoice)
    return connection.execute(joined.where(mine, invoices.c.run < run.number))
