"""What routes of several nouns read of a request beside its body: a list's page, and the `Idempotency-Key`."""

from typing import Annotated

from fastapi import Depends, Header, Query, Request

from licensing_server.bodies import RawJson
from licensing_server.idempotency import KEY_CHARS_MAX, Once
from licensing_server.pages import CURSOR_BYTES_MAX, LIMIT_DEFAULT, LIMIT_MAX, Page, read_page
from meterkit.canonical import sha256_hex


def page(
    cursor: Annotated[str | None, Query(max_length=CURSOR_BYTES_MAX * 2)] = None,
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
) -> Page:
    """Read `?cursor=&limit=`."""
    return read_page(cursor, limit)


PageDep = Annotated[Page, Depends(page)]


def once(
    request: Request,
    data: RawJson,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=KEY_CHARS_MAX)] = None,
) -> Once:
    """Read the `Idempotency-Key` of a request; it is the caller's own, and bound to method, path and body."""
    asked = b"\n".join((request.method.encode(), request.scope["path"].encode(), data))
    api_key: str = request.state.caller.id
    return Once(key=idempotency_key, api_key=api_key, request_hash=sha256_hex(asked))


OnceDep = Annotated[Once, Depends(once)]
