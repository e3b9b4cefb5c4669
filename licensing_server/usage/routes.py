"""Exchange, usage and exceptions over HTTP."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from licensing_server.auth import allowed
from licensing_server.bodies import ServerDep, inflate, json_body, wire
from licensing_server.pages import Document, PageDep
from licensing_server.usage import schemas, service
from meterkit import limits
from meterkit.exchange import BATCH_MEDIA_TYPE, REPLY_MEDIA_TYPE, split_batches

router = APIRouter(prefix="/v1")

Wire = Annotated[bytes, Depends(wire(BATCH_MEDIA_TYPE, limits.EXCHANGE_WIRE_BYTES_MAX))]
State = Literal["open", "resolved"] | None
Resolution = Annotated[schemas.Resolution, json_body(schemas.Resolution)]


@router.post("/exchanges")
def exchange(server: ServerDep, request: Request, body: Wire) -> Response:
    """Take a device's batches; the answer is one reply."""
    data = inflate(request, body, limits.EXCHANGE_BYTES_MAX)
    reply = service.exchange(server, split_batches(data, batches_max=limits.EXCHANGE_BATCHES_MAX))
    return Response(reply.to_bytes(), media_type=REPLY_MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which usage is asked for: of a license, of a meter, in a period (half-open); all of it if not named."""

    license: str | None = None
    model: str | None = None
    unit: Literal["call", "item"] | None = None
    from_at: Annotated[int, Query(alias="from", ge=0, le=limits.TIME_MAX_S)] = 0
    to_at: Annotated[int | None, Query(alias="to", ge=0, le=limits.TIME_MAX_S)] = None


@router.get("/usage", dependencies=[allowed("usage:read")])
def sum_usage(server: ServerDep, chosen: Annotated[Chosen, Depends()]) -> Document:
    """Sum what was used, per license and meter, over a period."""
    meter = (chosen.model, chosen.unit)
    period = (chosen.from_at, chosen.to_at)
    return service.sum_usage(server, license_id=chosen.license, meter=meter, period=period)


@router.get("/exceptions", dependencies=[allowed("usage:read")])
def list_exceptions(
    server: ServerDep,
    page: PageDep,
    device: str | None = None,
    license: str | None = None,  # noqa: A002 - its name in the URL
    state: State = None,
) -> Document:
    """List what a person should look at."""
    return service.page_exceptions(server, page, device=device, license_id=license, state=state)


@router.post("/exceptions/{exception_id}/resolve", dependencies=[allowed("usage:write")])
def resolve_exception(server: ServerDep, request: Request, exception_id: str, body: Resolution) -> Document:
    """Close an exception, saying how."""
    who = request.state.caller.id
    return service.resolve_exception(server, exception_id, how=body.how, who=who)
