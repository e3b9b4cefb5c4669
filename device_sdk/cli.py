"""The command `meterkit-device`: activate, status, sync, export, import, for one device's directory.

Whom to trust is said on the command line, by whoever runs it, and is checked again by the vendor's own code
when that opens the directory: nothing installed from here can loosen it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click

from device_sdk.device import Device
from device_sdk.inbox import Outcome
from device_sdk.standings import Status
from meterkit import terminal
from meterkit.errors import CODES
from meterkit.keys import Trust


@click.group()
@click.option("--directory", required=True, type=click.Path(path_type=Path), help="The device's directory.")
@click.option("--issuer", required=True, help="The vendor's name, as its server was set up with it.")
@click.option("--root", "roots", required=True, multiple=True, help="A root public key that is trusted.")
@click.option("--threshold", default=1, show_default=True, help="How many roots must have signed.")
@click.option("--product", required=True, help="The product that this device is.")
@click.pass_context
def device(
    context: click.Context, *, directory: Path, issuer: str, roots: tuple[str, ...], threshold: int, product: str
) -> None:
    """Look after one licensed device."""

    def opened() -> Device:
        return Device.open(
            directory, trust=Trust(issuer=issuer, roots=roots, threshold=threshold), product=product
        )

    context.obj = opened


def _with_device(command: Callable[..., None]) -> Callable[..., None]:
    """Open the device for a command, and close it after."""

    @click.pass_obj
    def opened(open_device: Callable[[], Device], *values: Any, **options: Any) -> None:
        with open_device() as held:
            command(held, *values, **options)

    return update_wrapper(opened, command)


@device.command()
@click.argument("code")
@click.option("--server", help="The server's URL.")
@click.option("--file", "path", type=click.Path(path_type=Path), help="Write the request here instead (.mkact).")
@_with_device
def activate(held: Device, code: str, server: str | None, path: Path | None) -> None:
    """Get this device's first token for an activation CODE."""
    if (server is None) == (path is None):
        raise click.UsageError("give either --server or --file")
    if path is not None:
        held.export_activation(code, path)
        click.echo(f"wrote {path}; bring it to the server, and import the .mkreply that it gives")
    elif server is not None:
        held.activate(code, server)
        click.echo("activated")
        _print_status(held.status())


@device.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_with_device
def status(held: Device, *, as_json: bool) -> None:
    """Say until when it works offline, how much is left, and why it stops."""
    found = held.status()
    terminal.show(found, as_json=as_json, lines=lambda: _status_lines(found))


@device.command()
@click.option("--server", help="The server's URL; without it, the one it was activated at.")
@_with_device
def sync(held: Device, server: str | None) -> None:
    """Hand over what was used, and take receipts and a new token."""
    for outcome in held.sync(server):
        _print_outcome(outcome)
    _print_status(held.status())


@device.command()
@click.argument("path", type=click.Path(path_type=Path))
@_with_device
def export(held: Device, path: Path) -> None:
    """Write what was used to a file (.mkbatch), to be carried to the server."""
    click.echo(f"wrote {held.export_batch(path)} batches to {path}")


@device.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@_with_device
def import_(held: Device, path: Path) -> None:
    """Take a reply (.mkreply) that was carried here."""
    _print_outcome(held.import_reply(path))
    _print_status(held.status())


def _print_outcome(outcome: Outcome) -> None:
    for each in outcome.taken:
        click.echo(f"{each.part}: {each.state}{f' [{each.code}]' if each.code else ''}")


def _print_status(found: Status) -> None:
    for line in _status_lines(found):
        click.echo(line)


def _status_lines(found: Status) -> list[str]:
    code = f" [{found.code}]" if found.code else ""
    lines = [
        f"device         {found.device}",
        f"license        {found.license or '-'}",
        f"state          {found.state}{code}: {found.sentence}",
        f"works offline  until {_instant(found.offline_until)}",
        f"next sync      {_instant(found.next_sync_at)}",
        f"not receipted  {found.unreceipted_records} records",
    ]
    if found.ledger_code:
        lines.append(f"ledger         [{found.ledger_code}] {CODES[found.ledger_code].sentence}")
    for model in found.models:
        left = "no limit" if model.limit_units is None else f"{model.left_units} of {model.limit_units} left"
        why = f" [{model.code}]" if model.code else ""
        lines.append(f"model          {model.name}, per {model.unit}: {left}{why}")
    return lines


def _instant(seconds: int | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def main() -> None:
    """Run `meterkit-device`."""
    terminal.run(device, "meterkit-device")
