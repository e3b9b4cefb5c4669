"""Webhook endpoints over HTTP."""

from typing import Annotated, Literal

from fastapi import APIRouter

from licensing_server.auth import WhoDep, allowed
from licensing_server.bodies import ServerDep, json_body
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep
from licensing_server.webhook_endpoints import service
from licensing_server.webhook_endpoints.schemas import NewEndpoint

router = APIRouter(prefix="/v1")
_READ = [allowed("webhook-endpoints:read")]
_WRITE = [allowed("webhook-endpoints:write")]


@router.post("/webhook-endpoints", status_code=201, dependencies=_WRITE)
def create(server: ServerDep, body: Annotated[NewEndpoint, json_body(NewEndpoint)], once: OnceDep) -> Document:
    """Make an endpoint; the answer holds its secret."""
    return service.create(server, url=body.url, events=body.events, once=once)


@router.get("/webhook-endpoints", dependencies=_READ)
def list_all(server: ServerDep, page: PageDep) -> Document:
    """List endpoints."""
    return service.page(server, page)


@router.get("/webhook-endpoints/{endpoint_id}", dependencies=_READ)
def show(server: ServerDep, endpoint_id: str) -> Document:
    """Show an endpoint."""
    return service.show(server, endpoint_id)


@router.post("/webhook-endpoints/{endpoint_id}/rotate", status_code=201, dependencies=_WRITE)
def rotate(server: ServerDep, endpoint_id: str, once: OnceDep) -> Document:
    """Give an endpoint a new secret; the answer holds it."""
    return service.rotate(server, endpoint_id, once=once)


@router.post("/webhook-endpoints/{endpoint_id}/disable", dependencies=_WRITE)
def disable(server: ServerDep, endpoint_id: str, who: WhoDep) -> Document:
    """Switch an endpoint off."""
    return service.switch(server, endpoint_id, "disabled", who=who)


@router.post("/webhook-endpoints/{endpoint_id}/enable", dependencies=_WRITE)
def enable(server: ServerDep, endpoint_id: str, who: WhoDep) -> Document:
    """Switch an endpoint on."""
    return service.switch(server, endpoint_id, "enabled", who=who)


@router.get("/webhook-messages", dependencies=_READ)
def list_messages(
    server: ServerDep,
    page: PageDep,
    endpoint: str | None = None,
    state: Literal["waiting", "delivered", "dead"] | None = None,
) -> Document:
    """List what endpoints were told, or are to be."""
    return service.page_messages(server, page, endpoint=endpoint, state=state)


@router.post("/webhook-messages/{message_id}/resend", dependencies=_WRITE)
def resend(server: ServerDep, message_id: str, who: WhoDep) -> Document:
    """Let a message be delivered again."""
    return service.resend(server, message_id, who=who)
