"""API keys: `mk_<key id>.<secret>`, 256 bits, shown once, kept as an HMAC under a pepper outside the database."""

import hashlib
import hmac
from dataclasses import dataclass

from licensing_server.api_keys import store
from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, read, write
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import shapes
from meterkit.canonical import to_base64url
from meterkit.errors import InputError, ServiceError

AREAS = ("catalog", "customers", "licenses", "devices", "usage", "billing", "webhook-endpoints")
SCOPES = frozenset(
    {
        "admin",
        *(f"{area}:{right}" for area in AREAS for right in ("read", "write")),
        "audit-log:read",
        "reconciliation:read",
    }
)
_PREFIX = "mk_"
_KEY_ID = shapes.ident("key")
_SECRET_BYTES = 32
_TEXT_CHARS_MAX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and what for: an API key's id and scopes. `write` includes `read`, `admin` everything."""

    id: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Tell whether the scopes allow it."""
        area, _, right = scope.partition(":")
        return bool(self.scopes & {"admin", scope}) or (right == "read" and f"{area}:write" in self.scopes)


def hash_secret(pepper: bytes, key_id: str, secret: str) -> str:
    """Hash a key's secret for storing: HMAC-SHA-256 under the pepper."""
    return hmac.new(pepper, f"{key_id}.{secret}".encode(), hashlib.sha256).hexdigest()


def create(
    server: Server, *, name: str, scopes: list[str], expires_at: int | None = None, once: Once = NO_KEY
) -> Document:
    """Make an API key. The answer holds its text, this once."""
    unknown = sorted(set(scopes) - SCOPES)
    if unknown or not scopes:
        raise InputError("malformed_members", f"scopes: choose from {', '.join(sorted(SCOPES))}")

    def make(connection: Connection) -> Document:
        key_id = server.make_id("key")
        secret = to_base64url(server.random(_SECRET_BYTES))
        key = store.ApiKey(
            id=key_id,
            name=name,
            hash=hash_secret(server.pepper, key_id, secret),
            scopes=frozenset(scopes),
            created_at=server.clock(),
            expires_at=expires_at,
            revoked_at=None,
        )
        store.insert(connection, key)
        document = key.to_document()
        audit_log.append(server, connection, who=once.who, action="api_key.create", subject=key_id, body=document)
        return {**document, "key": f"{_PREFIX}{key_id}.{secret}"}

    return once.run(server, make)


def identify(server: Server, text: str) -> Caller:
    """Tell whose key this is.

    Raises:
        ServiceError: `unauthenticated`, the same for whatever is wrong with it.
    """
    key_id, _, secret = text.removeprefix(_PREFIX).partition(".")
    stored = None
    if len(text) <= _TEXT_CHARS_MAX and text.isascii() and text.startswith(_PREFIX) and _is_key_id(key_id):
        with read(server) as connection:
            stored = store.find(connection, key_id)
    given = hash_secret(server.pepper, key_id, secret)
    good = hmac.compare_digest(given, stored.hash if stored else "0" * 64)
    if stored is None or not good or not _is_current(stored, server.clock()):
        raise ServiceError("unauthenticated")
    return Caller(id=stored.id, scopes=stored.scopes)


def _is_key_id(text: str) -> bool:
    try:
        _KEY_ID(text, "key")
    except InputError:
        return False
    return True


def _is_current(key: store.ApiKey, now: int) -> bool:
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def revoke(server: Server, key_id: str, *, who: str = audit_log.COMMAND) -> Document:
    """Revoke an API key, at once and for good."""
    with write(server) as connection:
        found = store.find(connection, key_id)
        if found is None:
            raise ServiceError("not_found", "api key")
        if store.revoke(connection, key_id, server.clock()):
            found = store.find(connection, key_id) or found
            body = found.to_document()
            audit_log.append(server, connection, who=who, action="api_key.revoke", subject=key_id, body=body)
    return found.to_document()


def page(server: Server, asked: Page) -> Document:
    """List API keys."""
    with read(server) as connection:
        return store.page(connection, asked)
