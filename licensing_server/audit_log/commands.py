"""`meterkit-server audit-log`."""

import click

from licensing_server import shell
from licensing_server.audit_log import service

group = shell.noun("audit-log", "The audit log: who decided what.")
groups: list[click.Command] = [group]


@group.command("list")
@click.option("--subject", default=None, help="About this license, device, exception, …")
@click.option("--who", default=None, help="By this API key, `command` or `server`.")
@click.option("--action", default=None, help="As license.grant.")
@shell.paged
@shell.pass_shell
def list_all(
    sh: shell.Shell, *, subject: str | None, who: str | None, action: str | None, cursor: str | None, limit: int
) -> None:
    """List what was decided, in its order."""
    found = service.page(sh.server(), shell.to_page(cursor, limit), subject=subject, who=who, action=action)
    sh.show_list(found, ("seq", "at", "who", "action", "subject", "body"))


@group.command()
@click.option("--noted", default=None, metavar="SEQ:HASH", help="A place noted earlier, which must still stand.")
@shell.pass_shell
def verify(sh: shell.Shell, noted: str | None) -> None:
    """Walk along the whole log; exit status 1 and the first entry that does not hold, if one does not."""
    found = service.verify(sh.server(), noted=service.read_link(noted) if noted else None)
    sh.show(found)
    if not found["holds"]:
        raise click.exceptions.Exit(1)
