"""`meterkit-server device`, `keyring`, and `revoke`."""

import click

from licensing_server import shell
from licensing_server.devices import decisions, schemas, service

group = shell.noun("device", "Devices, and the tokens they were given.")
groups: list[click.Command] = [group]


@group.command("list")
@click.option("--license", "license_id", default=None, help="Of this license only.")
@shell.paged
@shell.pass_shell
def list_all(sh: shell.Shell, license_id: str | None, cursor: str | None, limit: int) -> None:
    """List devices."""
    found = service.page(sh.server(), shell.to_page(cursor, limit), license_id)
    sh.show_list(found, ("id", "product", "license", "state", "held", "activated_at", "seen_at"))


@group.command()
@click.argument("device_id")
@shell.pass_shell
def show(sh: shell.Shell, device_id: str) -> None:
    """Show a device."""
    sh.show(service.show(sh.server(), device_id))


@group.command("tokens")
@click.argument("device_id")
@shell.paged
@shell.pass_shell
def list_tokens(sh: shell.Shell, device_id: str, cursor: str | None, limit: int) -> None:
    """List the tokens that a device was given, without their texts."""
    found = service.page_tokens(sh.server(), device_id, shell.to_page(cursor, limit))
    sh.show_list(found, ("jti", "license", "serial", "iat", "exp", "epoch", "anchor_seq", "superseded"))


@group.command("exposures")
@click.argument("device_id")
@shell.pass_shell
def list_exposures(sh: shell.Shell, device_id: str) -> None:
    """Show what a device may still use, by each life of its ledger."""
    found = decisions.show_exposures(sh.server(), device_id)
    sh.show_list(found, ("epoch", "license", "model", "unit", "units", "unbounded"))


@group.command("write-off")
@click.argument("device_id")
@click.argument("epoch")
@click.argument("why")
@shell.pass_shell
def write_off(sh: shell.Shell, device_id: str, epoch: str, why: str) -> None:
    """Count what one life (EPOCH) of a device's ledger may still use as 0, saying WHY.

    Its records undo it if they come after all; they are accepted and billed as ever.
    """
    asked = schemas.NewWriteOff.read({"epoch": epoch, "why": why})
    sh.show(decisions.write_off(sh.server(), device_id, epoch=asked.epoch, why=asked.why, who=shell.WHO))


@group.command("write-offs")
@click.argument("device_id")
@shell.paged
@shell.pass_shell
def list_write_offs(sh: shell.Shell, device_id: str, cursor: str | None, limit: int) -> None:
    """List what was written off of a device."""
    found = decisions.page_write_offs(sh.server(), device_id, shell.to_page(cursor, limit))
    sh.show_list(found, ("id", "epoch", "why", "who", "created_at", "reversed_at", "exposures"))


@group.command("declare")
@click.argument("device_id")
@click.argument("state", type=click.Choice(decisions.DECLARED))
@click.argument("why")
@shell.pass_shell
def declare(sh: shell.Shell, device_id: str, state: str, why: str) -> None:
    """Declare a device retired or lost, or take that back (active), saying WHY.

    Neither is expected to report. Of a lost one, exposure is written off; if it reports, it is active again.
    """
    asked = schemas.NewDeclaration.read({"state": state, "why": why})
    sh.show(decisions.declare(sh.server(), device_id, state=asked.state, why=asked.why, who=shell.WHO))


@group.command("replace")
@click.argument("device_id")
@click.argument("why")
@shell.pass_shell
def replace_device(sh: shell.Shell, device_id: str, why: str) -> None:
    """Replace a broken device, saying WHY: frees its place, and shows a code for the new one, this once."""
    asked = schemas.NewReplacement.read({"why": why})
    sh.show(decisions.replace_device(sh.server(), device_id, why=asked.why, who=shell.WHO))


@group.command("replacements")
@click.argument("license_id")
@shell.paged
@shell.pass_shell
def list_replacements(sh: shell.Shell, license_id: str, cursor: str | None, limit: int) -> None:
    """List the devices of a license that were replaced."""
    found = decisions.page_replacements(sh.server(), license_id, shell.to_page(cursor, limit))
    sh.show_list(found, ("id", "device", "code", "why", "who", "created_at"))


@click.command("revoke", cls=shell.Command)
@click.argument("kind", type=click.Choice(["token", "license", "device"]))
@click.argument("subject")
@shell.pass_shell
def revoke(sh: shell.Shell, kind: str, subject: str) -> None:
    """Revoke a token, a license or a device by its id, for good."""
    sh.show(service.revoke(sh.server(), kind, subject))


@click.command("keyring", cls=shell.Command)
@shell.pass_shell
def keyring(sh: shell.Shell) -> None:
    """Show the keyring documents, as devices are given them."""
    sh.show(service.show_keyrings(sh.server()))


groups += [revoke, keyring]
