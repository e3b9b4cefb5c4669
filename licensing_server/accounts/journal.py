"""The journal beneath documents and payments: double entry, appended to, never updated (BILLING §5).

Each transaction sums to zero. Every balance is a sum of it, and kept nowhere else. Amounts are minor units; what
an account receives is above zero, what it gives is below.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from licensing_server.database import Connection, metadata, next_number, total

RECEIVABLE = "receivable"  # what customers owe
REVENUE = "revenue"
TAX = "tax"  # what is owed to the state
PREPAID = "prepaid"  # what is owed to customers in use of their prepaid credits
BALANCE = "balance"  # what is owed to customers, by credit notes
CASH = "cash"
BREAKAGE = "breakage"  # what was paid ahead and not used in time
BROKEN = "breakage"  # the kind of act that books it

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # of the transaction
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # a document's, or void | payment | refund | credit | breakage
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), nullable=False, index=True),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a transaction is about: when, what kind of act, of what, of whom."""

    at: int
    kind: str
    subject: str
    customer: str
    currency: str


def post(connection: Connection, about: About, amounts: Mapping[str, int]) -> None:
    """Append one transaction, in the database's transaction of the act it books; accounts at zero are left out."""
    booked = {account: amount for account, amount in amounts.items() if amount}
    if sum(booked.values()):
        raise ValueError("a transaction sums to zero")
    if not booked:
        return
    number = next_number(connection, "journal")
    shared = {
        "number": number,
        "at": about.at,
        "kind": about.kind,
        "subject": about.subject,
        "customer": about.customer,
        "currency": about.currency,
    }
    rows = [{**shared, "account": account, "amount_minor": amount} for account, amount in booked.items()]
    connection.execute(sa.insert(journal), rows)


def reverse(connection: Connection, about: About, kinds: tuple[str, ...]) -> None:
    """Append the opposite of all that was booked for a subject by these kinds of act."""
    table = journal.c
    sums = sa.select(table.account, total(table.amount_minor)).where(
        table.subject == about.subject, table.kind.in_(kinds)
    )
    found = connection.execute(sums.group_by(table.account)).all()
    post(connection, about, {account: -amount for account, amount in found})


def balances(connection: Connection, customer: str) -> dict[str, dict[str, int]]:
    """What stands on each account for a customer: currency → account → minor units."""
    table = journal.c
    sums = sa.select(table.currency, table.account, total(table.amount_minor)).where(table.customer == customer)
    found: dict[str, dict[str, int]] = {}
    rows = connection.execute(sums.group_by(table.currency, table.account).order_by(table.currency, table.account))
    for currency, account, amount in rows:
        found.setdefault(currency, {})[account] = int(amount)
    return found


def balance(connection: Connection, customer: str, currency: str) -> int:
    """What a customer may still be given of its balance, or paid back."""
    return -balances(connection, customer).get(currency, {}).get(BALANCE, 0)
