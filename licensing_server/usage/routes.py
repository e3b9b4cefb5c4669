"""Exchange, usage and exceptions over HTTP."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from licensing_server.auth import WhoDep, allowed
from licensing_server.bodies import ServerDep, inflate, json_body, wire
from licensing_server.grouping import Grouping
from licensing_server.pages import Document
from licensing_server.parameters import PageDep
from licensing_server.usage import deciding, events, schemas, service
from licensing_server.usage.opening import Opened
from meterkit import limits
from meterkit.exchange import BATCH_MEDIA_TYPE, REPLY_MEDIA_TYPE, Reply, split_batches

router = APIRouter(prefix="/v1")
_TOGETHER_BYTES_MAX = 256 * 1024  # a larger request would keep those waiting that were taken with it

_read = wire(BATCH_MEDIA_TYPE, limits.EXCHANGE_WIRE_BYTES_MAX)
State = Literal["open", "acknowledged", "resolved"] | None
Resolution = Annotated[schemas.Resolution, json_body(schemas.Resolution)]
Acknowledgment = Annotated[schemas.Acknowledgment, json_body(schemas.Acknowledgment)]
Reopening = Annotated[schemas.Reopening, json_body(schemas.Reopening)]


async def exchange(request: Request) -> Response:
    """Take a device's batches, with those of other devices where nothing is odd; the answer is one reply."""
    data = body = await _read(request)
    if "content-encoding" in request.headers:  # nothing to inflate is no work for a thread
        data = await run_in_threadpool(inflate, request, body, limits.EXCHANGE_BYTES_MAX)
    texts = split_batches(data, batches_max=limits.EXCHANGE_BATCHES_MAX)
    together: Grouping[list[str], Opened | None, Reply | None] = request.app.state.exchanges
    reply = await together.ask(texts) if len(data) <= _TOGETHER_BYTES_MAX else None
    if reply is None:
        reply = (await run_in_threadpool(service.take_alone, request.app.state.server, texts)).reply
    return Response(reply.to_bytes(), media_type=REPLY_MEDIA_TYPE)


# A plain route, inside of the same middleware: to find what it depends on would take as long as all else of HTTP.
router.add_route("/v1/exchanges", exchange, methods=["POST"])


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


@dataclass(frozen=True, slots=True)
class Exported:
    """Which usage is to leave, and as known when; all that was used if nothing is named."""

    period: str | None = None
    from_at: Annotated[int | None, Query(alias="from", ge=0, le=limits.TIME_MAX_S)] = None
    to_at: Annotated[int | None, Query(alias="to", ge=0, le=limits.TIME_MAX_S)] = None
    customer: str | None = None
    license: str | None = None
    through: Annotated[int | None, Query(ge=0, le=limits.INTEGER_MAX)] = None
    run: Annotated[int | None, Query(ge=0, le=limits.INTEGER_MAX)] = None
    subject: events.Subject = "license"


@router.get("/usage/events", dependencies=[allowed("usage:read")])
def export_usage(
    server: ServerDep, asked: Annotated[Exported, Depends()], form: events.Form = "batch"
) -> StreamingResponse:
    """Give a CloudEvent for each usage record that billing counts; the answer's headers say as known when."""
    named = {each.name: getattr(asked, each.name) for each in fields(asked)}
    made = events.export(server, events.Asked(license_id=named.pop("license"), **named))
    known = {"Meterkit-Through": str(made.scope.through), "Meterkit-Run": str(made.scope.run)}
    return StreamingResponse(made.written(form), media_type=events.MEDIA_TYPES[form], headers=known)


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


@router.get("/exceptions/{exception_id}", dependencies=[allowed("usage:read")])
def show_exception(server: ServerDep, exception_id: str) -> Document:
    """Show an exception, and what was decided about it."""
    return deciding.show(server, exception_id)


@router.post("/exceptions/{exception_id}/acknowledge", dependencies=[allowed("usage:write")])
def acknowledge_exception(server: ServerDep, exception_id: str, body: Acknowledgment, who: WhoDep) -> Document:
    """Say that somebody looks at an exception."""
    return deciding.acknowledge(server, exception_id, owner=body.owner, note=body.note, who=who)


@router.post("/exceptions/{exception_id}/resolve", dependencies=[allowed("usage:write")])
def resolve_exception(server: ServerDep, exception_id: str, body: Resolution, who: WhoDep) -> Document:
    """Close an exception, saying how."""
    return deciding.resolve(server, exception_id, deciding.Resolution(**body.model_dump()), who=who)


@router.post("/exceptions/{exception_id}/reopen", dependencies=[allowed("usage:write")])
def reopen_exception(server: ServerDep, exception_id: str, body: Reopening, who: WhoDep) -> Document:
    """Open a resolved exception again."""
    return deciding.reopen(server, exception_id, how=body.how, who=who)
