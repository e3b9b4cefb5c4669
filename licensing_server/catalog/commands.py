"""`meterkit-server product`, `model` and `plan`."""

import hashlib
from pathlib import Path
from typing import IO, Any

import click

from licensing_server import shell
from licensing_server.catalog import schemas, service

_READ_BYTES = 1024 * 1024

product = shell.noun("product", "Products: what a device is activated for.")
model = shell.noun("model", "Models of a product, and how their use is counted.")
plan = shell.noun("plan", "Plans: what a customer pays for.")
groups: list[click.Command] = [product, model, plan]


@product.command("create")
@click.argument("name")
@shell.pass_shell
def create_product(sh: shell.Shell, name: str) -> None:
    """Name a product."""
    asked = schemas.NewProduct.read({"name": name})
    sh.show(service.create_product(sh.server(), name=asked.name))


@product.command("list")
@shell.paged
@shell.pass_shell
def list_products(sh: shell.Shell, cursor: str | None, limit: int) -> None:
    """List products."""
    sh.show_list(service.page_products(sh.server(), shell.to_page(cursor, limit)), ("name", "created_at"))


def digest_file(path: Path) -> str:
    """Hash a model's exact bytes, showing progress on a terminal."""
    hashed, size = hashlib.sha256(), path.stat().st_size
    with (
        path.open("rb") as file,
        click.progressbar(length=size, label=path.name, **shell.progress()) as bar,
    ):
        while part := file.read(_READ_BYTES):
            hashed.update(part)
            bar.update(len(part))
    return hashed.hexdigest()


_FILES = click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file that is this model; it is hashed here, and stays here.",
)
_DIGESTS = click.option("--sha256", "digests", multiple=True, help="Its SHA-256, instead of the file.")


@model.command("create")
@click.argument("product_name", metavar="PRODUCT")
@click.argument("name")
@_FILES
@_DIGESTS
@click.option("--unit", type=click.Choice(["call", "item"]), default="call")
@click.option("--axis-input", default=None, help="For items: the input along which they are counted.")
@click.option("--axis-dim", type=int, default=0, help="For items: that input's dimension.")
@shell.pass_shell
def create_model(sh: shell.Shell, /, product_name: str, name: str, **given: Any) -> None:
    """Add a model to a product, known by its files or their digests."""
    axis = {"input": given["axis_input"], "dim": given["axis_dim"]} if given["axis_input"] else None
    sha256 = [*given["digests"], *map(digest_file, given["files"])]
    asked = schemas.NewModel.read({"name": name, "unit": given["unit"], "axis": axis, "sha256": sha256})
    sh.show(service.create_model(sh.server(), product=product_name, **asked.model_dump()))


@model.command("add-digest")
@click.argument("product_name", metavar="PRODUCT")
@click.argument("name")
@_FILES
@_DIGESTS
@shell.pass_shell
def add_digest(
    sh: shell.Shell, product_name: str, name: str, files: tuple[Path, ...], digests: tuple[str, ...]
) -> None:
    """Let more files count as a model."""
    server = sh.server()
    shown = service.show_model(server, product_name, name)
    for digest in (*digests, *map(digest_file, files)):
        asked = schemas.NewDigest.read({"sha256": digest})
        shown = service.add_digest(server, product=product_name, name=name, sha256=asked.sha256)
    sh.show(shown)


@model.command("list")
@click.argument("product_name", metavar="PRODUCT")
@shell.paged
@shell.pass_shell
def list_models(sh: shell.Shell, product_name: str, cursor: str | None, limit: int) -> None:
    """List a product's models."""
    found = service.page_models(sh.server(), product_name, shell.to_page(cursor, limit))
    sh.show_list(found, ("name", "unit", "axis", "sha256", "created_at"))


@model.command("show")
@click.argument("product_name", metavar="PRODUCT")
@click.argument("name")
@shell.pass_shell
def show_model(sh: shell.Shell, product_name: str, name: str) -> None:
    """Show a model."""
    sh.show(service.show_model(sh.server(), product_name, name))


@plan.command("create")
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@shell.pass_shell
def create_plan(sh: shell.Shell, name: str, file: IO[bytes]) -> None:
    """Name a plan; its first version is the JSON in FILE."""
    asked = schemas.NewPlan.read({"name": name, "body": shell.read_json_file(file)})
    sh.show(service.create_plan(sh.server(), name=asked.name, body=asked.body))


@plan.command("add-version")
@click.argument("plan_id")
@click.argument("file", type=click.File("rb"))
@shell.pass_shell
def add_version(sh: shell.Shell, plan_id: str, file: IO[bytes]) -> None:
    """Store a plan's next version, the JSON in FILE."""
    asked = schemas.NewPlanVersion.read({"body": shell.read_json_file(file)})
    sh.show(service.add_version(sh.server(), plan_id=plan_id, body=asked.body))


@plan.command("list")
@shell.paged
@shell.pass_shell
def list_plans(sh: shell.Shell, cursor: str | None, limit: int) -> None:
    """List plans."""
    found = service.page_plans(sh.server(), shell.to_page(cursor, limit))
    sh.show_list(found, ("id", "name", "version", "created_at"))


@plan.command("show")
@click.argument("plan_id")
@click.option("--version", type=click.IntRange(1, 1_000_000), default=None)
@shell.pass_shell
def show_plan(sh: shell.Shell, plan_id: str, version: int | None) -> None:
    """Show a plan with its newest version, or the one named."""
    sh.show(service.show_plan(sh.server(), plan_id, version))
