"""Delivering what is in the outbox: at least once, again after a fault, in the end into the dead letters.

Any number of processes may deliver at once. A message is put off before it is sent, so nobody else takes it
meanwhile, and a process that dies on the way loses nothing.
"""

import logging
import threading
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, write
from licensing_server.pages import Document
from licensing_server.server import Server
from licensing_server.webhook_endpoints import exchange, signing, store
from licensing_server.webhook_endpoints.exchange import Outcome
from licensing_server.webhook_endpoints.store import Endpoint
from meterkit import __version__
from meterkit.errors import MeterkitError, ServiceError

RETRIES_S = tuple(5 * 4**number for number in range(8))  # 5 s, 20 s, … 23 h: nine attempts in 30 to 38 hours
KEPT_S = 30 * 86_400
_TAKEN_S = 120  # longer than one exchange takes
_JITTER = 4  # up to a fourth more
_GONE = 410

log = logging.getLogger("licensing_server")


def deliver(server: Server) -> Document:
    """Deliver all that is due; of an endpoint that fails, the rest waits for the next time.

    Raises:
        ServiceError: `database_unavailable`; what was not noted as delivered is delivered again.
    """
    counts = {"delivered": 0, "failed": 0, "dead": 0}
    failing: set[str] = set()
    with write(server) as connection:
        store.delete_delivered(connection, server.clock() - KEPT_S)
    while (taken := _take(server, failing)) is not None:
        message, endpoint = taken
        outcome = _send(server, message, endpoint)
        counts[_settle(server, message, outcome)] += 1
        if not outcome.is_delivered:
            failing.add(endpoint.id)
    return counts


def go_on(server: Server, every_s: int, stop: threading.Event) -> None:
    """Deliver what is due every so many seconds, until it is stopped; a fault of the database ends nothing."""
    while True:
        try:
            deliver(server)
        except MeterkitError as error:
            log.warning("webhooks: %s", error)
        if stop.wait(every_s):
            return


def _take(server: Server, failing: set[str]) -> tuple[Any, Endpoint] | None:
    """Take the next message that is due, for as long as sending it can last."""
    now = server.clock()
    with write(server) as connection:
        message = store.find_due(connection, now, failing)
        endpoint = store.find(connection, message.endpoint) if message is not None else None
        if endpoint is None:
            return None
        values = {"due_at": now + _TAKEN_S, "attempts": message.attempts + 1, "updated_at": now}
        store.update_message(connection, message.id, values)
    return message, endpoint


def open_secrets(server: Server, endpoint: Endpoint, now: int) -> list[bytes]:
    """The secrets that sign for an endpoint now: its own, and the one before it for a while."""
    sealed = [endpoint.secret]
    if endpoint.old_secret is not None and endpoint.old_until is not None and now < endpoint.old_until:
        sealed.append(endpoint.old_secret)
    return [server.sealer.unseal(f"webhook/{endpoint.id}", each) for each in sealed]


def _send(server: Server, message: Any, endpoint: Endpoint) -> Outcome:
    body, now = message.body.encode(), server.clock()
    try:
        secrets = open_secrets(server, endpoint, now)
    except ServiceError as error:  # sealed with another key: no reason to keep the other endpoints waiting
        return Outcome(failure=error.code)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"meterkit/{__version__}",
        **signing.headers(message.id, body, secrets=secrets, now=now),
    }
    return exchange.post(endpoint.url, headers, body, allowed=server.webhook_hosts)


def _settle(server: Server, message: Any, outcome: Outcome) -> str:
    """Note what came of it; gives in which count it belongs."""
    now = server.clock()
    told = {"http_status": outcome.status, "failure": outcome.failure, "updated_at": now}
    with write(server) as connection:
        if outcome.is_delivered:
            store.update_message(connection, message.id, {**told, "state": "delivered"})
            return "delivered"
        attempt = message.attempts + 1
        if attempt > len(RETRIES_S):
            store.update_message(connection, message.id, {**told, "state": "dead"})
            return "dead"
        due_at = now + _put_off(server, RETRIES_S[attempt - 1])
        store.update_message(connection, message.id, {**told, "due_at": due_at})
        if outcome.status == _GONE:
            _disable(server, connection, message.endpoint)
    return "failed"


def _put_off(server: Server, seconds: int) -> int:
    spread = seconds // _JITTER + 1
    return seconds + int.from_bytes(server.random(4)) % spread


def _disable(server: Server, connection: Connection, endpoint_id: str) -> None:
    """The other side says that it is gone for good: nothing is sent there until somebody enables it again."""
    store.update(connection, endpoint_id, {"state": "disabled"})
    action, body = "webhook_endpoint.disable", {"http_status": _GONE}
    audit_log.append(server, connection, who=audit_log.SERVER, action=action, subject=endpoint_id, body=body)
