"""Customers' accounts: the taxes they pay, what they paid ahead, and where they stand (BILLING §3, §5)."""

from typing import Any

from licensing_server.accounts import journal, store
from licensing_server.accounts.journal import CASH, PREPAID, About
from licensing_server.audit_log import service as audit_log
from licensing_server.customers import service as customers
from licensing_server.database import Connection, number_to_come, read
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import money
from meterkit.errors import InputError
from meterkit.limits import INTEGER_MAX


def read_amount(text: str, currency: str) -> int:
    """Read an amount of money above zero, in a currency's minor units.

    Raises:
        InputError: `malformed_members` for what is no decimal, has parts of a minor unit, or is zero.
        ServiceError: `currency_wrong`.
    """
    scaled = money.read_decimal(text) * 10 ** money.decimals_of(currency)
    if scaled.denominator != 1 or not 0 < scaled <= INTEGER_MAX:
        raise InputError("malformed_members", "amount: above zero, in whole minor units of its currency")
    return int(scaled)


def set_tax_rate(
    server: Server, *, name: str, percent: str, starts_at: int, customer: str | None = None, once: Once = NO_KEY
) -> Document:
    """Say which tax counts from an instant on: for one customer, or for all that have one of this name.

    Documents that are finalized keep theirs; lines of later runs take the rate in force where their period ends.

    Raises:
        ServiceError: `not_found`.
    """

    def make(connection: Connection) -> Document:
        named = store.customers_taxed(connection, name) if customer is None else [customer]
        rate = {
            "starts_at": starts_at,
            "since_run": number_to_come(connection, "billing_run"),
            "name": name,
            "percent": percent,
        }
        now = server.clock()
        rows = [{**rate, "customer": customers.find(connection, each).id, "created_at": now} for each in named]
        if rows:
            store.insert_tax_rates(connection, rows)
        document = {**rate, "customers": len(rows)}
        audit_log.append(
            server, connection, who=once.who, action="tax_rate.set", subject=customer or name, body=document
        )
        return document

    return once.run(server, make)


def show_tax_rates(server: Server, customer_id: str) -> Document:
    """Show a customer's tax rates."""
    with read(server) as connection:
        customers.find(connection, customer_id)
        found = store.read_tax_rates(connection, [customer_id]).get(customer_id, [])
    names = ("starts_at", "since_run", "name", "percent")
    return {"items": [{name: getattr(rate, name) for name in names} for rate in found]}


def add_credit(
    server: Server,
    customer_id: str,
    *,
    currency: str,
    amount: str,
    starts_at: int | None = None,
    expires_at: int | None = None,
    purchased_at: int | None = None,
    priority: int = 0,
    once: Once = NO_KEY,
) -> Document:
    """Note money that a customer paid ahead. The next runs use it, in the order of priority, expiry and purchase.

    Raises:
        InputError: `malformed_members` for no amount of the currency, or a validity that ends before it begins.
        ServiceError: `not_found`, `currency_wrong`.
    """
    amount_minor = read_amount(amount, currency)

    def make(connection: Connection) -> Document:
        now = server.clock()
        start = now if starts_at is None else starts_at
        credit_id = server.make_id("cred")
        row = {
            "id": credit_id,
            "customer": customers.find(connection, customer_id).id,
            "currency": currency,
            "amount_minor": amount_minor,
            "priority": priority,
            "starts_at": start,
            "expires_at": expires_at,
            "purchased_at": now if purchased_at is None else purchased_at,
            "since_run": number_to_come(connection, "billing_run"),
            "created_at": now,
        }
        if expires_at is not None and expires_at <= start:
            raise InputError("malformed_members", "expires_at: it ends before it begins")
        store.insert_credit(connection, row)
        about = About(at=now, kind="credit", subject=credit_id, customer=customer_id, currency=currency)
        journal.post(connection, about, {CASH: amount_minor, PREPAID: -amount_minor})
        audit_log.append(server, connection, who=once.who, action="credit.add", subject=credit_id, body=row)
        return row

    return once.run(server, make)


def page_credits(server: Server, asked: Page, customer_id: str) -> Document:
    """List a customer's prepaid credits."""
    with read(server) as connection:
        customers.find(connection, customer_id)
        return store.page_credits(connection, asked, customer_id)


def show(server: Server, customer_id: str) -> Document:
    """Show where a customer stands, per currency: what it owes, has paid ahead, and has to its credit; and what it
    had paid ahead and not used in time.
    """
    with read(server) as connection:
        customers.find(connection, customer_id)
        found = journal.balances(connection, customer_id)
    shown = (
        *(("owes", journal.RECEIVABLE, 1), ("prepaid", PREPAID, -1), ("balance", journal.BALANCE, -1)),
        ("breakage", journal.BREAKAGE, -1),
    )
    items = []
    for currency, own in found.items():
        item: dict[str, Any] = {"currency": currency}
        for name, account, sign in shown:
            item[f"{name}_minor"] = sign * own.get(account, 0)
            item[name] = money.to_text(item[f"{name}_minor"], currency)
        items.append(item)
    return {"customer": customer_id, "items": items}
