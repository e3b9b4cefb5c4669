"""What a vendor sells: products, the models in them, and the plans by which they are paid."""

from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.catalog import store
from licensing_server.database import Connection, read
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import limits, plans
from meterkit.errors import InputError, ServiceError
from meterkit.licenses import Axis, model_shape


def create_product(server: Server, *, name: str, once: Once = NO_KEY) -> Document:
    """Name a product; devices are activated for exactly one."""

    def make(connection: Connection) -> Document:
        if store.has_product(connection, name):
            raise ServiceError("already_exists", name)
        now = server.clock()
        store.insert_product(connection, name, now)
        document = {"name": name, "created_at": now}
        _log(server, connection, once, ("product.create", name), document)
        return document

    return once.run(server, make)


def _log(server: Server, connection: Connection, once: Once, what: tuple[str, str], body: Document) -> None:
    action, subject = what
    audit_log.append(server, connection, who=once.who, action=action, subject=subject, body=body)


def page_products(server: Server, asked: Page) -> Document:
    """List products."""
    with read(server) as connection:
        return store.page_products(connection, asked)


def create_model(
    server: Server,
    *,
    product: str,
    name: str,
    unit: str,
    axis: dict[str, Any] | None,
    sha256: list[str],
    once: Once = NO_KEY,
) -> Document:
    """Add a model to a product: by which files it is known, and how its use is counted.

    It takes digests, never the model itself. The unit and the axis are fixed from then on: another way of
    counting is another model.
    """
    model_shape({"name": name, "unit": unit, "axis": axis, "limit": None, "sha256": sha256}, "model")

    def make(connection: Connection) -> Document:
        _check_product(connection, product)
        if store.find_model(connection, product, name) is not None:
            raise ServiceError("already_exists", name)
        model = store.Model(
            product=product,
            name=name,
            unit=unit,
            axis=Axis(**axis) if axis else None,
            sha256=tuple(sha256),
            created_at=server.clock(),
        )
        store.insert_model(connection, model)
        _log(server, connection, once, ("model.create", f"{product}/{name}"), model.to_document())
        return model.to_document()

    return once.run(server, make)


def add_digest(server: Server, *, product: str, name: str, sha256: str, once: Once = NO_KEY) -> Document:
    """Let one more file count as a model, as after a retraining; tokens issued from now on name it too.

    Raises:
        ServiceError: `not_found`; `state_conflict` if another model is known by it: a license for both could not
            say how it is metered.
        InputError: `too_many`.
    """

    def make(connection: Connection) -> Document:
        model = find_model(connection, product, name)
        if sha256 in model.sha256:
            return model.to_document()
        others = store.models_with(connection, product, sha256)
        if others:
            raise ServiceError("state_conflict", f"these bytes are the model {others[0]}")
        digests = [*model.sha256, sha256]
        if len(digests) > limits.MODEL_DIGESTS_MAX:
            raise InputError("too_many", f"at most {limits.MODEL_DIGESTS_MAX} digests a model")
        store.update_digests(connection, product, name, digests)
        _log(server, connection, once, ("model.add_digest", f"{product}/{name}"), {"sha256": sha256})
        return find_model(connection, product, name).to_document()

    return once.run(server, make)


def find_model(connection: Connection, product: str, name: str) -> store.Model:
    """Find a product's model, or raise `not_found`."""
    model = store.find_model(connection, product, name)
    if model is None:
        raise ServiceError("not_found", "model")
    return model


def show_model(server: Server, product: str, name: str) -> Document:
    """Show one model."""
    with read(server) as connection:
        return find_model(connection, product, name).to_document()


def page_models(server: Server, product: str, asked: Page) -> Document:
    """List a product's models."""
    with read(server) as connection:
        _check_product(connection, product)
        return store.page_models(connection, product, asked)


def _check_product(connection: Connection, product: str) -> None:
    if not store.has_product(connection, product):
        raise ServiceError("not_found", "product")


def create_plan(server: Server, *, name: str, body: Any, once: Once = NO_KEY) -> Document:
    """Name a plan and store its first version."""
    plans.read(body)

    def make(connection: Connection) -> Document:
        if store.has_plan_named(connection, name):
            raise ServiceError("already_exists", name)
        plan_id = server.make_id("plan")
        store.insert_plan(connection, plan_id=plan_id, name=name, now=server.clock())
        store.insert_version(connection, plan_id=plan_id, version=1, body=body, now=server.clock())
        document = _plan_document(connection, plan_id, 1)
        _log(server, connection, once, ("plan.create", plan_id), document)
        return document

    return once.run(server, make)


def add_version(server: Server, *, plan_id: str, body: Any, once: Once = NO_KEY) -> Document:
    """Store a plan's next version. Licenses keep the version they hold."""
    plans.read(body)

    def make(connection: Connection) -> Document:
        if store.find_plan(connection, plan_id) is None:
            raise ServiceError("not_found", "plan")
        version = store.newest_version(connection, plan_id) + 1
        store.insert_version(connection, plan_id=plan_id, version=version, body=body, now=server.clock())
        document = _plan_document(connection, plan_id, version)
        _log(server, connection, once, ("plan.add_version", plan_id), document)
        return document

    return once.run(server, make)


def _plan_document(connection: Connection, plan_id: str, version: int) -> Document:
    plan = store.find_plan(connection, plan_id)
    body = store.read_version(connection, plan_id, version)
    if plan is None or body is None:
        raise ServiceError("not_found", "plan version")
    return {"id": plan.id, "name": plan.name, "created_at": plan.created_at, "version": version, "body": body}


def show_plan(server: Server, plan_id: str, version: int | None = None) -> Document:
    """Show a plan with one of its versions, the newest if none is named."""
    with read(server) as connection:
        return _plan_document(connection, plan_id, version or store.newest_version(connection, plan_id))


def page_plans(server: Server, asked: Page) -> Document:
    """List plans."""
    with read(server) as connection:
        return store.page_plans(connection, asked)
