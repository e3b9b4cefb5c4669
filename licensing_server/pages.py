"""Lists in pages: by creation, then id, so that rows added meanwhile neither repeat nor hide others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from meterkit import shapes
from meterkit.canonical import from_base64url, from_bytes, to_base64url, to_bytes
from meterkit.errors import InputError

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
CURSOR_BYTES_MAX = 512

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list is asked for: how many at most, and after which row."""

    limit: int = LIMIT_DEFAULT
    after: tuple[int, str] | None = None


def read_page(cursor: str | None, limit: int) -> Page:
    """Read which part is asked for; a cursor is what the page before gave as `next`, and nothing else."""
    return Page(limit=limit, after=_read_cursor(cursor) if cursor else None)


def _read_cursor(cursor: str) -> tuple[int, str]:
    try:
        at, key = from_bytes(from_base64url(cursor), bytes_max=CURSOR_BYTES_MAX)
        shapes.integer()(at, "cursor")
        shapes.text()(key, "cursor")
    except (InputError, ValueError, TypeError):
        raise InputError("malformed_members", "cursor: not one that this server gave") from None
    return at, key


def to_cursor(at: int, key: str) -> str:
    """Write where a page ended, for `Page.after` of the next."""
    return to_base64url(to_bytes([at, key]))


def fetch(
    connection: sa.Connection,
    chosen: sa.Select[Any],
    page: Page,
    *,
    at: sa.ColumnElement[int],
    key: sa.ColumnElement[str],
    to_document: Callable[[Any], Document],
) -> Document:
    """Fetch one page of a selection, ordered by the instant `at`, then by the unique text `key`."""
    if page.after is not None:
        last_at, last_key = page.after
        chosen = chosen.where(sa.or_(at > last_at, sa.and_(at == last_at, key > last_key)))
    chosen = chosen.add_columns(at.label("page_at"), key.label("page_key"))
    rows = connection.execute(chosen.order_by(at, key).limit(page.limit + 1)).all()
    shown = rows[: page.limit]
    following = None
    if len(rows) > page.limit:
        last = shown[-1]
        following = to_cursor(last.page_at, last.page_key)
    return {"items": [to_document(row) for row in shown], "next": following}
