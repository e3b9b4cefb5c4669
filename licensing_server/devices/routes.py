"""Activation, keyring, devices and revocation over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from licensing_server.auth import allowed
from licensing_server.bodies import ServerDep, ascii_text, inflate, wire
from licensing_server.devices import service
from licensing_server.devices.schemas import LicenseFilter
from licensing_server.pages import Document, PageDep
from meterkit import limits
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, REPLY_MEDIA_TYPE

router = APIRouter(prefix="/v1")

Signed = Annotated[bytes, Depends(wire(ACTIVATION_MEDIA_TYPE, limits.ACTIVATION_BYTES_MAX + 1))]


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
def revoke_device(server: ServerDep, device_id: str) -> Document:
    """Revoke a device, for good."""
    return service.revoke(server, "device", device_id)


@router.post("/tokens/{jti}/revoke", dependencies=[allowed("devices:write")])
def revoke_token(server: ServerDep, jti: str) -> Document:
    """Revoke one token."""
    return service.revoke(server, "token", jti)


@router.post("/licenses/{license_id}/revoke", dependencies=[allowed("licenses:write")])
def revoke_license(server: ServerDep, license_id: str) -> Document:
    """Revoke a license and all its tokens, for good; it ends."""
    return service.revoke(server, "license", license_id)
