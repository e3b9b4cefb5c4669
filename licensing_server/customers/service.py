"""Whom a vendor sells to."""

import zoneinfo

from licensing_server.audit_log import service as audit_log
from licensing_server.customers import store
from licensing_server.database import Connection, read
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit.errors import InputError, ServiceError


def create(server: Server, *, name: str, time_zone: str, once: Once = NO_KEY) -> Document:
    """Add a customer. Names may repeat: the id tells customers apart.

    Raises:
        InputError: `malformed_members` for a time zone that the IANA database does not know.
    """
    check_zone(time_zone)

    def make(connection: Connection) -> Document:
        customer = store.Customer(
            id=server.make_id("cus"), name=name, time_zone=time_zone, created_at=server.clock()
        )
        store.insert(connection, customer)
        document = customer.to_document()
        audit_log.append(
            server, connection, who=once.who, action="customer.create", subject=customer.id, body=document
        )
        return document

    return once.run(server, make)


def check_zone(time_zone: str) -> None:
    """Return if the IANA database knows the zone."""
    if time_zone not in zoneinfo.available_timezones() or time_zone == "localtime":
        raise InputError("malformed_members", "time_zone: must be a name of the IANA time zone database")


def find(connection: Connection, customer_id: str) -> store.Customer:
    """Find a customer, or raise `not_found`."""
    customer = store.find(connection, customer_id)
    if customer is None:
        raise ServiceError("not_found", "customer")
    return customer


def show(server: Server, customer_id: str) -> Document:
    """Show one customer."""
    with read(server) as connection:
        return find(connection, customer_id).to_document()


def page(server: Server, asked: Page) -> Document:
    """List customers."""
    with read(server) as connection:
        return store.page(connection, asked)
