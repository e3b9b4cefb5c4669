"""Products, models and plans over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path

from licensing_server.auth import allowed
from licensing_server.bodies import ServerDep, json_body
from licensing_server.catalog import schemas, service
from licensing_server.pages import Document
from licensing_server.parameters import OnceDep, PageDep

router = APIRouter(prefix="/v1")
_READ = [allowed("catalog:read")]
_WRITE = [allowed("catalog:write")]

NewProduct = Annotated[schemas.NewProduct, json_body(schemas.NewProduct)]
NewModel = Annotated[schemas.NewModel, json_body(schemas.NewModel)]
NewDigest = Annotated[schemas.NewDigest, json_body(schemas.NewDigest)]
NewPlan = Annotated[schemas.NewPlan, json_body(schemas.NewPlan)]
Version = Annotated[int, Path(ge=1, le=1_000_000)]
NewPlanVersion = Annotated[schemas.NewPlanVersion, json_body(schemas.NewPlanVersion)]


@router.post("/products", status_code=201, dependencies=_WRITE)
def create_product(server: ServerDep, body: NewProduct, once: OnceDep) -> Document:
    """Name a product."""
    return service.create_product(server, name=body.name, once=once)


@router.get("/products", dependencies=_READ)
def list_products(server: ServerDep, page: PageDep) -> Document:
    """List products."""
    return service.page_products(server, page)


@router.post("/products/{product}/models", status_code=201, dependencies=_WRITE)
def create_model(server: ServerDep, product: str, body: NewModel, once: OnceDep) -> Document:
    """Add a model to a product."""
    return service.create_model(server, product=product, **body.model_dump(), once=once)


@router.get("/products/{product}/models", dependencies=_READ)
def list_models(server: ServerDep, product: str, page: PageDep) -> Document:
    """List a product's models."""
    return service.page_models(server, product, page)


@router.get("/products/{product}/models/{model}", dependencies=_READ)
def show_model(server: ServerDep, product: str, model: str) -> Document:
    """Show a model."""
    return service.show_model(server, product, model)


@router.post("/products/{product}/models/{model}/digests", status_code=201, dependencies=_WRITE)
def add_digest(server: ServerDep, product: str, model: str, body: NewDigest, once: OnceDep) -> Document:
    """Let one more file count as a model."""
    return service.add_digest(server, product=product, name=model, sha256=body.sha256, once=once)


@router.post("/plans", status_code=201, dependencies=_WRITE)
def create_plan(server: ServerDep, body: NewPlan, once: OnceDep) -> Document:
    """Name a plan and store its first version."""
    return service.create_plan(server, name=body.name, body=body.body, once=once)


@router.get("/plans", dependencies=_READ)
def list_plans(server: ServerDep, page: PageDep) -> Document:
    """List plans."""
    return service.page_plans(server, page)


@router.get("/plans/{plan_id}", dependencies=_READ)
def show_plan(server: ServerDep, plan_id: str) -> Document:
    """Show a plan with its newest version."""
    return service.show_plan(server, plan_id)


@router.post("/plans/{plan_id}/versions", status_code=201, dependencies=_WRITE)
def add_version(server: ServerDep, plan_id: str, body: NewPlanVersion, once: OnceDep) -> Document:
    """Store a plan's next version."""
    return service.add_version(server, plan_id=plan_id, body=body.body, once=once)


@router.get("/plans/{plan_id}/versions/{version}", dependencies=_READ)
def show_version(server: ServerDep, plan_id: str, version: Version) -> Document:
    """Show one version of a plan."""
    return service.show_plan(server, plan_id, version)
