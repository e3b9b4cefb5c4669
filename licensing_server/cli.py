"""`meterkit-server`: making and running a server, and every operation of its API as a command."""

import gc
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import click

from licensing_server import directory, migrating, moving, renewing, settings, shell
from licensing_server.accounts import commands as accounts
from licensing_server.api_keys import commands as api_keys
from licensing_server.audit_log import commands as audit_log
from licensing_server.billing import account_commands as disputes
from licensing_server.billing import commands as billing
from licensing_server.catalog import commands as catalog
from licensing_server.customers import commands as customers
from licensing_server.devices import commands as devices
from licensing_server.licenses import commands as licenses
from licensing_server.reconciliation import commands as reconciliation
from licensing_server.usage import commands as usage
from licensing_server.webhook_endpoints import commands as webhook_endpoints
from licensing_server.webhook_endpoints import delivering
from meterkit import __version__, signing
from meterkit.errors import ServiceError
from meterkit.keys import roots_fingerprint

_WEBHOOKS_EVERY_S = 5


@click.group(cls=shell.Group)
@click.version_option(__version__, prog_name=shell.PROGRAM)
@click.option("--directory", "folder", default=None, help=f"The server's directory; else {settings.DIRECTORY}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def cli(context: click.Context, folder: str | None, as_json: bool) -> None:  # noqa: FBT001 - click's signature
    """License, meter and bill models that run offline: the vendor's side."""
    context.obj = shell.Shell(directory=folder, as_json=as_json)


@cli.command()
@click.argument("folder", metavar="DIRECTORY", type=click.Path(path_type=Path))
@click.option("--issuer", required=True, help="The vendor's name, as every token will carry it.")
@click.option(
    "--root-key",
    type=click.Path(path_type=Path),
    default=None,
    help="Where the root's secret key is to be written.",
)
@shell.pass_shell
def init(sh: shell.Shell, folder: Path, issuer: str, root_key: Path | None) -> None:
    """Make a new server in DIRECTORY: keys, keyring, database, and a first API key, shown this once.

    Where METERKIT_DATABASE_URL names a PostgreSQL database, which must be empty, that one is used.
    """
    where = root_key.absolute() if root_key else None
    url = settings.postgresql_url(os.environ)
    made = directory.init(folder.absolute(), issuer=issuer, root_key=where, postgresql_url=url)
    sh.show(
        {
            "directory": str(made.directory),
            "issuer": made.issuer,
            "root": made.roots[0],
            "fingerprint": made.fingerprint,
            "root_key": str(made.root_key),
            "api_key": made.api_key,
        }
    )
    click.echo(f"Take {made.root_key} offline now: it is needed only to change keys.", err=True)
    click.echo("Keep the API key: it is not shown again.", err=True)


def _collect_less() -> None:
    """Let no collection of garbage look through what the start made, nor come after a few requests: each exchange
    makes thousands of objects, hardly any of them in circles. It is a twentieth of what they cost.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8600, show_default=True)
@click.option("--share-port", is_flag=True, help="Share the port with other processes that are told so.")
@click.option("--deliver-webhooks", is_flag=True, help="Deliver webhooks, too, instead of `webhooks deliver`.")
@shell.pass_shell
def serve(sh: shell.Shell, host: str, port: int, *, share_port: bool, deliver_webhooks: bool) -> None:
    """Answer devices and the vendor's programs over HTTP. Put TLS in front of it."""
    import uvicorn  # noqa: PLC0415 - with the routes, a sixth of every command's start, and only needed here

    from licensing_server.app import create_app  # noqa: PLC0415
    from licensing_server.heads import BoundedHeads  # noqa: PLC0415

    server = sh.server()
    if deliver_webhooks:  # it may end anywhere: what it had taken is delivered by the next one
        arguments = (server, _WEBHOOKS_EVERY_S, threading.Event())
        threading.Thread(target=delivering.go_on, args=arguments, daemon=True).start()
    app = create_app(server)
    signing.load()
    _collect_less()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedHeads,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([_shared_port(host, port)] if share_port else None)


def _shared_port(host: str, port: int) -> socket.socket:
    """Listen where others may listen, too: the kernel deals connections out among all who do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, reuse_port=True)
    except OSError as fault:
        raise click.ClickException(f"cannot listen: {fault.strerror}") from None
    # For the connections taken from it: else an answer's end waits until its beginning is acknowledged, for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@cli.command()
@shell.pass_shell
def migrate(sh: shell.Shell) -> None:
    """Bring the database to this version's schema."""
    server = sh.open()
    migrating.upgrade(server.engine)
    migrating.check(server)
    sh.show({"status": "ok"})


@cli.command("migrate-data")
@shell.pass_shell
def migrate_data(sh: shell.Shell) -> None:
    """Move the embedded database's content into the empty one that METERKIT_DATABASE_URL names.

    Servers on the embedded database answer 503 meanwhile, and from then on; start them again with
    METERKIT_DATABASE_URL. Every table is read back and compared before anything is committed.
    """
    with_url = settings.read(os.environ, sh.directory)
    if with_url.postgresql_url is None:
        raise ServiceError("database_unavailable", f"{settings.DATABASE_URL} names no database")
    source = directory.open_server(settings.Settings(directory=with_url.directory))
    target = directory.open_server(with_url)
    try:
        moved = moving.move(source, target, tell=lambda table: click.echo(f"moving {table}", err=True))
    finally:
        source.engine.dispose()
        target.engine.dispose()
    sh.show_list(moved, ["table", "rows", "digest"])


@cli.command("root-key")
@shell.pass_shell
def root_key(sh: shell.Shell) -> None:
    """Print the public roots, as the vendor's code hands them to `Trust`."""
    server = sh.open()
    keyring = server.keyring
    sh.show(
        {
            "issuer": server.issuer,
            "roots": list(keyring.roots),
            "threshold": keyring.threshold,
            "fingerprint": roots_fingerprint(keyring.roots, keyring.threshold),
        }
    )


@cli.command("keys")
@shell.pass_shell
def list_keys(sh: shell.Shell) -> None:
    """List the online keys that the newest keyring names, and until when each of them may sign."""
    sh.show_list(renewing.show_keys(sh.open().keyring), list(renewing.SHOWN))


@cli.command("renew-keys")
@click.option(
    "--root-key",
    "root_keys",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A root's secret key; as many as the threshold asks for.",
)
@click.option(
    "--distrust",
    "distrusted",
    type=(str, shell.INSTANT),
    multiple=True,
    metavar="KID INSTANT",
    help="Refuse what this key signed after that instant: others may have it.",
)
@shell.pass_shell
def renew_keys(sh: shell.Shell, root_keys: tuple[Path, ...], distrusted: tuple[tuple[str, int], ...]) -> None:
    """Make new online keys, and a keyring for another year that the root signs.

    Due once a year: when the keyring has expired, `/readyz` fails and nothing can be signed. Start the servers
    again afterwards, and take the root's key offline.
    """
    roots = [directory.read_signing_key(path) for path in root_keys]
    sh.show(renewing.renew(sh.server(), roots, distrusted=dict(distrusted)))
    click.echo("Start the servers again: they go on with the keys that they have read.", err=True)


_NOUNS = (
    *(api_keys, audit_log, webhook_endpoints, catalog, customers, licenses, devices),
    *(usage, reconciliation, accounts, billing, disputes),
)
for _noun in _NOUNS:
    for _command in _noun.groups:
        cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli(prog_name=shell.PROGRAM)
