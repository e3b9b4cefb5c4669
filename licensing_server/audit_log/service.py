"""The audit log: appended to by every decision, in its own transaction; listed, and verified."""

from typing import Any

from licensing_server.audit_log import chain, store
from licensing_server.audit_log.chain import COMMAND, SERVER, Link, Walk
from licensing_server.database import Connection, next_number, read
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import shapes
from meterkit.errors import InputError, ServiceError

__all__ = ["COMMAND", "SERVER", "append", "page", "read_link", "verify"]

_PIECE_ENTRIES = 1_000
_LINK = shapes.Members(seq=shapes.integer(1), hash=shapes.HASH)


def append(server: Server, connection: Connection, *, who: str, action: str, subject: str, body: Any) -> None:
    """Log a decision in the transaction that takes it: both stand, or neither does.

    Call it last: from here to the commit nobody else can append, so that the chain has one end. `body` is kept
    for good, and shown; it must hold no secret.
    """
    seq = next_number(connection, store.COUNTER)
    prev = store.hash_at(connection, seq - 1) if seq > 1 else Link().hash
    if prev is None:
        raise ServiceError("audit_log_broken", f"entry {seq - 1} is missing")
    entry = chain.make(
        Link(seq=seq - 1, hash=prev), at=server.clock(), who=who, action=action, subject=subject, body=body
    )
    store.insert(connection, entry)


def page(
    server: Server, asked: Page, *, subject: str | None = None, who: str | None = None, action: str | None = None
) -> Document:
    """List what was decided, in its order; of one subject, person or action if named."""
    with read(server) as connection:
        return store.page(connection, asked, subject=subject, who=who, action=action)


def verify(server: Server, *, noted: Link | None = None) -> Document:
    """Walk along the whole log, and name the first entry that does not hold.

    `noted` is a place that this answered before, and that was kept elsewhere: without one, a log that was
    rewritten whole cannot be told from an honest one.
    """
    walk = Walk(noted)
    with read(server) as connection:
        for entries in store.read_pieces(connection, _PIECE_ENTRIES):
            walk.follow(entries)
        walk.end(store.count(connection))
    return {
        "holds": walk.broken is None,
        "last": walk.last.to_document(),
        "broken": walk.broken.to_document() if walk.broken else None,
    }


def read_link(text: str) -> Link:
    """Read a noted place, as SEQ:HASH.

    Raises:
        InputError: `malformed_members`.
    """
    seq, _, digest = text.partition(":")
    if not seq.isascii() or not seq.isdigit() or len(seq) > 16:
        raise InputError("malformed_members", "noted: it is SEQ:HASH")
    _LINK({"seq": int(seq), "hash": digest}, "noted")
    return Link(seq=int(seq), hash=digest)
