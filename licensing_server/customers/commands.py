"""`meterkit-server customer`."""

import click

from licensing_server import shell
from licensing_server.customers import service
from licensing_server.customers.schemas import NewCustomer

group = shell.noun("customer", "Customers: whom licenses are granted to.")
groups: list[click.Command] = [group]


@group.command()
@click.argument("name")
@click.option("--time-zone", default="UTC", help="IANA name, as Europe/Berlin: where billing days begin.")
@shell.pass_shell
def create(sh: shell.Shell, name: str, time_zone: str) -> None:
    """Add a customer."""
    asked = NewCustomer.read({"name": name, "time_zone": time_zone})
    sh.show(service.create(sh.server(), name=asked.name, time_zone=asked.time_zone))


@group.command("list")
@shell.paged
@shell.pass_shell
def list_all(sh: shell.Shell, cursor: str | None, limit: int) -> None:
    """List customers."""
    found = service.page(sh.server(), shell.to_page(cursor, limit))
    sh.show_list(found, ("id", "name", "time_zone", "created_at"))


@group.command()
@click.argument("customer_id")
@shell.pass_shell
def show(sh: shell.Shell, customer_id: str) -> None:
    """Show a customer."""
    sh.show(service.show(sh.server(), customer_id))
