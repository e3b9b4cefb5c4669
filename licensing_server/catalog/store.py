"""Products, models, plans and plan versions in the database."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import listed, metadata
from licensing_server.prepared import Prepared
from meterkit.canonical import from_bytes, to_bytes
from meterkit.licenses import Axis, Meter
from meterkit.limits import BODY_BYTES_MAX

products = sa.Table(
    "products",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
models = sa.Table(
    "models",
    metadata,
    sa.Column("product", sa.Text, sa.ForeignKey("products.name"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("axis", sa.JSON(none_as_null=True)),
    sa.Column("sha256", sa.JSON, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
_MODELS = Prepared(sa.select(models).where(models.c.product == sa.bindparam("of"), listed(models.c.name, "names")))
plans = sa.Table(
    "plans",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
plan_versions = sa.Table(
    "plan_versions",
    metadata,
    sa.Column("plan", sa.Text, sa.ForeignKey("plans.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of a product: how its use is counted, and the digests of the files that are it."""

    product: str
    name: str
    unit: str
    axis: Axis | None
    sha256: tuple[str, ...]
    created_at: int

    @property
    def meter(self) -> Meter:
        """The (model, unit) that its use counts on."""
        return self.name, self.unit

    def to_document(self) -> pages.Document:
        """Show the model to people."""
        return to_row(self)


def from_row(row: Any) -> Model:
    """Read a model's row."""
    return Model(
        product=row.product,
        name=row.name,
        unit=row.unit,
        axis=Axis(**row.axis) if row.axis else None,
        sha256=tuple(row.sha256),
        created_at=row.created_at,
    )


def to_row(model: Model) -> dict[str, Any]:
    """Write a model's row."""
    return {
        "product": model.product,
        "name": model.name,
        "unit": model.unit,
        "axis": {"input": model.axis.input, "dim": model.axis.dim} if model.axis else None,
        "sha256": list(model.sha256),
        "created_at": model.created_at,
    }


def insert_product(connection: sa.Connection, name: str, now: int) -> None:
    """Store a new product."""
    connection.execute(sa.insert(products), [{"name": name, "created_at": now}])


def has_product(connection: sa.Connection, name: str) -> bool:
    """Tell whether there is such a product."""
    return connection.execute(sa.select(products.c.name).where(products.c.name == name)).first() is not None


def page_products(connection: sa.Connection, asked: pages.Page) -> pages.Document:
    """List products."""
    table = products.c
    return pages.fetch(
        connection,
        sa.select(products),
        asked,
        at=table.created_at,
        key=table.name,
        to_document=lambda row: {"name": row.name, "created_at": row.created_at},
    )


def insert_model(connection: sa.Connection, model: Model) -> None:
    """Store a new model."""
    connection.execute(sa.insert(models), [to_row(model)])


def find_model(connection: sa.Connection, product: str, name: str) -> Model | None:
    """Find a product's model."""
    chosen = sa.select(models).where(models.c.product == product, models.c.name == name)
    row = connection.execute(chosen).one_or_none()
    return from_row(row) if row else None


def read_models(connection: sa.Connection, product: str, names: list[str]) -> dict[str, Model]:
    """Read several models of a product, by name."""
    return {row.name: from_row(row) for row in _MODELS.all(connection, of=product, names=names)}


def models_with(connection: sa.Connection, product: str, sha256: str) -> list[str]:
    """The names of a product's models that are known by a digest."""
    chosen = sa.select(models.c.name, models.c.sha256).where(models.c.product == product).order_by(models.c.name)
    return [row.name for row in connection.execute(chosen) if sha256 in row.sha256]


def update_digests(connection: sa.Connection, product: str, name: str, sha256: list[str]) -> None:
    """Replace the digests by which a model's files are known."""
    this = sa.and_(models.c.product == product, models.c.name == name)
    connection.execute(sa.update(models).where(this).values(sha256=sha256))


def page_models(connection: sa.Connection, product: str, asked: pages.Page) -> pages.Document:
    """List a product's models."""
    return pages.fetch(
        connection,
        sa.select(models).where(models.c.product == product),
        asked,
        at=models.c.created_at,
        key=models.c.name,
        to_document=lambda row: from_row(row).to_document(),
    )


def insert_plan(connection: sa.Connection, *, plan_id: str, name: str, now: int) -> None:
    """Store a new plan, which has no version yet."""
    connection.execute(sa.insert(plans), [{"id": plan_id, "name": name, "created_at": now}])


def insert_version(connection: sa.Connection, *, plan_id: str, version: int, body: Any, now: int) -> None:
    """Store a version of a plan; it is never changed."""
    text = to_bytes(body).decode()
    row = {"plan": plan_id, "version": version, "body": text, "created_at": now}
    connection.execute(sa.insert(plan_versions), [row])


def find_plan(connection: sa.Connection, plan_id: str) -> Any:
    """Find a plan's row."""
    return connection.execute(sa.select(plans).where(plans.c.id == plan_id)).one_or_none()


def has_plan_named(connection: sa.Connection, name: str) -> bool:
    """Tell whether a plan has this name already."""
    return connection.execute(sa.select(plans.c.id).where(plans.c.name == name)).first() is not None


def newest_version(connection: sa.Connection, plan_id: str) -> int:
    """The number of a plan's newest version, 0 if there is none."""
    newest = sa.select(sa.func.max(plan_versions.c.version)).where(plan_versions.c.plan == plan_id)
    return connection.execute(newest).scalar() or 0


def read_version(connection: sa.Connection, plan_id: str, version: int) -> Any:
    """The JSON of one version of a plan, or None."""
    table = plan_versions.c
    chosen = sa.select(table.body).where(table.plan == plan_id, table.version == version)
    body = connection.execute(chosen).scalar_one_or_none()
    return None if body is None else from_bytes(body.encode(), bytes_max=BODY_BYTES_MAX * 2)


def page_plans(connection: sa.Connection, asked: pages.Page) -> pages.Document:
    """List plans, each with the number of its newest version."""
    newest = (
        sa.select(sa.func.max(plan_versions.c.version))
        .where(plan_versions.c.plan == plans.c.id)
        .scalar_subquery()
        .label("version")
    )
    return pages.fetch(
        connection,
        sa.select(plans, newest),
        asked,
        at=plans.c.created_at,
        key=plans.c.id,
        to_document=lambda row: {
            "id": row.id,
            "name": row.name,
            "version": row.version,
            "created_at": row.created_at,
        },
    )
