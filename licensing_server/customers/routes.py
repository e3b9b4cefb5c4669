"""Customers over HTTP."""

from typing import Annotated

from fastapi import APIRouter

from licensing_server.auth import allowed
from licensing_server.bodies import ServerDep, json_body
from licensing_server.customers import service
from licensing_server.customers.schemas import NewCustomer
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep

router = APIRouter(prefix="/v1/customers")


@router.post("", status_code=201, dependencies=[allowed("customers:write")])
def create(server: ServerDep, body: Annotated[NewCustomer, json_body(NewCustomer)], once: OnceDep) -> Document:
    """Add a customer."""
    return service.create(server, name=body.name, time_zone=body.time_zone, once=once)


@router.get("", dependencies=[allowed("customers:read")])
def list_all(server: ServerDep, page: PageDep) -> Document:
    """List customers."""
    return service.page(server, page)


@router.get("/{customer_id}", dependencies=[allowed("customers:read")])
def show(server: ServerDep, customer_id: str) -> Document:
    """Show a customer."""
    return service.show(server, customer_id)
