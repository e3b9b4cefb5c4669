"""`meterkit-server webhook-endpoint` and `webhooks`."""

import threading

import click

from licensing_server import shell
from licensing_server.webhook_endpoints import delivering, service
from licensing_server.webhook_endpoints.outbox import EVENTS
from licensing_server.webhook_endpoints.schemas import NewEndpoint

endpoints = shell.noun("webhook-endpoint", "Webhook endpoints: who is told what has happened.")
webhooks = shell.noun("webhooks", "Webhooks: what endpoints are told, and delivering it.")
groups: list[click.Command] = [endpoints, webhooks]


@endpoints.command()
@click.argument("url")
@click.option("--event", "events", multiple=True, type=click.Choice(EVENTS), help="By default all of them.")
@shell.pass_shell
def create(sh: shell.Shell, url: str, events: tuple[str, ...]) -> None:
    """Let URL be told of events. Its secret is shown this once."""
    asked = NewEndpoint.read({"url": url, "events": list(events or EVENTS)})
    sh.show(service.create(sh.server(), url=asked.url, events=asked.events))


@endpoints.command("list")
@shell.paged
@shell.pass_shell
def list_all(sh: shell.Shell, cursor: str | None, limit: int) -> None:
    """List endpoints, never their secrets."""
    found = service.page(sh.server(), shell.to_page(cursor, limit))
    sh.show_list(found, ("id", "state", "url", "events", "created_at"))


@endpoints.command()
@click.argument("endpoint_id")
@shell.pass_shell
def show(sh: shell.Shell, endpoint_id: str) -> None:
    """Show an endpoint."""
    sh.show(service.show(sh.server(), endpoint_id))


@endpoints.command()
@click.argument("endpoint_id")
@shell.pass_shell
def rotate(sh: shell.Shell, endpoint_id: str) -> None:
    """Give an endpoint a new secret, shown this once; the old one signs along for a day."""
    sh.show(service.rotate(sh.server(), endpoint_id))


@endpoints.command()
@click.argument("endpoint_id")
@shell.pass_shell
def disable(sh: shell.Shell, endpoint_id: str) -> None:
    """Switch an endpoint off."""
    sh.show(service.switch(sh.server(), endpoint_id, "disabled"))


@endpoints.command()
@click.argument("endpoint_id")
@shell.pass_shell
def enable(sh: shell.Shell, endpoint_id: str) -> None:
    """Switch an endpoint on; what it was to be told before it was off is delivered."""
    sh.show(service.switch(sh.server(), endpoint_id, "enabled"))


@webhooks.command()
@click.option("--every", type=click.IntRange(1, 3_600), default=None, help="Go on, every so many seconds.")
@shell.pass_shell
def deliver(sh: shell.Shell, every: int | None) -> None:
    """Deliver all that is due. Any number of processes may do so at once."""
    server = sh.server()
    if every is None:
        sh.show(delivering.deliver(server))
    else:
        delivering.go_on(server, every, threading.Event())


@webhooks.command("list")
@click.option("--endpoint", default=None)
@click.option("--state", type=click.Choice(["waiting", "delivered", "dead"]), default=None)
@shell.paged
@shell.pass_shell
def list_messages(
    sh: shell.Shell, *, endpoint: str | None, state: str | None, cursor: str | None, limit: int
) -> None:
    """List what endpoints were, or are to be, told; `--state dead` are those that nobody took."""
    asked = shell.to_page(cursor, limit)
    found = service.page_messages(sh.server(), asked, endpoint=endpoint, state=state)
    columns = ("id", "endpoint", "event", "subject", "state", "attempts", "http_status", "failure", "due_at")
    sh.show_list(found, columns)


@webhooks.command()
@click.argument("message_id")
@shell.pass_shell
def resend(sh: shell.Shell, message_id: str) -> None:
    """Let a message be delivered again, from its first attempt on."""
    sh.show(service.resend(sh.server(), message_id))
