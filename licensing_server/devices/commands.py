"""`meterkit-server device`, `keyring`, and `revoke`."""

import click

from licensing_server import shell
from licensing_server.devices import service

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
