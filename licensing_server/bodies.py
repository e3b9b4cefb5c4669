"""Request bodies: capped on the wire and inflated, of one media type, strict, before anything else reads them."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.params import Depends as DependsParam
from starlette.requests import ClientDisconnect

from licensing_server.schemas import Body
from licensing_server.server import Server
from meterkit import limits
from meterkit.canonical import from_bytes
from meterkit.errors import InputError

JSON_MEDIA_TYPE = "application/json"
_GZIP = 31  # zlib's window bits for a gzip member, and nothing else

Schema = TypeVar("Schema", bound=Body)


async def the_server(request: Request) -> Server:
    """Give a route the server that its application was made for."""
    server: Server = request.app.state.server
    return server


ServerDep = Annotated[Server, Depends(the_server)]


def wire(media_type: str, bytes_max: int) -> Callable[[Request], Awaitable[bytes]]:
    """Make the dependency that reads a body of one media type, up to a number of bytes on the wire.

    Where it ends is what comes, not what was announced; a peer that is slow holds up nobody else.

    Raises:
        InputError: `media_type_unsupported`, `too_large`, `body_incomplete` if it breaks off or takes longer
            than an exchange may.
    """

    async def read(request: Request) -> bytes:
        _check_media_type(request, media_type)
        announced = request.headers.get("content-length", "0")
        if not announced.isascii() or not announced.isdigit() or int(announced[:20]) > bytes_max:
            raise InputError("too_large", f"at most {bytes_max} bytes on the wire")
        try:
            async with asyncio.timeout(limits.HTTP_EXCHANGE_MAX_S):
                return await _read_capped(request, bytes_max)
        except TimeoutError:
            raise InputError("body_incomplete", f"within {limits.HTTP_EXCHANGE_MAX_S} seconds") from None
        except ClientDisconnect:
            raise InputError("body_incomplete") from None

    return read


async def _read_capped(request: Request, bytes_max: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise InputError("too_large", f"at most {bytes_max} bytes on the wire")
        parts.append(part)
    return b"".join(parts)


def _check_media_type(request: Request, expected: str) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != expected:
        raise InputError("media_type_unsupported", f"expected {expected}")
    if parameters.strip().lower() not in ("", "charset=utf-8"):
        raise InputError("media_type_unsupported", "expected UTF-8")


def inflate(request: Request, data: bytes, bytes_max: int) -> bytes:
    """Undo gzip where the request says so: one whole member, and never more bytes than allowed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return data
    if encoding != "gzip":
        raise InputError("media_type_unsupported", "content-encoding: only gzip")
    return gunzip(data, bytes_max)


def gunzip(data: bytes, bytes_max: int) -> bytes:
    """Inflate one gzip member.

    Raises:
        InputError: `too_large` beyond the bound, in time and memory that it bounds; `malformed_file` if the
            member is damaged, cut short, or followed by anything.
    """
    machine = zlib.decompressobj(_GZIP)
    try:
        inflated = machine.decompress(data, bytes_max + 1)
    except zlib.error:
        raise InputError("malformed_file", "gzip") from None
    if len(inflated) > bytes_max:
        raise InputError("too_large", f"at most {bytes_max} bytes inflated")
    if not machine.eof or machine.unused_data:
        raise InputError("malformed_file", "gzip: not one whole member")
    return inflated


def ascii_text(data: bytes) -> str:
    """Read a body that is one line of ASCII, as an envelope is; one line feed may end it."""
    try:
        return data.decode("ascii").removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError("not_text") from None


raw_json = wire(JSON_MEDIA_TYPE, limits.BODY_BYTES_MAX)
RawJson = Annotated[bytes, Depends(raw_json)]


def json_body(schema: type[Schema]) -> DependsParam:
    """Make the dependency that reads a vendor's JSON body as one schema, strictly."""

    def read(request: Request, data: RawJson) -> Schema:
        value: Any = from_bytes(inflate(request, data, limits.BODY_BYTES_MAX), bytes_max=limits.BODY_BYTES_MAX)
        return schema.read(value)

    made: DependsParam = Depends(read)
    return made
