"""Licenses and activation codes over HTTP."""

from typing import Annotated

from fastapi import APIRouter

from licensing_server.auth import WhoDep, allowed
from licensing_server.bodies import ServerDep, json_body
from licensing_server.licenses import schemas, service
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep

router = APIRouter(prefix="/v1/licenses")
_READ = [allowed("licenses:read")]
_WRITE = [allowed("licenses:write")]

NewLicense = Annotated[schemas.NewLicense, json_body(schemas.NewLicense)]
NewCode = Annotated[schemas.NewCode, json_body(schemas.NewCode)]


@router.post("", status_code=201, dependencies=_WRITE)
def grant(server: ServerDep, body: NewLicense, once: OnceDep) -> Document:
    """Grant a license."""
    return service.grant(server, body.to_terms(), once=once)


@router.get("", dependencies=_READ)
def list_all(server: ServerDep, page: PageDep, customer: str | None = None) -> Document:
    """List licenses, of one customer if named."""
    return service.page(server, page, customer)


@router.get("/{license_id}", dependencies=_READ)
def show(server: ServerDep, license_id: str) -> Document:
    """Show a license."""
    return service.show(server, license_id)


@router.post("/{license_id}/suspend", dependencies=_WRITE)
def suspend(server: ServerDep, license_id: str, who: WhoDep) -> Document:
    """Suspend a license: its devices get receipts only."""
    return service.change_state(server, license_id, "suspended", who=who)


@router.post("/{license_id}/resume", dependencies=_WRITE)
def resume(server: ServerDep, license_id: str, who: WhoDep) -> Document:
    """Let a suspended license go on."""
    return service.change_state(server, license_id, "active", who=who)


@router.post("/{license_id}/end", dependencies=_WRITE)
def end(server: ServerDep, license_id: str, who: WhoDep) -> Document:
    """End a license, now and for good."""
    return service.change_state(server, license_id, "ended", who=who)


@router.post("/{license_id}/codes", status_code=201, dependencies=_WRITE)
def create_code(server: ServerDep, license_id: str, body: NewCode, once: OnceDep) -> Document:
    """Make an activation code."""
    return service.create_code(server, license_id, expires_at=body.expires_at, once=once)


@router.get("/{license_id}/codes", dependencies=_READ)
def list_codes(server: ServerDep, license_id: str, page: PageDep) -> Document:
    """List a license's activation codes, never their secrets."""
    return service.page_codes(server, license_id, page)
