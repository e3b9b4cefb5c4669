"""Accounts over HTTP."""

from typing import Annotated

from fastapi import APIRouter

from licensing_server.accounts import service
from licensing_server.accounts.schemas import NewCredit, NewTaxRate
from licensing_server.auth import allowed
from licensing_server.bodies import ServerDep, json_body
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep

router = APIRouter(prefix="/v1")
_READ = [allowed("billing:read")]
_WRITE = [allowed("billing:write")]


@router.post("/tax-rates", status_code=201, dependencies=_WRITE)
def set_tax_rate(server: ServerDep, body: Annotated[NewTaxRate, json_body(NewTaxRate)], once: OnceDep) -> Document:
    """Say which tax counts from an instant on."""
    return service.set_tax_rate(
        server,
        name=body.name,
        percent=body.percent,
        starts_at=body.starts_at,
        customer=body.customer,
        once=once,
    )


@router.get("/customers/{customer_id}/tax-rates", dependencies=_READ)
def show_tax_rates(server: ServerDep, customer_id: str) -> Document:
    """Show a customer's tax rates."""
    return service.show_tax_rates(server, customer_id)


@router.post("/customers/{customer_id}/credits", status_code=201, dependencies=_WRITE)
def add_credit(
    server: ServerDep, customer_id: str, body: Annotated[NewCredit, json_body(NewCredit)], once: OnceDep
) -> Document:
    """Note money that a customer paid ahead."""
    return service.add_credit(server, customer_id, **body.model_dump(), once=once)


@router.get("/customers/{customer_id}/credits", dependencies=_READ)
def list_credits(server: ServerDep, customer_id: str, page: PageDep) -> Document:
    """List a customer's prepaid credits."""
    return service.page_credits(server, page, customer_id)


@router.get("/customers/{customer_id}/account", dependencies=_READ)
def show(server: ServerDep, customer_id: str) -> Document:
    """Show where a customer stands."""
    return service.show(server, customer_id)
