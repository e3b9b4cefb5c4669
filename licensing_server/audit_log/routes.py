"""The audit log over HTTP."""

from fastapi import APIRouter

from licensing_server.audit_log import service
from licensing_server.audit_log.schemas import Filter
from licensing_server.auth import allowed
from licensing_server.bodies import ServerDep
from licensing_server.pages import Document
from licensing_server.parameters import PageDep

router = APIRouter(prefix="/v1/audit-log")
_READ = [allowed("audit-log:read")]


@router.get("", dependencies=_READ)
def list_all(
    server: ServerDep, page: PageDep, subject: Filter = None, who: Filter = None, action: Filter = None
) -> Document:
    """List what was decided."""
    return service.page(server, page, subject=subject, who=who, action=action)


@router.get("/verification", dependencies=_READ)
def verify(server: ServerDep, noted: Filter = None) -> Document:
    """Say whether the log holds, and which entry is the first that does not."""
    return service.verify(server, noted=service.read_link(noted) if noted else None)
