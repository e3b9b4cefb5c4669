"""`meterkit-server invoice` and `dispute`: what becomes of documents."""

import click

from licensing_server import shell
from licensing_server.billing import disputing, settling
from licensing_server.billing.commands import invoice
from licensing_server.billing.schemas import (
    NewConcession,
    NewDispute,
    NewPayment,
    NewRefund,
    NewVoid,
    Resolution,
)

dispute = shell.noun("dispute", "Disputed lines, and amounts that are let off.")
groups: list[click.Command] = [dispute]
_NOTE = click.option("--note", required=True, help="Why, in a person's words.")
_LINE = click.option("--line", type=int, required=True, help="Which line, counted from 1.")


@invoice.command()
@click.argument("invoice_id")
@click.option("--reference", required=True, help="What the payment says of itself.")
@click.option("--amount", default=None, help="By default all that is open.")
@click.option("--paid-at", type=shell.INSTANT, default=None, help="By default now.")
@shell.pass_shell
def pay(sh: shell.Shell, invoice_id: str, reference: str, amount: str | None, paid_at: int | None) -> None:
    """Note a payment on an invoice."""
    asked = NewPayment.read({"reference": reference, "amount": amount, "paid_at": paid_at})
    settling.pay(sh.server(), invoice_id, **asked.model_dump())
    sh.show(settling.show_payments(sh.server(), invoice_id))


@invoice.command()
@click.argument("invoice_id")
@shell.pass_shell
def payments(sh: shell.Shell, invoice_id: str) -> None:
    """Show what was paid on an invoice, and what is open."""
    sh.show(settling.show_payments(sh.server(), invoice_id))


@invoice.command()
@click.argument("invoice_id")
@_NOTE
@shell.pass_shell
def void(sh: shell.Shell, invoice_id: str, note: str) -> None:
    """Take a document back; the next run bills what is owed anew."""
    found = settling.void(sh.server(), invoice_id, note=NewVoid.read({"note": note}).note)
    sh.show({name: found[name] for name in ("id", "number", "state", "void_run")})


@invoice.command()
@click.argument("customer_id")
@click.argument("amount")
@click.argument("currency")
@click.option("--reference", required=True, help="What the payment says of itself.")
@shell.pass_shell
def refund(sh: shell.Shell, customer_id: str, amount: str, currency: str, reference: str) -> None:
    """Note that a part of a customer's balance was paid back by hand."""
    asked = NewRefund.read({"currency": currency, "amount": amount, "reference": reference})
    sh.show(settling.refund(sh.server(), customer_id, **asked.model_dump()))


@dispute.command("open")
@click.argument("invoice_id")
@_LINE
@_NOTE
@shell.pass_shell
def open_one(sh: shell.Shell, invoice_id: str, line: int, note: str) -> None:
    """Hold a line that the customer disputes: it is not collected, and its key is not billed on."""
    asked = NewDispute.read({"line": line, "note": note})
    sh.show(disputing.dispute(sh.server(), invoice_id, line=asked.line, note=asked.note))


@dispute.command()
@click.argument("dispute_id")
@click.option("--outcome", type=click.Choice(disputing.OUTCOMES), required=True)
@click.option("--amount", default=None, help="How much is conceded.")
@_NOTE
@shell.pass_shell
def resolve(sh: shell.Shell, dispute_id: str, outcome: str, amount: str | None, note: str) -> None:
    """End a dispute."""
    asked = Resolution.read({"outcome": outcome, "amount": amount, "note": note})
    sh.show(disputing.resolve(sh.server(), dispute_id, **asked.model_dump()))


@dispute.command()
@click.argument("invoice_id")
@_LINE
@click.option("--amount", required=True, help="How much is let off.")
@_NOTE
@shell.pass_shell
def concede(sh: shell.Shell, invoice_id: str, line: int, amount: str, note: str) -> None:
    """Let off an amount on a line, whatever was used."""
    asked = NewConcession.read({"line": line, "amount": amount, "note": note})
    sh.show(disputing.concede(sh.server(), invoice_id, **asked.model_dump()))


@dispute.command("list")
@click.argument("customer_id")
@shell.pass_shell
def list_all(sh: shell.Shell, customer_id: str) -> None:
    """List a customer's disputes."""
    found = disputing.show(sh.server(), customer_id)
    columns = (
        *("id", "invoice", "line", "amount_minor", "since_run", "until_run", "outcome", "note"),
        *("pending_quantity", "pending_minor"),
    )
    sh.show_list({"items": found["disputes"]}, columns)
