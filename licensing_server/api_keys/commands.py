"""`meterkit-server api-key`."""

import click

from licensing_server import shell
from licensing_server.api_keys import service
from licensing_server.api_keys.schemas import NewApiKey

group = shell.noun("api-key", "API keys: who may do what over HTTP.")
groups: list[click.Command] = [group]


@group.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, help="As catalog:read; may be repeated.")
@click.option("--expires-at", type=shell.INSTANT, default=None)
@shell.pass_shell
def create(sh: shell.Shell, name: str, scopes: tuple[str, ...], expires_at: int | None) -> None:
    """Make an API key. It is shown this once."""
    asked = NewApiKey.read({"name": name, "scopes": list(scopes), "expires_at": expires_at})
    sh.show(service.create(sh.server(), name=asked.name, scopes=asked.scopes, expires_at=asked.expires_at))


@group.command("list")
@shell.paged
@shell.pass_shell
def list_all(sh: shell.Shell, cursor: str | None, limit: int) -> None:
    """List API keys, never the keys themselves."""
    columns = ("id", "name", "scopes", "created_at", "expires_at", "revoked_at")
    sh.show_list(service.page(sh.server(), shell.to_page(cursor, limit)), columns)


@group.command()
@click.argument("key_id")
@shell.pass_shell
def revoke(sh: shell.Shell, key_id: str) -> None:
    """Revoke an API key, at once and for good."""
    sh.show(service.revoke(sh.server(), key_id))
