"""Putting what has happened into the outbox, in the transaction in which it happens: if it stands, it is told."""

import datetime as dt
from typing import Any, Literal, get_args

from licensing_server.database import Connection
from licensing_server.server import Server
from licensing_server.webhook_endpoints import store
from meterkit.canonical import to_bytes

Event = Literal["billing_run.finished", "exception.opened", "invoice.finalized"]
EVENTS: tuple[str, ...] = get_args(Event)


def announce(server: Server, connection: Connection, event: Event, subject: str, data: dict[str, Any]) -> None:
    """Let every endpoint that asked for such events be told of one, once: a subject has each event once.

    `data` names what has happened; whoever wants more asks for it, with a key of its own.
    """
    endpoints = [name for name, events in store.enabled(connection) if event in events]
    if not endpoints:
        return
    now = server.clock()
    happened_at = dt.datetime.fromtimestamp(now, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    body = to_bytes({"type": event, "timestamp": happened_at, "data": data}).decode()
    for endpoint in endpoints:
        row = {
            "id": server.make_id("msg"),
            "endpoint": endpoint,
            "event": event,
            "subject": subject,
            "body": body,
            "state": "waiting",
            "attempts": 0,
            "due_at": now,
            "created_at": now,
            "updated_at": now,
        }
        store.insert_message(connection, row)
