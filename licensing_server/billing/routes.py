"""Billing runs and invoices over HTTP."""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks
from fastapi.responses import Response

from licensing_server.auth import WhoDep, allowed
from licensing_server.billing import changing, conserving, correcting, disputing, outputs, service, settling
from licensing_server.billing.outputs import Output
from licensing_server.billing.rendering.html import SECURITY_POLICY
from licensing_server.billing.schemas import (
    NewConcession,
    NewCorrection,
    NewDispute,
    NewPayment,
    NewRefund,
    NewRun,
    NewVersion,
    NewVoid,
    Resolution,
)
from licensing_server.bodies import ServerDep, json_body
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep
from meterkit.documents import CREDIT_NOTE

router = APIRouter(prefix="/v1")
_READ = [allowed("billing:read")]
_WRITE = [allowed("billing:write")]


@router.post("/billing-runs", status_code=201, dependencies=_WRITE)
def create_run(
    server: ServerDep, body: Annotated[NewRun, json_body(NewRun)], once: OnceDep, afterwards: BackgroundTasks
) -> Document:
    """Bill up to a cut-off."""
    if body.dry_run:
        return service.dry_run(server, cut_off=body.cut_off, customer=body.customer)
    afterwards.add_task(service.add_up, server)
    return service.run(server, cut_off=body.cut_off, customer=body.customer, once=once)


@router.post("/licenses/{license_id}/versions", status_code=201, dependencies=_WRITE)
def change_plan(
    server: ServerDep, license_id: str, body: Annotated[NewVersion, json_body(NewVersion)], once: OnceDep
) -> Document:
    """Bill a license by another version of a plan from its next period, or from now on."""
    return changing.change_plan(
        server, license_id, plan=body.plan, version=body.plan_version, starts=body.starts, once=once
    )


@router.post("/licenses/{license_id}/corrections", status_code=201, dependencies=_WRITE)
def correct_plan(
    server: ServerDep, license_id: str, body: Annotated[NewCorrection, json_body(NewCorrection)], once: OnceDep
) -> Document:
    """Bill a license by another version of a plan from an instant in the past on."""
    return correcting.correct_plan(
        server,
        license_id,
        plan=body.plan,
        version=body.plan_version,
        starts_at=body.starts_at,
        note=body.note,
        once=once,
    )


@router.get("/billing-runs", dependencies=_READ)
def list_runs(server: ServerDep, page: PageDep) -> Document:
    """List billing runs."""
    return service.page_runs(server, page)


@router.get("/billing-runs/{number}", dependencies=_READ)
def show_run(server: ServerDep, number: int) -> Document:
    """Show a billing run."""
    return service.show_run(server, number)


@router.get("/billing-conservation", dependencies=_READ)
def show_conservation(server: ServerDep, customer: str | None = None) -> Document:
    """Show where all accepted units are: invoiced, pending, waived, excluded, or unpriced."""
    return conserving.show(server, customer)


@router.get("/invoices", dependencies=_READ)
def list_all(server: ServerDep, page: PageDep, customer: str | None = None) -> Document:
    """List invoices."""
    return service.page(server, page, customer)


@router.get("/invoices/{invoice_id}", dependencies=_READ)
def show(server: ServerDep, invoice_id: str) -> Document:
    """Show an invoice."""
    return service.show(server, invoice_id)


@router.post("/invoices/{invoice_id}/finalize", dependencies=_WRITE)
def finalize(server: ServerDep, invoice_id: str, who: WhoDep) -> Document:
    """Make a draft an invoice."""
    return service.finalize(server, invoice_id, who=who)


@router.get("/invoices/{invoice_id}/evidence", dependencies=_READ)
def show_evidence(server: ServerDep, invoice_id: str) -> Response:
    """Give an invoice's evidence."""
    number, evidence = service.show_evidence(server, invoice_id)
    headers = {"Content-Disposition": f'attachment; filename="{number}.zip"'}
    return Response(evidence, media_type="application/zip", headers=headers)


@router.get("/invoices/{invoice_id}/pdf", dependencies=_READ)
def show_pdf(server: ServerDep, invoice_id: str) -> Response:
    """Give an invoice as a PDF."""
    return _send(outputs.as_pdf(server, invoice_id))


@router.get("/invoices/{invoice_id}/html", dependencies=_READ)
def show_html(server: ServerDep, invoice_id: str) -> Response:
    """Give an invoice as a page for a browser."""
    return _send(outputs.as_html(server, invoice_id), **{"Content-Security-Policy": SECURITY_POLICY})


@router.get("/invoices/{invoice_id}/csv", dependencies=_READ)
def show_csv(server: ServerDep, invoice_id: str) -> Response:
    """Give an invoice's lines in FOCUS columns."""
    return _send(outputs.as_csv(server, invoice_id))


def _send(output: Output, **headers: str) -> Response:
    shown = "inline" if output.media_type == "text/html" else "attachment"
    named = {"Content-Disposition": f'{shown}; filename="{output.name}"', "X-Content-Type-Options": "nosniff"}
    return Response(output.data, media_type=output.media_type, headers=named | headers)


@router.get("/credit-notes", dependencies=_READ)
def list_credit_notes(server: ServerDep, page: PageDep, customer: str | None = None) -> Document:
    """List credit notes."""
    return service.page(server, page, customer, kind=CREDIT_NOTE)


@router.post("/invoices/{invoice_id}/payments", status_code=201, dependencies=_WRITE)
def pay(
    server: ServerDep, invoice_id: str, body: Annotated[NewPayment, json_body(NewPayment)], once: OnceDep
) -> Document:
    """Note a payment."""
    return settling.pay(server, invoice_id, **body.model_dump(), once=once)


@router.get("/invoices/{invoice_id}/payments", dependencies=_READ)
def show_payments(server: ServerDep, invoice_id: str) -> Document:
    """Show what was paid, and what is open."""
    return settling.show_payments(server, invoice_id)


@router.post("/invoices/{invoice_id}/void", dependencies=_WRITE)
def void(
    server: ServerDep, invoice_id: str, body: Annotated[NewVoid, json_body(NewVoid)], once: OnceDep
) -> Document:
    """Take a document back."""
    return settling.void(server, invoice_id, note=body.note, once=once)


@router.post("/customers/{customer_id}/refunds", status_code=201, dependencies=_WRITE)
def refund(
    server: ServerDep, customer_id: str, body: Annotated[NewRefund, json_body(NewRefund)], once: OnceDep
) -> Document:
    """Note that a part of a balance was paid back."""
    return settling.refund(server, customer_id, **body.model_dump(), once=once)


@router.post("/invoices/{invoice_id}/disputes", status_code=201, dependencies=_WRITE)
def dispute(
    server: ServerDep, invoice_id: str, body: Annotated[NewDispute, json_body(NewDispute)], once: OnceDep
) -> Document:
    """Hold a line that the customer disputes."""
    return disputing.dispute(server, invoice_id, line=body.line, note=body.note, once=once)


@router.post("/disputes/{dispute_id}/resolve", dependencies=_WRITE)
def resolve(
    server: ServerDep, dispute_id: str, body: Annotated[Resolution, json_body(Resolution)], once: OnceDep
) -> Document:
    """End a dispute."""
    return disputing.resolve(server, dispute_id, **body.model_dump(), once=once)


@router.post("/invoices/{invoice_id}/concessions", status_code=201, dependencies=_WRITE)
def concede(
    server: ServerDep, invoice_id: str, body: Annotated[NewConcession, json_body(NewConcession)], once: OnceDep
) -> Document:
    """Let off an amount on a line."""
    return disputing.concede(server, invoice_id, **body.model_dump(), once=once)


@router.get("/customers/{customer_id}/disputes", dependencies=_READ)
def show_disputes(server: ServerDep, customer_id: str) -> Document:
    """Show a customer's disputes and concessions."""
    return disputing.show(server, customer_id)
