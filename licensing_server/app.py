"""The HTTP application: every noun's routes on one server object."""

from functools import partial

from fastapi import APIRouter, FastAPI

from licensing_server import migrating, problems
from licensing_server.accounts import routes as accounts
from licensing_server.api_keys import routes as api_keys
from licensing_server.audit_log import routes as audit_log
from licensing_server.billing import routes as billing
from licensing_server.bodies import ServerDep
from licensing_server.catalog import routes as catalog
from licensing_server.customers import routes as customers
from licensing_server.devices import routes as devices
from licensing_server.directory import PURPOSES
from licensing_server.grouping import Grouping
from licensing_server.licenses import routes as licenses
from licensing_server.pages import Document
from licensing_server.reconciliation import routes as reconciliation
from licensing_server.server import Server
from licensing_server.usage import routes as usage
from licensing_server.usage import service as usage_service
from licensing_server.webhook_endpoints import routes as webhook_endpoints

health = APIRouter()


@health.get("/healthz")
def show_health() -> Document:
    """Say that the process is up, and nothing more."""
    return {"status": "ok"}


@health.get("/readyz")
def show_readiness(server: ServerDep) -> Document:
    """Say that requests can be answered: the database is reachable and current, and every key can sign now."""
    migrating.check(server)
    for purpose in PURPOSES:
        server.check_can_sign(purpose, server.clock())
    return {"status": "ok"}


ROUTERS = (  # a request is compared with one route after the other: what devices ask for all day comes first
    usage.router,
    devices.router,
    health,
    api_keys.router,
    audit_log.router,
    webhook_endpoints.router,
    catalog.router,
    customers.router,
    licenses.router,
    reconciliation.router,
    accounts.router,
    billing.router,
)


def create_app(server: Server) -> FastAPI:
    """Make the application. It keeps no state of its own: several may serve one server's directory."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.server = server
    app.state.exchanges = Grouping(
        partial(usage_service.open_together, server), partial(usage_service.take_opened, server)
    )
    for router in ROUTERS:  # their own routes: to include a router is to analyze all of them a second time
        app.router.routes.extend(router.routes)
    problems.install(app)
    return app
