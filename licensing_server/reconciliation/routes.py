"""Reconciliation over HTTP."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from licensing_server.auth import allowed
from licensing_server.bodies import ServerDep
from licensing_server.pages import Document
from licensing_server.parameters import PageDep
from licensing_server.reconciliation import service
from meterkit import limits

router = APIRouter(prefix="/v1")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which statement is asked for: of a period, by name or by instants (half-open); and whose."""

    period: str | None = None
    from_at: Annotated[int | None, Query(alias="from", ge=0, le=limits.TIME_MAX_S)] = None
    to_at: Annotated[int | None, Query(alias="to", ge=0, le=limits.TIME_MAX_S)] = None
    customer: str | None = None
    license: str | None = None


@router.get("/reconciliation", dependencies=[allowed("reconciliation:read")])
def show(server: ServerDep, page: PageDep, chosen: Annotated[Chosen, Depends()]) -> Document:
    """State what was granted, reported and is still out, and whether it adds up."""
    asked = service.Asked(
        period=chosen.period,
        from_at=chosen.from_at,
        to_at=chosen.to_at,
        customer=chosen.customer,
        license_id=chosen.license,
    )
    return service.page(server, asked, page)
