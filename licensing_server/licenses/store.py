"""Licenses, what they grant per model, their timeline of plan versions, and activation codes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.database import add_rows, listed, metadata
from licensing_server.prepared import Prepared
from meterkit.ledger import Total
from meterkit.licenses import Meter, Policy

licenses = sa.Table(
    "licenses",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), nullable=False, index=True),
    sa.Column("product", sa.Text, sa.ForeignKey("products.name"), nullable=False),
    sa.Column("plan", sa.Text, sa.ForeignKey("plans.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("starts_at", sa.BigInteger, nullable=False),
    sa.Column("ends_at", sa.BigInteger),
    sa.Column("anchor_at", sa.BigInteger, nullable=False),
    sa.Column("devices_max", sa.Integer, nullable=False),
    sa.Column("token_life_s", sa.Integer, nullable=False),
    sa.Column("grace_s", sa.Integer, nullable=False),
    sa.Column("policy", sa.JSON, nullable=False),
    sa.Column("fork_policy", sa.Text, nullable=False),
    sa.Column("features", sa.JSON, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
license_models = sa.Table(
    "license_models",
    metadata,
    sa.Column("license", sa.Text, sa.ForeignKey("licenses.id"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("token_units_max", sa.BigInteger),
    sa.Column("pool_units", sa.BigInteger),
    sa.Column("pool_per", sa.Text, nullable=False),
)
license_versions = sa.Table(
    "license_versions",
    metadata,
    sa.Column("license", sa.Text, sa.ForeignKey("licenses.id"), primary_key=True),
    sa.Column("starts_at", sa.BigInteger, primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("since_run", sa.BigInteger, nullable=False, server_default="0"),  # the first run that knew it
)
# A projection: what was accepted for a license, in all (period_start 0) and per period where a pool is.
license_units = sa.Table(
    "license_units",
    metadata,
    sa.Column("license", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("period_start", sa.BigInteger, primary_key=True),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("unsettled", sa.BigInteger, nullable=False),
)
activation_codes = sa.Table(
    "activation_codes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("license", sa.Text, sa.ForeignKey("licenses.id"), nullable=False, index=True),
    sa.Column("secret_encrypted", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
)


_ALL = Prepared(sa.select(licenses).where(listed(licenses.c.id, "licenses")))
_ALL_GRANTS = Prepared(
    sa.select(license_models).where(listed(license_models.c.license, "licenses")).order_by(license_models.c.model)
)
_ALL_UNITS = Prepared(sa.select(license_units).where(listed(license_units.c.license, "licenses")))
_UNITS = ("license", "model", "unit", "period_start", "units", "unsettled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a license grants for one meter: the most in one token, and a pool that its devices share."""

    model: str
    unit: str
    token_units_max: int | None
    pool_units: int | None
    pool_per: str  # license | period

    @property
    def meter(self) -> Meter:
        """The (model, unit) it is about."""
        return self.model, self.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class License:
    """The grant to a customer. `state` is what people made of it; `state_at` also asks the clock."""

    id: str
    customer: str
    product: str
    plan: str
    state: str
    starts_at: int
    ends_at: int | None
    anchor_at: int
    devices_max: int
    token_life_s: int
    grace_s: int
    policy: Policy
    fork_policy: str
    features: tuple[str, ...]
    created_at: int
    grants: tuple[Grant, ...] = ()

    def state_at(self, now: int) -> str:
        """`active`, `suspended` or `ended`, at an instant; a license ends at its end without anyone's doing."""
        return "ended" if self.ends_at is not None and now >= self.ends_at else self.state


_OWN = tuple(column.name for column in licenses.columns)


def from_row(row: Any, grants: tuple[Grant, ...] = ()) -> License:
    """Read a row, and what it grants."""
    values = {name: getattr(row, name) for name in _OWN}
    values["policy"] = Policy.from_claims(row.policy)
    values["features"] = tuple(row.features)
    return License(**values, grants=grants)


def to_row(license_: License) -> dict[str, Any]:
    """Write a row."""
    values = {name: getattr(license_, name) for name in _OWN}
    return {**values, "policy": license_.policy.to_claims(), "features": list(license_.features)}


def grant_from_row(row: Any) -> Grant:
    """Read what a license grants for one meter."""
    return Grant(
        model=row.model,
        unit=row.unit,
        token_units_max=row.token_units_max,
        pool_units=row.pool_units,
        pool_per=row.pool_per,
    )


def grant_to_row(license_id: str, grant: Grant) -> dict[str, Any]:
    """Write what a license grants for one meter."""
    return {
        "license": license_id,
        "model": grant.model,
        "unit": grant.unit,
        "token_units_max": grant.token_units_max,
        "pool_units": grant.pool_units,
        "pool_per": grant.pool_per,
    }


def insert(connection: sa.Connection, license_: License, version: int) -> None:
    """Store a new license with what it grants, and the plan version that it holds from its start on."""
    connection.execute(sa.insert(licenses), [to_row(license_)])
    connection.execute(sa.insert(license_models), [grant_to_row(license_.id, grant) for grant in license_.grants])
    insert_version(
        connection, license_.id, starts_at=license_.starts_at, plan=license_.plan, version=version, since_run=0
    )


def insert_version(
    connection: sa.Connection, license_id: str, *, starts_at: int, plan: str, version: int, since_run: int
) -> None:
    """Let a version of a plan count for a license from an instant on, known from a billing run on."""
    row = {
        "license": license_id,
        "starts_at": starts_at,
        "plan": plan,
        "version": version,
        "since_run": since_run,
    }
    connection.execute(sa.insert(license_versions), [row])


def find(connection: sa.Connection, license_id: str, *, lock: bool = False) -> License | None:
    """Find a license. With `lock`, no other transaction changes it, or its pool, before this one ends."""
    chosen = sa.select(licenses).where(licenses.c.id == license_id)
    row = connection.execute(chosen.with_for_update() if lock else chosen).one_or_none()
    if row is None:
        return None
    granted = sa.select(license_models).where(license_models.c.license == license_id)
    rows = connection.execute(granted.order_by(license_models.c.model))
    return from_row(row, tuple(map(grant_from_row, rows)))


def find_all(connection: sa.Connection, license_ids: Collection[str]) -> dict[str, License]:
    """Find several licenses. They are not locked: a write transaction holds the database's own lock."""
    rows = _ALL.all(connection, licenses=license_ids)
    grants: dict[str, list[Grant]] = {}
    for each in _ALL_GRANTS.all(connection, licenses=license_ids):
        grants.setdefault(each.license, []).append(grant_from_row(each))
    return {row.id: from_row(row, tuple(grants.get(row.id, ()))) for row in rows}


def versions(connection: sa.Connection, license_id: str) -> list[pages.Document]:
    """A license's timeline: which version of which plan counts from which instant on."""
    table = license_versions.c
    chosen = sa.select(license_versions).where(table.license == license_id).order_by(table.starts_at)
    return [
        {"starts_at": row.starts_at, "plan": row.plan, "version": row.version}
        for row in connection.execute(chosen)
    ]


def update_state(connection: sa.Connection, license_id: str, state: str, ends_at: int | None) -> None:
    """Change what state a license is in, and when it ends."""
    this = licenses.c.id == license_id
    connection.execute(sa.update(licenses).where(this).values(state=state, ends_at=ends_at))


def page(connection: sa.Connection, asked: pages.Page, customer: str | None) -> pages.Document:
    """List licenses, of one customer if named; what they grant is shown one by one."""
    chosen = sa.select(licenses)
    if customer is not None:
        chosen = chosen.where(licenses.c.customer == customer)
    return pages.fetch(
        connection,
        chosen,
        asked,
        at=licenses.c.created_at,
        key=licenses.c.id,
        to_document=lambda row: to_row(from_row(row)),
    )


def insert_code(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store an activation code; its secret comes sealed."""
    connection.execute(sa.insert(activation_codes), [row])


def find_code(connection: sa.Connection, code_id: str) -> Any:
    """Find an activation code's row."""
    chosen = sa.select(activation_codes).where(activation_codes.c.id == code_id)
    return connection.execute(chosen).one_or_none()


def page_codes(connection: sa.Connection, license_id: str, asked: pages.Page) -> pages.Document:
    """List a license's activation codes, never their secrets."""
    table = activation_codes.c
    return pages.fetch(
        connection,
        sa.select(table.id, table.license, table.created_at, table.expires_at).where(table.license == license_id),
        asked,
        at=table.created_at,
        key=table.id,
        to_document=lambda row: {
            "id": row.id,
            "license": row.license,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
        },
    )


def add_units(connection: sa.Connection, license_id: str, period_start: int, added: dict[Meter, Total]) -> None:
    """Add what was newly accepted for a license to what is known of one period of it (0: in all)."""
    table = license_units.c
    for (model, unit), total in sorted(added.items()):
        this = sa.and_(
            table.license == license_id,
            table.model == model,
            table.unit == unit,
            table.period_start == period_start,
        )
        raised = {
            "units": table.units + total.units,
            "unsettled": table.unsettled + total.unsettled,
        }
        if connection.execute(sa.update(license_units).where(this).values(raised)).rowcount == 0:
            row = {
                "license": license_id,
                "model": model,
                "unit": unit,
                "period_start": period_start,
                "units": total.units,
                "unsettled": total.unsettled,
            }
            connection.execute(sa.insert(license_units), [row])


def read_units(connection: sa.Connection, license_ids: Collection[str]) -> dict[tuple[str, Meter, int], Total]:
    """What was accepted for several licenses, by license, meter and period (0: in all)."""
    rows = _ALL_UNITS.all(connection, licenses=license_ids)
    return {
        (row.license, (row.model, row.unit), row.period_start): Total(units=row.units, unsettled=row.unsettled)
        for row in rows
    }


def put_units(connection: sa.Connection, added: Mapping[tuple[str, Meter, int], Total]) -> None:
    """Add what was newly accepted of licenses to what is known of them."""
    rows = [
        dict(zip(_UNITS, (license_id, *meter, period_start, *total), strict=True))
        for (license_id, meter, period_start), total in sorted(added.items())
    ]
    add_rows(connection, license_units, rows, {"units": "+", "unsettled": "+"})


def accepted_units(connection: sa.Connection, license_id: str, meter: Meter, period_start: int) -> int:
    """What was accepted on one meter, unsettled units included: in all (0), or of one period."""
    table = license_units.c
    chosen = sa.select(table.units + table.unsettled).where(
        table.license == license_id,
        table.model == meter[0],
        table.unit == meter[1],
        table.period_start == period_start,
    )
    return connection.execute(chosen).scalar_one_or_none() or 0
