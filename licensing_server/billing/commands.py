"""`meterkit-server billing` and `invoice`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from licensing_server import settings, shell
from licensing_server.billing import changing, conserving, correcting, outputs, service, stripe_sending
from licensing_server.billing.outputs import Output
from licensing_server.billing.schemas import NewCorrection
from licensing_server.billing.service import Watch

billing = shell.noun("billing", "Billing runs: working out what is owed.")
invoice = shell.noun("invoice", "Invoices: drafts, finalized ones, and their evidence.")
groups: list[click.Command] = [billing, invoice]


@billing.command()
@click.option("--cut-off", type=shell.INSTANT, default=None, help="Bill what was used before it; by default now.")
@click.option("--customer", default=None, help="Bill this customer only.")
@click.option("--dry-run", is_flag=True, help="Only show what would be drafted.")
@shell.pass_shell
def run(sh: shell.Shell, cut_off: int | None, customer: str | None, *, dry_run: bool) -> None:
    """Bill up to a cut-off, showing progress on a terminal.

    Asked again with the same cut-off, it gives what it stored.
    """
    server = sh.server()
    if dry_run:
        return sh.show(service.dry_run(server, cut_off=cut_off, customer=customer))
    with _watching() as watch:
        made = service.run(server, cut_off=cut_off, customer=customer, watch=watch)
    sh.show(made)
    service.add_up(server)
    if made["failed"]:
        raise click.exceptions.Exit(1)
    return None


@contextmanager
def _watching() -> Iterator[Watch]:
    """Show a person at a terminal how many customers are billed: a bar for each run that has any to bill."""
    with ExitStack() as shown:
        bars = []

        def watch(billed: int, of: int) -> None:
            if not billed:  # a run begins, and one that was interrupted has come to its end
                shown.close()
                bar = click.progressbar(length=of, label="billing customers", show_pos=True, **shell.progress())
                bars.append(shown.enter_context(bar))
            bars[-1].update(billed - bars[-1].pos)

        yield watch


@billing.command("change-plan")
@click.argument("license_id")
@click.option("--plan", required=True, help="Its id.")
@click.option("--plan-version", type=int, default=None, help="By default the newest.")
@click.option("--starts", type=click.Choice(["next_period", "now"]), default="next_period")
@shell.pass_shell
def change_plan(sh: shell.Shell, license_id: str, plan: str, plan_version: int | None, starts: str) -> None:
    """Bill a license by another version of a plan, from its next period or from now on."""
    sh.show(changing.change_plan(sh.server(), license_id, plan=plan, version=plan_version, starts=starts))


@billing.command("correct-plan")
@click.argument("license_id")
@click.option("--plan", required=True, help="Its id.")
@click.option("--plan-version", type=int, default=None, help="By default the newest.")
@click.option("--starts-at", type=shell.INSTANT, required=True, help="From when on it should have counted.")
@click.option("--note", required=True, help="Why, in a person's words.")
@shell.pass_shell
def correct_plan(sh: shell.Shell, /, license_id: str, **given: Any) -> None:
    """Bill a license by another version of a plan from an instant in the past on.

    The next run withdraws what the version that should not have counted had billed, and bills by this one.
    """
    asked = NewCorrection.read(given).model_dump()
    version = asked.pop("plan_version")
    sh.show(correcting.correct_plan(sh.server(), license_id, version=version, **asked))


@billing.command("list")
@shell.paged
@shell.pass_shell
def list_runs(sh: shell.Shell, cursor: str | None, limit: int) -> None:
    """List billing runs."""
    found = service.page_runs(sh.server(), shell.to_page(cursor, limit))
    sh.show_list(found, ("number", "cut_off", "acceptance_max", "customer", "state", "created_at"))


@billing.command("show")
@click.argument("number", type=int)
@shell.pass_shell
def show_run(sh: shell.Shell, number: int) -> None:
    """Show a billing run and its invoices."""
    sh.show(service.show_run(sh.server(), number))


@billing.command()
@click.option("--customer", default=None, help="Of this customer only.")
@shell.pass_shell
def conservation(sh: shell.Shell, customer: str | None) -> None:
    """Show where all accepted units are: invoiced, pending, waived, excluded, or unpriced.

    Exit status 1 if they do not add up.
    """
    found = conserving.show(sh.server(), customer)
    figures = ("accepted", "invoiced", "pending", "disputed", "waived", "excluded", "unpriced", "holds")
    sh.show_list(found, ("license", "model", "unit", *figures))
    if not found["holds"]:
        raise click.exceptions.Exit(1)


@billing.command("send-stripe")
@click.argument("invoice_id")
@click.option("--stripe-customer", default=None, help="Who the customer is at Stripe, cus_…; remembered.")
@click.option("--target", default=stripe_sending.TARGET, show_default=True, help="Another account's name.")
@click.option("--dry-run", is_flag=True, help="Only show what would be sent, and how it stands.")
@shell.pass_shell
def send_stripe(
    sh: shell.Shell, invoice_id: str, stripe_customer: str | None, target: str, *, dry_run: bool
) -> None:
    """Send an invoice's lines to Stripe as invoice items, with the key in METERKIT_STRIPE_KEY.

    Each is made once, however often this is asked for: what was interrupted goes on where it stopped. Exit status
    1 if not all are delivered.
    """
    if dry_run:
        found = stripe_sending.show(sh.server(), invoice_id, target=target)
    else:
        account = settings.stripe(os.environ)
        found = stripe_sending.send(
            sh.server(), invoice_id, account, target=target, stripe_customer=stripe_customer
        )
    columns = ("place", "amount", "currency", "state", "how", "stripe_id", "http_status", "error_code")
    sh.show_list(found, columns)
    if not found["delivered"] and not dry_run:
        raise click.exceptions.Exit(1)


@invoice.command("list")
@click.option("--customer", default=None, help="Of this customer only.")
@shell.paged
@shell.pass_shell
def list_all(sh: shell.Shell, customer: str | None, cursor: str | None, limit: int) -> None:
    """List invoices."""
    found = service.page(sh.server(), shell.to_page(cursor, limit), customer)
    sh.show_list(found, ("id", "number", "customer", "currency", "state", "total_minor", "run", "finalized_at"))


@invoice.command()
@click.argument("invoice_id")
@shell.pass_shell
def show(sh: shell.Shell, invoice_id: str) -> None:
    """Show an invoice, with its lines."""
    found = service.show(sh.server(), invoice_id)
    if sh.as_json:
        return sh.show(found)
    columns = ("description", "service_start_at", "service_end_at", "quantity", "amount", "late")
    due = {"due": found.get("due", found["total"])}
    sh.show({name: value for name, value in found.items() if name not in ("lines", "beside")} | due)
    sh.show_list({"items": found["lines"]}, columns)
    return None


@invoice.command()
@click.argument("invoice_id")
@shell.pass_shell
def finalize(sh: shell.Shell, invoice_id: str) -> None:
    """Make a draft an invoice, for good."""
    found = service.finalize(sh.server(), invoice_id)
    shown = ("id", "number", "state", "customer", "currency", "total", "finalized_at")
    due = {"due": found.get("due", found["total"])}
    sh.show(found if sh.as_json else {name: found[name] for name in shown} | due)


@invoice.command()
@click.argument("invoice_id")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="By default NUMBER.zip."
)
@shell.pass_shell
def evidence(sh: shell.Shell, invoice_id: str, out: Path | None) -> None:
    """Write an invoice's evidence to a file, for `meterkit audit`."""
    number, data = service.show_evidence(sh.server(), invoice_id)
    path = out or Path(f"{number}.zip")
    path.write_bytes(data)
    sh.show({"number": number, "file": str(path), "bytes": len(data)})


@invoice.command()
@click.argument("invoice_id")
@click.option("--line", type=int, required=True, help="Which line, counted from 1.")
@shell.pass_shell
def explain(sh: shell.Shell, invoice_id: str, line: int) -> None:
    """Say in words how a line comes about, back to the records that devices signed."""
    for text in service.explain(sh.server(), invoice_id, line):
        click.echo(text)


_OUTPUT = click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="By default named by its number.",
)


@invoice.command()
@click.argument("invoice_id")
@_OUTPUT
@shell.pass_shell
def pdf(sh: shell.Shell, invoice_id: str, output: Path | None) -> None:
    """Write an invoice, or a draft marked as one, as a PDF."""
    _write(sh, outputs.as_pdf(sh.server(), invoice_id), output)


@invoice.command()
@click.argument("invoice_id")
@_OUTPUT
@shell.pass_shell
def html(sh: shell.Shell, invoice_id: str, output: Path | None) -> None:
    """Write an invoice, or a draft marked as one, as a page for a browser."""
    _write(sh, outputs.as_html(sh.server(), invoice_id), output)


@invoice.command("csv")
@click.argument("invoice_id")
@_OUTPUT
@shell.pass_shell
def as_csv(sh: shell.Shell, invoice_id: str, output: Path | None) -> None:
    """Write a finalized invoice's lines as a CSV in FOCUS columns."""
    _write(sh, outputs.as_csv(sh.server(), invoice_id), output)


def _write(sh: shell.Shell, made: Output, path: Path | None) -> None:
    path = path or Path(made.name)
    path.write_bytes(made.data)
    sh.show({"file": str(path), "bytes": len(made.data)})
