"""`Idempotency-Key`: a creation asked for again is answered as it was, and made once.

What was answered is kept sealed for a week, in the transaction that made it: it may hold a secret that is
shown only once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.audit_log.chain import COMMAND
from licensing_server.database import metadata, write
from licensing_server.server import Server
from meterkit import limits
from meterkit.canonical import from_bytes, to_bytes
from meterkit.errors import ServiceError

KEPT_S = 7 * 86_400
KEY_CHARS_MAX = 255

Document = dict[str, Any]

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("api_key", sa.Text, primary_key=True),
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """One request to create something: its key, if it has one, who asks, and what exactly is asked."""

    key: str | None = None
    api_key: str = ""
    request_hash: str = ""

    @property
    def who(self) -> str:
        """Whose decision it is, as the audit log names it."""
        return self.api_key or COMMAND

    def run(self, server: Server, make: Callable[[sa.Connection], Document]) -> Document:
        """Make it in one write transaction; where the key was used already, give what was answered then.

        Raises:
            ServiceError: `idempotency_conflict` if the key was used with another request.
        """
        with write(server) as connection:
            if self.key is None:
                return make(connection)
            stored = self._stored(connection)
            if stored is not None:
                return self._answer_again(server, stored)
            document = make(connection)
            self._remember(server, connection, document)
            return document

    def _name(self) -> str:
        return f"idempotency/{self.api_key}/{self.key}"

    def _stored(self, connection: sa.Connection) -> Any:
        table = idempotency_keys.c
        chosen = sa.select(table.request_hash, table.body).where(
            table.key == self.key, table.api_key == self.api_key
        )
        return connection.execute(chosen).one_or_none()

    def _answer_again(self, server: Server, stored: Any) -> Document:
        if stored.request_hash != self.request_hash:
            raise ServiceError("idempotency_conflict")
        body = server.sealer.unseal(self._name(), stored.body)
        document: Document = from_bytes(body, bytes_max=limits.BODY_BYTES_MAX * 2)
        return document

    def _remember(self, server: Server, connection: sa.Connection, document: Document) -> None:
        now = server.clock()
        old = idempotency_keys.c.created_at < now - KEPT_S
        connection.execute(sa.delete(idempotency_keys).where(old))
        row = {
            "key": self.key,
            "api_key": self.api_key,
            "request_hash": self.request_hash,
            "status": 201,
            "body": server.sealer.seal(self._name(), to_bytes(document)),
            "created_at": now,
        }
        connection.execute(sa.insert(idempotency_keys), [row])


NO_KEY = Once()
