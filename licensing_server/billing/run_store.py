"""Billing runs in the database: their limits, and whom they have billed."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server import pages
from licensing_server.customers.store import customers
from licensing_server.database import insert_all, last_number, metadata, pieces
from licensing_server.devices.store import devices
from licensing_server.licenses.store import licenses
from licensing_server.usage.store import ACCEPTANCE
from meterkit.attribution import Run

RUN_SCOPE = "all"  # the scope of a run that bills every customer
_DEVICES_AT_ONCE = 10_000
_CUSTOMERS_AT_ONCE = 100

billing_runs = sa.Table(
    "billing_runs",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("cut_off", sa.BigInteger, nullable=False),
    sa.Column("acceptance_max", sa.BigInteger, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),  # a customer, or all of them
    sa.Column("state", sa.Text, nullable=False),  # open | done
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("scope", "cut_off", name="billing_runs_once"),
)
billing_run_customers = sa.Table(
    "billing_run_customers",
    metadata,
    sa.Column("run", sa.BigInteger, sa.ForeignKey("billing_runs.number"), primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), primary_key=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A billing run: its number, its limits, whom it bills, and whether it has come to its end."""

    number: int
    cut_off: int
    acceptance_max: int
    scope: str
    state: str
    created_at: int

    @property
    def limits(self) -> Run:
        """The run as the core knows it."""
        return Run(number=self.number, cut_off=self.cut_off, acceptance_max=self.acceptance_max)

    def to_document(self) -> pages.Document:
        """Show the run to people."""
        return {
            **self.limits.to_claims(),
            "customer": None if self.scope == RUN_SCOPE else self.scope,
            "state": self.state,
            "created_at": self.created_at,
        }


def run_from_row(row: Any) -> StoredRun:
    """Read a run's row."""
    return StoredRun(**{column.name: getattr(row, column.name) for column in billing_runs.columns})


def insert_run(connection: sa.Connection, run: StoredRun) -> None:
    """Store a new run with its limits; they never change."""
    row = {column.name: getattr(run, column.name) for column in billing_runs.columns}
    connection.execute(sa.insert(billing_runs), [row])


def find_run(connection: sa.Connection, number: int) -> StoredRun | None:
    """Find a run."""
    row = connection.execute(sa.select(billing_runs).where(billing_runs.c.number == number)).one_or_none()
    return run_from_row(row) if row else None


def find_same_run(connection: sa.Connection, scope: str, cut_off: int) -> StoredRun | None:
    """Find the run that was asked for with this scope and cut-off."""
    table = billing_runs.c
    chosen = sa.select(billing_runs).where(table.scope == scope, table.cut_off == cut_off)
    row = connection.execute(chosen).one_or_none()
    return run_from_row(row) if row else None


def _covering(scope: str) -> sa.ColumnElement[bool]:
    """Which runs bill a customer, or, for the scope of all, any customer."""
    return sa.true() if scope == RUN_SCOPE else billing_runs.c.scope.in_([RUN_SCOPE, scope])


def newest_cut_off(connection: sa.Connection, scope: str) -> int | None:
    """The latest cut-off of the runs that billed anyone in a scope."""
    return connection.execute(sa.select(sa.func.max(billing_runs.c.cut_off)).where(_covering(scope))).scalar()


def runs_of(connection: sa.Connection, customer: str, upto: int) -> list[Run]:
    """The runs that covered a customer, up to one of them, in order."""
    return runs_of_all(connection, [customer], upto)[customer]


def runs_of_all(connection: sa.Connection, asked: Iterable[str], upto: int) -> dict[str, list[Run]]:
    """The runs that covered each of several customers, up to one of them, in order."""
    found: dict[str, list[Run]] = {customer: [] for customer in asked}
    table = billing_runs.c
    for some in pieces(found):
        chosen = sa.select(billing_runs).where(table.scope.in_([RUN_SCOPE, *some]), table.number <= upto)
        for run in map(run_from_row, connection.execute(chosen.order_by(table.number))):
            for customer in some if run.scope == RUN_SCOPE else [run.scope]:
                found[customer].append(run.limits)
    return found


def open_runs(connection: sa.Connection) -> list[int]:
    """The runs that have not come to their end, oldest first."""
    chosen = sa.select(billing_runs.c.number).where(billing_runs.c.state == "open")
    return list(connection.execute(chosen.order_by(billing_runs.c.number)).scalars())


def finish_run(connection: sa.Connection, number: int) -> None:
    """Note that a run has billed everyone in its scope."""
    connection.execute(sa.update(billing_runs).where(billing_runs.c.number == number).values(state="done"))


def newest_acceptance(connection: sa.Connection) -> int:
    """The number of the last accepted batch: they are given in commit order, so none below it is in flight."""
    return last_number(connection, ACCEPTANCE)


def customers_in(connection: sa.Connection, scope: str) -> list[str]:
    """The customers of a scope that have a license."""
    licensed = sa.select(customers.c.id).where(customers.c.id.in_(sa.select(licenses.c.customer)))
    if scope != RUN_SCOPE:
        licensed = licensed.where(customers.c.id == scope)
    return list(connection.execute(licensed.order_by(customers.c.id)).scalars())


def portions(connection: sa.Connection, asked: Iterable[str]) -> Iterator[list[str]]:
    """Cut customers into as many as are billed at once: by their devices, which bounds what is read."""
    counted = sa.select(licenses.c.customer, sa.func.count()).join_from(devices, licenses)
    count = {row[0]: int(row[1]) for row in connection.execute(counted.group_by(licenses.c.customer))}
    portion: list[str] = []
    room = _DEVICES_AT_ONCE
    for customer in asked:
        own = count.get(customer, 0)
        if portion and (own > room or len(portion) == _CUSTOMERS_AT_ONCE):
            yield portion
            portion, room = [], _DEVICES_AT_ONCE
        portion.append(customer)
        room -= own
    if portion:
        yield portion


def mark_billed(connection: sa.Connection, number: int, billed: Iterable[str]) -> None:
    """Note that a run has billed some customers."""
    insert_all(connection, billing_run_customers, [{"run": number, "customer": each} for each in billed])


def billed_since(connection: sa.Connection, asked: Collection[str], number: int) -> set[str]:
    """Those of some customers that a run has billed, or a later one."""
    table = billing_run_customers.c
    chosen = sa.select(table.customer).where(table.customer.in_(asked), table.run >= number)
    return set(connection.execute(chosen).scalars())


def page_runs(connection: sa.Connection, asked: pages.Page) -> pages.Document:
    """List runs."""
    return pages.fetch(
        connection,
        sa.select(billing_runs),
        asked,
        at=billing_runs.c.number,
        key=billing_runs.c.scope,
        to_document=lambda row: run_from_row(row).to_document(),
    )
