"""`meterkit-server exchange`, `usage` and `exception`."""

from pathlib import Path
from typing import IO, Any

import click

from licensing_server import shell
from licensing_server.server import Server
from licensing_server.usage import deciding, events, schemas, service, sticks
from licensing_server.usage import rebuild as projections

exceptions = shell.noun("exception", "Exceptions: what a person should look at, with its evidence.")


@click.command("exchange", cls=shell.Command)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@shell.pass_shell
def exchange(sh: shell.Shell, paths: tuple[Path, ...]) -> None:
    """Answer files that devices wrote: each FILE gets its .mkreply beside it.

    Of a folder, as a whole stick, every .mkact and .mkbatch in it is answered. Each file is judged alone; a
    refusal is written to its .mkreply too, as the device would have got it over HTTP. Exit status 1 if
    anything was refused. Answering the same files again changes nothing.
    """
    files = sticks.find(paths)
    if not files:
        raise click.UsageError("no .mkact or .mkbatch file in there")
    replies = [sticks.reply_path(path) for path in files]
    shared = sorted({str(path) for path in replies if replies.count(path) > 1 or path in files})
    if shared:
        raise click.UsageError(f"two files would have one reply, {shared[0]}; rename one of them")
    server = sh.server()
    with click.progressbar(files, label="exchanging", **shell.progress()) as bar:
        items = [_exchange(server, path) for path in bar]
    sh.show_list({"items": items, "next": None}, ("file", "result", "why", "reply"))
    if any(item["result"] != "accepted" for item in items):
        raise click.exceptions.Exit(1)


def _exchange(server: Server, path: Path) -> dict[str, str | None]:
    answered = sticks.answer(server, path)
    reply = sticks.reply_path(path)
    try:
        sticks.replace(reply, answered.reply)
    except OSError as fault:
        raise click.FileError(str(reply), hint=fault.strerror) from None
    code = answered.refused.code if answered.refused else "accepted"
    return {"file": str(path), "reply": str(reply), "result": code, "why": answered.why}


@click.group("usage", cls=shell.CommandGroup)
@click.option("--license", "license_id", default=None)
@click.option("--model", default=None)
@click.option("--unit", type=click.Choice(["call", "item"]), default=None)
@click.option("--from", "from_at", type=shell.INSTANT, default="0")
@click.option("--to", "to_at", type=shell.INSTANT, default=None)
@click.pass_context
def usage(
    context: click.Context,
    *,
    license_id: str | None,
    model: str | None,
    unit: str | None,
    from_at: int,
    to_at: int | None,
) -> None:
    """Sum what was used, per license and meter, over a period (half-open)."""
    if context.invoked_subcommand is not None:
        return
    sh = context.ensure_object(shell.Shell)
    found = service.sum_usage(sh.server(), license_id=license_id, meter=(model, unit), period=(from_at, to_at))
    sh.show_list(found, ("license", "model", "unit", "units", "unsettled", "quarantined", "records"))


@usage.command()
@click.option("--period", default=None, help="2026, 2026-01 or 2026-01-31; days of the customer, or UTC.")
@click.option("--from", "from_at", type=shell.INSTANT, default=None, help="Or from this instant on,")
@click.option("--to", "to_at", type=shell.INSTANT, default=None, help="and before this one.")
@click.option("--customer", default=None, help="Of this customer only.")
@click.option("--license", "license_id", default=None, help="Of this license only.")
@click.option("--through", type=int, default=None, help="The last acceptance number; by default the newest.")
@click.option("--run", type=int, default=None, help="By what this billing run knew was decided; by default all.")
@click.option("--subject", type=click.Choice(["license", "customer"]), default="license", show_default=True)
@click.option("--target", default=None, help="Where it goes: that takes no rated lines then.")
@click.option("--form", type=click.Choice(["lines", "batch"]), default="lines", show_default=True)
@click.option("--output", type=click.File("wb", atomic=True), default="-", help="By default standard output.")
def export(form: events.Form, output: IO[bytes], **asked: Any) -> None:
    """Write a CloudEvent for each usage record that billing counts: lines of JSON, or one batch.

    An event's id is its record's own: what is sent twice can be told. With the `--through` and `--run` that are
    printed on standard error, or a billing run's own, the same export is the same bytes.
    """
    sh = click.get_current_context().ensure_object(shell.Shell)
    made = events.export(sh.server(), events.Asked(**asked))
    for part in made.written(form):
        output.write(part)
    click.echo(f"--through {made.scope.through} --run {made.scope.run}", err=True)


@exceptions.command("list")
@click.option("--device", default=None)
@click.option("--license", "license_id", default=None)
@click.option("--state", type=click.Choice(["open", "acknowledged", "resolved"]), default=None)
@shell.paged
@shell.pass_shell
def list_exceptions(
    sh: shell.Shell,
    *,
    device: str | None,
    license_id: str | None,
    state: str | None,
    cursor: str | None,
    limit: int,
) -> None:
    """List what a person should look at."""
    asked = shell.to_page(cursor, limit)
    found = service.page_exceptions(sh.server(), asked, device=device, license_id=license_id, state=state)
    sh.show_list(found, ("id", "kind", "device", "license", "state", "opened_at", "evidence"))


@exceptions.command()
@click.argument("exception_id")
@shell.pass_shell
def show(sh: shell.Shell, exception_id: str) -> None:
    """Show an exception, its evidence, and what was decided about it."""
    sh.show(deciding.show(sh.server(), exception_id))


@exceptions.command()
@click.argument("exception_id")
@click.option("--owner", default=None, help="Who looks at it.")
@click.option("--note", default=None)
@shell.pass_shell
def acknowledge(sh: shell.Shell, exception_id: str, owner: str | None, note: str | None) -> None:
    """Say that somebody looks at an exception."""
    asked = schemas.Acknowledgment.read({"owner": owner, "note": note})
    sh.show(deciding.acknowledge(sh.server(), exception_id, owner=asked.owner, note=asked.note))


@exceptions.command()
@click.argument("exception_id")
@click.argument("how")
@click.option("--outcome", default=None, type=click.Choice(deciding.OUTCOMES), help="What it means for the sums.")
@click.option("--branch", default=None, help="With dismiss_branch: the head of the branch, as `show` names it.")
@shell.pass_shell
def resolve(sh: shell.Shell, exception_id: str, how: str, outcome: str | None, branch: str | None) -> None:
    """Close an exception, saying HOW it was resolved."""
    asked = schemas.Resolution.read({"how": how, "outcome": outcome, "branch": branch})
    sh.show(deciding.resolve(sh.server(), exception_id, deciding.Resolution(**asked.model_dump())))


@exceptions.command()
@click.argument("exception_id")
@click.argument("how")
@shell.pass_shell
def reopen(sh: shell.Shell, exception_id: str, how: str) -> None:
    """Open a resolved exception again, saying why (HOW)."""
    sh.show(deciding.reopen(sh.server(), exception_id, how=schemas.Reopening.read({"how": how}).how))


@click.command("rebuild", cls=shell.Command)
@click.option("--check", is_flag=True, help="Only compare.")
@click.option("--device", default=None, help="This device only.")
@shell.pass_shell
def rebuild(sh: shell.Shell, device: str | None, *, check: bool) -> None:
    """Work out anew, from what devices signed and people decided, all that is queried; say what differs.

    Exit status 1 with --check if anything differs, and else if something could not be put right.
    """
    found = projections.rebuild(sh.server(), check=check, device=device)
    if sh.as_json:
        sh.show(found)
    else:
        sh.show({name: value for name, value in found.items() if name != "items"})
        if found["items"]:
            sh.show_list(found, ("table", "what", "key", "stored", "rebuilt"))
    if found["left"]:
        raise click.exceptions.Exit(1)


groups: list[click.Command] = [exchange, usage, exceptions, rebuild]
