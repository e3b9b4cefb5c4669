"""`meterkit-server license` and `code`."""

from typing import Any

import click

from licensing_server import shell
from licensing_server.licenses import schemas, service
from meterkit import limits

group = shell.noun("license", "Licenses: what is granted to a customer.")
code = shell.noun("code", "Activation codes: how a device gets its first token.")
groups: list[click.Command] = [group, code]

_MODEL_MEMBERS = {"token_units_max": int, "pool_units": int, "pool_per": str}
_ANSWERS = click.Choice(["deny", "flag"])


def granted_model(value: str) -> dict[str, Any]:
    """Read a model and its limits: NAME[,token_units_max=N][,pool_units=N][,pool_per=license|period]."""
    name, *members = value.split(",")
    found: dict[str, Any] = {"name": name}
    for member in members:
        key, _, text = member.partition("=")
        if key not in _MODEL_MEMBERS or key in found:
            raise click.BadParameter(f"unknown or repeated: {key}")
        try:
            found[key] = _MODEL_MEMBERS[key](text)
        except ValueError:
            raise click.BadParameter(f"{key}: not a whole number") from None
    return found


_MODEL = click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    type=granted_model,
    metavar="NAME[,token_units_max=N][,pool_units=N][,pool_per=license|period]",
    help="A model, and its limits; may be repeated.",
)


@group.command()
@click.option("--customer", required=True, help="Its id.")
@click.option("--plan", required=True, help="Its id.")
@click.option("--plan-version", type=int, default=None, help="By default the newest.")
@click.option("--product", required=True)
@_MODEL
@click.option("--devices-max", type=int, default=1)
@click.option("--token-life-s", type=int, default=limits.TOKEN_LIFE_S)
@click.option("--grace-s", type=int, default=limits.GRACE_S)
@click.option("--on-expiry", type=_ANSWERS, default="deny")
@click.option("--on-limit", type=_ANSWERS, default="deny")
@click.option("--on-clock", type=_ANSWERS, default="deny")
@click.option("--fork-policy", type=click.Choice(["flag", "hold", "suspend"]), default="flag")
@click.option("--feature", "features", multiple=True)
@click.option("--starts-at", type=shell.INSTANT, default=None)
@click.option("--ends-at", type=shell.INSTANT, default=None)
@click.option("--anchor-at", type=shell.INSTANT, default=None, help="Periods are counted from its local day.")
@shell.pass_shell
def grant(sh: shell.Shell, /, **given: Any) -> None:
    """Grant a license."""
    policy = {name: given.pop(f"on_{name}") for name in ("expiry", "limit", "clock")}
    lists = {name: list(given.pop(name)) for name in ("models", "features")}
    asked = schemas.NewLicense.read({**given, **lists, "policy": policy})
    sh.show(service.grant(sh.server(), asked.to_terms()))


@group.command("list")
@click.option("--customer", default=None, help="Of this customer only.")
@shell.paged
@shell.pass_shell
def list_all(sh: shell.Shell, customer: str | None, cursor: str | None, limit: int) -> None:
    """List licenses."""
    found = service.page(sh.server(), shell.to_page(cursor, limit), customer)
    sh.show_list(found, ("id", "customer", "product", "plan", "state", "starts_at", "ends_at"))


@group.command()
@click.argument("license_id")
@shell.pass_shell
def show(sh: shell.Shell, license_id: str) -> None:
    """Show a license, and what was accepted for it."""
    sh.show(service.show(sh.server(), license_id))


@group.command()
@click.argument("license_id")
@shell.pass_shell
def suspend(sh: shell.Shell, license_id: str) -> None:
    """Suspend a license: its devices get receipts only."""
    sh.show(service.change_state(sh.server(), license_id, "suspended"))


@group.command()
@click.argument("license_id")
@shell.pass_shell
def resume(sh: shell.Shell, license_id: str) -> None:
    """Let a suspended license go on."""
    sh.show(service.change_state(sh.server(), license_id, "active"))


@group.command()
@click.argument("license_id")
@shell.pass_shell
def end(sh: shell.Shell, license_id: str) -> None:
    """End a license, now and for good."""
    sh.show(service.change_state(sh.server(), license_id, "ended"))


@code.command("create")
@click.argument("license_id")
@click.option("--expires-at", type=shell.INSTANT, default=None)
@shell.pass_shell
def create_code(sh: shell.Shell, license_id: str, expires_at: int | None) -> None:
    """Make an activation code. It is shown this once."""
    sh.show(service.create_code(sh.server(), license_id, expires_at=expires_at))


@code.command("list")
@click.argument("license_id")
@shell.paged
@shell.pass_shell
def list_codes(sh: shell.Shell, license_id: str, cursor: str | None, limit: int) -> None:
    """List a license's activation codes, never their secrets."""
    found = service.page_codes(sh.server(), license_id, shell.to_page(cursor, limit))
    sh.show_list(found, ("id", "license", "created_at", "expires_at"))
