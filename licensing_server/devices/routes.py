"""Activation, keyring, devices and revocation over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from licensing_server.auth import WhoDep, allowed
from licensing_server.bodies import ServerDep, ascii_text, inflate, json_body, wire
from licensing_server.devices import decisions, schemas, service
from licensing_server.devices.schemas import LicenseFilter
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep
from meterkit import limits
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, REPLY_MEDIA_TYPE

router = APIRouter(prefix="/v1")

Signed = Annotated[bytes, Depends(wire(ACTIVATION_MEDIA_TYPE, limits.ACTIVATION_BYTES_MAX + 1))]

WriteOff = Annotated[schemas.NewWriteOff, json_body(schemas.NewWriteOff)]
Declaration = Annotated[schemas.NewDeclaration, json_body(schemas.NewDeclaration)]
Replacement = Annotated[schemas.NewReplacement, json_body(schemas.NewReplacement)]


@router.post("/activations")
def activate(server: ServerDep, request: Request, body: Signed) -> Response:
    """Activate a device: the body is its signed request, the answer its first reply."""
    text = ascii_text(inflate(request, body, limits.ACTIVATION_BYTES_MAX + 1))
    reply = service.activate(server, text)
    return Response(reply.to_bytes(), media_type=REPLY_MEDIA_TYPE)


@router.get("/keyring")
def show_keyrings(server: ServerDep) -> Document:
    """Show the keyring documents, oldest first."""
    return service.show_keyrings(server)


@router.get("/devices", dependencies=[allowed("devices:read")])
def list_all(
    server: ServerDep,
    page: PageDep,
    license: LicenseFilter = None,  # noqa: A002 - its name in the URL
) -> Document:
    """List devices, of one license if named."""
    return service.page(server, page, license)


@router.get("/devices/{device_id}", dependencies=[allowed("devices:read")])
def show(server: ServerDep, device_id: str) -> Document:
    """Show a device."""
    return service.show(server, device_id)


@router.get("/devices/{device_id}/tokens", dependencies=[allowed("devices:read")])
def list_tokens(server: ServerDep, device_id: str, page: PageDep) -> Document:
    """List the tokens that a device was given, without their texts."""
    return service.page_tokens(server, device_id, page)


@router.post("/devices/{device_id}/revoke", dependencies=[allowed("devices:write")])
def revoke_device(server: ServerDep, device_id: str, who: WhoDep) -> Document:
    """Revoke a device, for good."""
    return service.revoke(server, "device", device_id, who=who)


@router.post("/tokens/{jti}/revoke", dependencies=[allowed("devices:write")])
def revoke_token(server: ServerDep, jti: str, who: WhoDep) -> Document:
    """Revoke one token."""
    return service.revoke(server, "token", jti, who=who)


@router.post("/licenses/{license_id}/revoke", dependencies=[allowed("licenses:write")])
def revoke_license(server: ServerDep, license_id: str, who: WhoDep) -> Document:
    """Revoke a license and all its tokens, for good; it ends."""
    return service.revoke(server, "license", license_id, who=who)


@router.get("/devices/{device_id}/exposures", dependencies=[allowed("devices:read")])
def show_exposures(server: ServerDep, device_id: str) -> Document:
    """Show what a device may still use, by each life of its ledger."""
    return decisions.show_exposures(server, device_id)


@router.post("/devices/{device_id}/write-offs", status_code=201, dependencies=[allowed("devices:write")])
def write_off(server: ServerDep, request: Request, device_id: str, body: WriteOff, once: OnceDep) -> Document:
    """Count what one life of a device's ledger may still use as 0."""
    who = request.state.caller.id
    return decisions.write_off(server, device_id, epoch=body.epoch, why=body.why, who=who, once=once)


@router.get("/devices/{device_id}/write-offs", dependencies=[allowed("devices:read")])
def list_write_offs(server: ServerDep, device_id: str, page: PageDep) -> Document:
    """List what was written off of a device."""
    return decisions.page_write_offs(server, device_id, page)


@router.post("/devices/{device_id}/declare", dependencies=[allowed("devices:write")])
def declare(server: ServerDep, request: Request, device_id: str, body: Declaration, once: OnceDep) -> Document:
    """Declare a device retired or lost, or take that back."""
    who = request.state.caller.id
    return decisions.declare(server, device_id, state=body.state, why=body.why, who=who, once=once)


@router.post("/devices/{device_id}/replacement", status_code=201, dependencies=[allowed("devices:write")])
def replace_device(
    server: ServerDep, request: Request, device_id: str, body: Replacement, once: OnceDep
) -> Document:
    """Replace a broken device: the answer holds the code for the new one, this once."""
    return decisions.replace_device(server, device_id, why=body.why, who=request.state.caller.id, once=once)


@router.get("/licenses/{license_id}/replacements", dependencies=[allowed("devices:read")])
def list_replacements(server: ServerDep, license_id: str, page: PageDep) -> Document:
    """List the devices of a license that were replaced."""
    return decisions.page_replacements(server, license_id, page)
