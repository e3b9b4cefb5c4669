"""`meterkit-server exchange`, `usage` and `exception`."""

import os
from pathlib import Path

import click

from licensing_server import problems, shell
from licensing_server.devices import service as devices
from licensing_server.server import Server
from licensing_server.usage import service
from meterkit import envelopes, limits
from meterkit.canonical import to_bytes
from meterkit.errors import InputError, MeterkitError
from meterkit.exchange import split_batches

exceptions = shell.noun("exception", "Exceptions: what a person should look at, with its evidence.")


@click.command("exchange", cls=shell.Command)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@shell.pass_shell
def exchange(sh: shell.Shell, files: tuple[Path, ...]) -> None:
    """Answer files that devices wrote: each FILE gets its .mkreply beside it.

    A refusal is written there too, as the device would have got it over HTTP.
    """
    replies = [path.with_suffix(".mkreply") for path in files]
    if len(set(replies)) != len(replies) or set(replies) & set(files):
        raise click.UsageError("two of these files would have one .mkreply; rename one of them")
    server = sh.server()
    items = []
    with click.progressbar(files, label="exchanging", **shell.progress()) as bar:
        for path in bar:
            code, answer = _answer(server, path)
            reply = path.with_suffix(".mkreply")
            _replace(reply, answer)
            items.append({"file": str(path), "reply": str(reply), "result": code or "accepted"})
    sh.show_list({"items": items, "next": None}, ("file", "result", "reply"))
    if any(item["result"] != "accepted" for item in items):
        raise click.exceptions.Exit(1)


def _answer(server: Server, path: Path) -> tuple[str | None, bytes]:
    """Answer one file: the code of a refusal, if it is one, and what is to be written.

    What is the server's own trouble is not written for a device to read: it is raised.
    """
    try:
        if path.stat().st_size > limits.FILE_BYTES_MAX:
            raise InputError("too_large", f"at most {limits.FILE_BYTES_MAX} bytes a file")
        texts = split_batches(path.read_bytes(), batches_max=limits.FILE_BATCHES_MAX)
        if len(texts) == 1 and _is_activation(texts[0]):
            return None, devices.activate(server, texts[0]).to_bytes()
        return None, service.exchange(server, texts).to_bytes()
    except MeterkitError as error:
        if error.status >= 500:
            raise
        return error.code, to_bytes(problems.to_document(error))


def _is_activation(text: str) -> bool:
    try:
        envelopes.unverified_parts(envelopes.ACTIVATION, text)
    except InputError:
        return False
    return True


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with building.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


@click.command("usage", cls=shell.Command)
@click.option("--license", "license_id", default=None)
@click.option("--model", default=None)
@click.option("--unit", type=click.Choice(["call", "item"]), default=None)
@click.option("--from", "from_at", type=shell.INSTANT, default="0")
@click.option("--to", "to_at", type=shell.INSTANT, default=None)
@shell.pass_shell
def usage(
    sh: shell.Shell,
    *,
    license_id: str | None,
    model: str | None,
    unit: str | None,
    from_at: int,
    to_at: int | None,
) -> None:
    """Sum what was used, per license and meter, over a period (half-open)."""
    found = service.sum_usage(sh.server(), license_id=license_id, meter=(model, unit), period=(from_at, to_at))
    sh.show_list(found, ("license", "model", "unit", "units", "unsettled", "quarantined", "records"))


@exceptions.command("list")
@click.option("--device", default=None)
@click.option("--license", "license_id", default=None)
@click.option("--state", type=click.Choice(["open", "resolved"]), default=None)
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


@exceptions.command("resolve")
@click.argument("exception_id")
@click.argument("how")
@shell.pass_shell
def resolve(sh: shell.Shell, exception_id: str, how: str) -> None:
    """Close an exception, saying HOW it was resolved."""
    sh.show(service.resolve_exception(sh.server(), exception_id, how=how, who="command line"))


groups: list[click.Command] = [exchange, usage, exceptions]
