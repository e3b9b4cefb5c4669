"""`meterkit-server account`."""

import click

from licensing_server import shell
from licensing_server.accounts import service
from licensing_server.accounts.schemas import NewCredit, NewTaxRate

group = shell.noun("account", "Customers' accounts: taxes, prepaid credits, balances.")
groups: list[click.Command] = [group]


@group.command("set-tax")
@click.argument("name")
@click.argument("percent")
@click.option("--starts-at", type=shell.INSTANT, required=True, help="The instant from which it counts.")
@click.option("--customer", default=None, help="By default all that have a tax of this name.")
@shell.pass_shell
def set_tax(sh: shell.Shell, name: str, percent: str, starts_at: int, customer: str | None) -> None:
    """Let a tax count from an instant on, as `VAT 19`."""
    asked = NewTaxRate.read({"name": name, "percent": percent, "starts_at": starts_at, "customer": customer})
    sh.show(service.set_tax_rate(sh.server(), **asked.model_dump()))


@group.command()
@click.argument("customer_id")
@shell.pass_shell
def taxes(sh: shell.Shell, customer_id: str) -> None:
    """Show a customer's tax rates."""
    sh.show_list(service.show_tax_rates(sh.server(), customer_id), ("starts_at", "name", "percent", "since_run"))


@group.command("add-credit")
@click.argument("customer_id")
@click.argument("amount")
@click.argument("currency")
@click.option("--starts-at", type=shell.INSTANT, default=None, help="By default now.")
@click.option("--expires-at", type=shell.INSTANT, default=None, help="By default never.")
@click.option("--purchased-at", type=shell.INSTANT, default=None, help="By default now.")
@click.option("--priority", type=int, default=0, help="The lowest is used first.")
@shell.pass_shell
def add_credit(sh: shell.Shell, /, customer_id: str, amount: str, currency: str, **chosen: int | None) -> None:
    """Note money that a customer paid ahead."""
    asked = NewCredit.read({"currency": currency, "amount": amount, **chosen})
    sh.show(service.add_credit(sh.server(), customer_id, **asked.model_dump()))


@group.command("credits")
@click.argument("customer_id")
@shell.paged
@shell.pass_shell
def list_credits(sh: shell.Shell, customer_id: str, cursor: str | None, limit: int) -> None:
    """List a customer's prepaid credits."""
    found = service.page_credits(sh.server(), shell.to_page(cursor, limit), customer_id)
    sh.show_list(found, ("id", "currency", "amount_minor", "priority", "starts_at", "expires_at"))


@group.command()
@click.argument("customer_id")
@shell.pass_shell
def show(sh: shell.Shell, customer_id: str) -> None:
    """Show where a customer stands."""
    sh.show_list(service.show(sh.server(), customer_id), ("currency", "owes", "prepaid", "balance", "breakage"))
