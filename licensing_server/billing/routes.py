"""Billing runs and invoices over HTTP."""

from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import Response

from licensing_server.auth import allowed
from licensing_server.billing import service
from licensing_server.billing.schemas import NewRun
from licensing_server.bodies import ServerDep, json_body
from licensing_server.idempotency import OnceDep
from licensing_server.pages import Document, PageDep

router = APIRouter(prefix="/v1")
_READ = [allowed("billing:read")]
_WRITE = [allowed("billing:write")]


@router.post("/billing-runs", status_code=201, dependencies=_WRITE)
def create_run(server: ServerDep, body: Annotated[NewRun, json_body(NewRun)], once: OnceDep) -> Document:
    """Bill up to a cut-off."""
    if body.dry_run:
        return service.dry_run(server, cut_off=body.cut_off, customer=body.customer)
    return service.run(server, cut_off=body.cut_off, customer=body.customer, once=once)


@router.get("/billing-runs", dependencies=_READ)
def list_runs(server: ServerDep, page: PageDep) -> Document:
    """List billing runs."""
    return service.page_runs(server, page)


@router.get("/billing-runs/{number}", dependencies=_READ)
def show_run(server: ServerDep, number: int) -> Document:
    """Show a billing run."""
    return service.show_run(server, number)


@router.get("/invoices", dependencies=_READ)
def list_all(server: ServerDep, page: PageDep, customer: str | None = None) -> Document:
    """List invoices."""
    return service.page(server, page, customer)


@router.get("/invoices/{invoice_id}", dependencies=_READ)
def show(server: ServerDep, invoice_id: str) -> Document:
    """Show an invoice."""
    return service.show(server, invoice_id)


@router.post("/invoices/{invoice_id}/finalize", dependencies=_WRITE)
def finalize(server: ServerDep, invoice_id: str) -> Document:
    """Make a draft an invoice."""
    return service.finalize(server, invoice_id)


@router.get("/invoices/{invoice_id}/evidence", dependencies=_READ)
def show_evidence(server: ServerDep, invoice_id: str) -> Response:
    """Give an invoice's evidence."""
    number, evidence = service.show_evidence(server, invoice_id)
    headers = {"Content-Disposition": f'attachment; filename="{number}.zip"'}
    return Response(evidence, media_type="application/zip", headers=headers)
