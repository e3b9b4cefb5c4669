"""Documents in the journal: what each of them moves between accounts (BILLING §5)."""

from licensing_server.accounts import journal
from licensing_server.accounts.journal import BALANCE, PREPAID, RECEIVABLE, REVENUE, TAX, About
from licensing_server.billing import account_store
from licensing_server.billing.store import Invoice
from licensing_server.database import Connection
from meterkit.documents import Settled
from meterkit.errors import ServiceError


def about(invoice: Invoice, at: int, kind: str) -> About:
    """What a transaction on a document is about."""
    return About(at=at, kind=kind, subject=invoice.id, customer=invoice.customer, currency=invoice.currency)


def book(connection: Connection, invoice: Invoice, settled: Settled) -> None:
    """Book a document that is finalized: what it earns, and how it is met."""
    journal.post(
        connection,
        about(invoice, invoice.finalized_at or 0, invoice.kind),
        {
            RECEIVABLE: settled.due_minor,
            PREPAID: sum(use.amount_minor for use in settled.credits),
            BALANCE: settled.balance_minor,
            REVENUE: -settled.subtotal_minor,
            TAX: -settled.tax_minor,
        },
    )


def check_funds(connection: Connection, invoice: Invoice) -> None:
    """See that nothing was given that is not there: not of the balance, nor of any prepaid credit.

    Raises:
        ServiceError: `state_conflict`.
    """
    if journal.balance(connection, invoice.customer, invoice.currency) < 0:
        raise ServiceError("state_conflict", "the balance is used up")
    credit = account_store.overdrawn(connection, invoice.customer, invoice.currency)
    if credit is not None:
        raise ServiceError("state_conflict", f"{credit} is used up")
