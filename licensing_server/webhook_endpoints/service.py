"""Webhook endpoints: made, shown, switched off and on, given a new secret; and what they were told."""

from collections.abc import Sequence
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, read, write
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from licensing_server.webhook_endpoints import addresses, signing, store
from licensing_server.webhook_endpoints.outbox import EVENTS
from licensing_server.webhook_endpoints.store import Endpoint
from meterkit.errors import InputError, ServiceError

OLD_SECRET_S = 86_400  # so long the secret before signs along


def create(server: Server, *, url: str, events: Sequence[str], once: Once = NO_KEY) -> Document:
    """Make an endpoint that is told of events from now on. The answer holds its secret, this once.

    Raises:
        InputError: `malformed_members` for a URL that is none, or events that do not exist.
        ServiceError: `url_forbidden` for a URL that names an internal address.
    """
    addresses.check_named(addresses.read_url(url), server.webhook_hosts)
    if not events or set(events) - set(EVENTS):
        raise InputError("malformed_members", f"events: choose from {', '.join(EVENTS)}")

    def make(connection: Connection) -> Document:
        endpoint_id = server.make_id("wep")
        secret = server.random(signing.SECRET_BYTES)
        endpoint = Endpoint(
            id=endpoint_id,
            url=url,
            events=sorted(set(events)),
            state="enabled",
            created_at=server.clock(),
            secret=server.sealer.seal(f"webhook/{endpoint_id}", secret),
        )
        store.insert(connection, endpoint)
        _log(server, connection, endpoint, "create", who=once.who)
        return {**endpoint.to_document(), "secret": signing.to_text(secret)}

    return once.run(server, make)


def rotate(server: Server, endpoint_id: str, *, once: Once = NO_KEY) -> Document:
    """Give an endpoint a new secret, shown this once; for a day, the old one signs along.

    Raises:
        ServiceError: `not_found`.
    """

    def change(connection: Connection) -> Document:
        endpoint = find(connection, endpoint_id)
        secret = server.random(signing.SECRET_BYTES)
        values = {
            "secret": server.sealer.seal(f"webhook/{endpoint_id}", secret),
            "old_secret": endpoint.secret,
            "old_until": server.clock() + OLD_SECRET_S,
        }
        store.update(connection, endpoint_id, values)
        _log(server, connection, endpoint, "rotate", who=once.who)
        return {**endpoint.to_document(), "secret": signing.to_text(secret)}

    return once.run(server, change)


def switch(server: Server, endpoint_id: str, state: str, *, who: str = audit_log.COMMAND) -> Document:
    """Switch an endpoint on or off. What it was to be told before waits; what happens while it is off it misses.

    Raises:
        ServiceError: `not_found`.
    """
    with write(server) as connection:
        endpoint = find(connection, endpoint_id)
        if endpoint.state != state:
            store.update(connection, endpoint_id, {"state": state})
            _log(server, connection, endpoint, state.removesuffix("d"), who=who)
        return {**endpoint.to_document(), "state": state}


def find(connection: Connection, endpoint_id: str) -> Endpoint:
    """Find an endpoint, or raise `not_found`."""
    endpoint = store.find(connection, endpoint_id)
    if endpoint is None:
        raise ServiceError("not_found", "webhook endpoint")
    return endpoint


def _log(server: Server, connection: Connection, endpoint: Endpoint, verb: str, *, who: str) -> None:
    """Log it, without the URL's path: that may be a secret of its own."""
    host = addresses.read_url(endpoint.url).authority
    body: dict[str, Any] = {"host": host, "events": endpoint.events}
    action = f"webhook_endpoint.{verb}"
    audit_log.append(server, connection, who=who, action=action, subject=endpoint.id, body=body)


def show(server: Server, endpoint_id: str) -> Document:
    """Show one endpoint."""
    with read(server) as connection:
        return find(connection, endpoint_id).to_document()


def page(server: Server, asked: Page) -> Document:
    """List endpoints."""
    with read(server) as connection:
        return store.page(connection, asked)


def page_messages(
    server: Server, asked: Page, *, endpoint: str | None = None, state: str | None = None
) -> Document:
    """List what endpoints were, or are to be, told; `dead` are those that nobody took."""
    with read(server) as connection:
        return store.page_messages(connection, asked, endpoint=endpoint, state=state)


def resend(server: Server, message_id: str, *, who: str = audit_log.COMMAND) -> Document:
    """Let a message be delivered again, from its first attempt on.

    Raises:
        ServiceError: `not_found`; `state_conflict` if it is waiting already.
    """
    with write(server) as connection:
        message = store.find_message(connection, message_id)
        if message is None:
            raise ServiceError("not_found", "webhook message")
        if message.state == "waiting":
            raise ServiceError("state_conflict", "it is waiting already")
        now = server.clock()
        values = {"state": "waiting", "attempts": 0, "due_at": now, "updated_at": now}
        store.update_message(connection, message_id, values)
        body = {"endpoint": message.endpoint}
        action = "webhook_message.resend"
        audit_log.append(server, connection, who=who, action=action, subject=message_id, body=body)
        return store.message_to_document(store.find_message(connection, message_id))
