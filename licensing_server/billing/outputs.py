"""How invoices leave the house: for people as PDF and HTML, for other systems as CSV (BILLING §7)."""

from dataclasses import dataclass

from licensing_server.billing import service
from licensing_server.billing.rendering import focus, html
from licensing_server.billing.rendering.sheets import Sheet, lay_out
from licensing_server.catalog import store as catalog_store
from licensing_server.database import Connection, read
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import terminal
from meterkit.errors import ServiceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A file to hand out: what to call it, what it is, its bytes."""

    name: str
    media_type: str
    data: bytes


def as_pdf(server: Server, invoice_id: str) -> Output:
    """Draw an invoice. A draft is drawn too, to be looked through, and says on every page that it is one.

    Raises:
        ServiceError: `not_found`.
    """
    from licensing_server.billing.rendering import pdf  # noqa: PLC0415 - half a second that only this needs

    name, sheet = _lay_out(server, invoice_id)
    return Output(name=f"{name}.pdf", media_type="application/pdf", data=pdf.draw(sheet))


def as_html(server: Server, invoice_id: str) -> Output:
    """Write an invoice as a page that prints as its PDF does; a draft as there.

    Raises:
        ServiceError: `not_found`.
    """
    name, sheet = _lay_out(server, invoice_id)
    return Output(name=f"{name}.html", media_type="text/html", data=html.write(sheet))


def as_csv(server: Server, invoice_id: str) -> Output:
    """Write a finalized invoice's lines in FOCUS columns.

    Raises:
        ServiceError: `not_found`; `state_conflict` for a draft: who imports one would take it for a cost.
    """
    with read(server) as connection:
        invoice = service.find(connection, invoice_id).to_document()
        if invoice["state"] == "draft":
            raise ServiceError("state_conflict", "a draft is no cost yet; finalize it first")
        units = _units(connection, invoice)
    data = focus.write(invoice, seller=server.issuer, units=units)
    return Output(name=f"{invoice['number']}.csv", media_type="text/csv", data=data)


def _lay_out(server: Server, invoice_id: str) -> tuple[str, Sheet]:
    invoice = service.show(server, invoice_id)
    sheet = lay_out(invoice, seller=server.issuer, times=terminal.local_times(invoice))
    return invoice["number"] or f"draft-{invoice['id']}", sheet


def _units(connection: Connection, invoice: Document) -> focus.Units:
    """What each charge counts, by the versions of the plans that the lines name; these never change."""
    found = {}
    for plan, version in sorted({(line["plan"], line["version"]) for line in invoice["lines"]}):
        for charge in catalog_store.read_version(connection, plan, version)["charges"]:
            found[plan, version, charge["id"]] = _unit(charge)
    return found


def _unit(charge: Document) -> str:
    match charge:
        case {"type": "usage", "meter": {"unit": str(unit)}}:
            return unit
        case {"type": "recurring", "per": "device"}:
            return "Devices"
        case {"type": "recurring"}:
            return "Licenses"
        case _:
            return "Units"
