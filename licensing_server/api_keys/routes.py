"""API keys over HTTP."""

from typing import Annotated

from fastapi import APIRouter

from licensing_server.api_keys import service
from licensing_server.api_keys.schemas import NewApiKey
from licensing_server.auth import WhoDep, allowed
from licensing_server.bodies import ServerDep, json_body
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep

router = APIRouter(prefix="/v1/api-keys")


@router.post("", status_code=201, dependencies=[allowed("admin")])
def create(server: ServerDep, body: Annotated[NewApiKey, json_body(NewApiKey)], once: OnceDep) -> Document:
    """Make an API key."""
    return service.create(server, name=body.name, scopes=body.scopes, expires_at=body.expires_at, once=once)


@router.get("", dependencies=[allowed("admin")])
def list_all(server: ServerDep, page: PageDep) -> Document:
    """List API keys."""
    return service.page(server, page)


@router.post("/{key_id}/revoke", dependencies=[allowed("admin")])
def revoke(server: ServerDep, key_id: str, who: WhoDep) -> Document:
    """Revoke an API key."""
    return service.revoke(server, key_id, who=who)
