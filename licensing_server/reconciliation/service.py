"""Reconciliation: a statement of a period, in pages or whole, and whether it adds up (DESIGN §7).

A statement is asserted every time: what devices signed must be what is counted, set aside and dismissed, and
each license's total the sum of its parts. Where it is not so, the statement says it by `conservation_broken`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from licensing_server.customers import service as customers
from licensing_server.database import Connection, read
from licensing_server.licenses import named_periods
from licensing_server.licenses import service as licenses
from licensing_server.pages import Document, Page, to_cursor
from licensing_server.reconciliation import statement, store
from licensing_server.reconciliation.statement import Line, Summary
from licensing_server.reconciliation.store import Scope
from licensing_server.server import Server
from meterkit.errors import InputError

BROKEN = "conservation_broken"
_PIECE_DEVICES = 200
_UTC = "UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a statement is asked for: a period by name (2026, 2026-01, 2026-01-31) or by two instants; and whose.

    A named period begins and ends at midnight in the named customer's time zone, or in UTC.
    """

    period: str | None = None
    from_at: int | None = None
    to_at: int | None = None
    customer: str | None = None
    license_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A statement that is being read: what it is about, and its lines; once they are read, what they come to."""

    head: Document
    lines: Iterator[Line]
    _connection: Connection
    _scope: Scope
    _summary: Summary

    def summarize(self) -> Document:
        """Give the summary, asserted. Read the lines first."""
        wrong_sums = self._summary.wrong_sums(store.license_totals(self._connection, self._scope))
        return self._summary.to_document(wrong_sums)


@contextmanager
def reading(server: Server, asked: Asked) -> Iterator[Reading]:
    """Read a whole statement line by line, as the database was when it began; it keeps one piece in memory.

    Raises:
        InputError: `malformed_members` for a period that is none.
        ServiceError: `not_found` for a customer or a license.
    """
    with read(server) as connection:
        scope, head = _scope(server, connection, asked)
        summary = Summary()
        yield Reading(
            head=head,
            lines=_lines(connection, scope, summary),
            _connection=connection,
            _scope=scope,
            _summary=summary,
        )


def page(server: Server, asked: Asked, wanted: Page) -> Document:
    """One page of a statement: so many devices, each with its lines; with the first page, what all come to.

    Each page is asserted for its devices, the summary for all of them. Raises as `reading` does.
    """
    summarized = None
    if wanted.after is None:
        with reading(server, asked) as whole:
            for _ in whole.lines:
                pass
            summarized = whole.summarize()
    with read(server) as connection:
        scope, head = _scope(server, connection, asked)
        after = None if wanted.after is None else wanted.after[1]
        ids = store.device_ids(connection, scope, after, wanted.limit + 1)
        shown = ids[: wanted.limit]
        summary = Summary()
        lines = [line.to_document() for line in _add_piece(connection, scope, summary, shown)]
    holds = not summary.differences and (summarized is None or summarized["conservation"]["holds"])
    return {
        **head,
        "holds": holds,
        "code": None if holds else BROKEN,
        "summary": summarized,
        "items": lines,
        "next": to_cursor(0, shown[-1]) if len(ids) > len(shown) else None,
    }


def _lines(connection: Connection, scope: Scope, summary: Summary) -> Iterator[Line]:
    after = None
    while ids := store.device_ids(connection, scope, after, _PIECE_DEVICES):
        yield from _add_piece(connection, scope, summary, ids)
        after = ids[-1]


def _add_piece(connection: Connection, scope: Scope, summary: Summary, ids: list[str]) -> list[Line]:
    """Read some devices' lines, and add them to a summary."""
    if not ids:
        return []
    piece = store.read(connection, scope, ids)
    lines = list(statement.lines(piece.rows, scope.upto))
    for line in lines:
        summary.add(line)
    summary.add_exceptions(piece.exceptions)
    summary.add_conservation(piece.signed, piece.recorded)
    return lines


def _scope(server: Server, connection: Connection, asked: Asked) -> tuple[Scope, Document]:
    """What a statement is about, for the store and for people."""
    now = server.clock()
    zone = _UTC
    if asked.customer is not None:
        zone = customers.find(connection, asked.customer).time_zone
    if asked.license_id is not None:
        license_ = licenses.find(connection, asked.license_id)
        if asked.customer not in (None, license_.customer):
            raise InputError("malformed_members", "license: it is another customer's")
    from_at, to_at = named_periods.bounds(asked.period, (asked.from_at, asked.to_at), zone=zone, now=now)
    scope = Scope(from_at=from_at, to_at=to_at, known_at=now, customer=asked.customer, license_id=asked.license_id)
    head = {
        "from": from_at,
        "to": to_at,
        "time_zone": zone,
        "known_at": now,
        "through": scope.upto,
        "customer": asked.customer,
        "license": asked.license_id,
    }
    return scope, head
