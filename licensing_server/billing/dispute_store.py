"""Disputed lines and concessions, in the database."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from licensing_server.billing.store import invoice_lines, invoices, key_from_row
from licensing_server.database import metadata, pieces, total
from meterkit.accounts import Account, Concession, Dispute
from meterkit.lines import Key

_KEY = ("license", "start_at", "end_at", "charge", "plan", "version", "kind")


def _key_columns() -> list[sa.Column[Any]]:
    numbers = ("start_at", "end_at", "version")
    return [sa.Column(name, sa.BigInteger if name in numbers else sa.Text, nullable=False) for name in _KEY]


concessions = sa.Table(
    "concessions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), nullable=False, index=True),
    *_key_columns(),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("since_run", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
disputes = sa.Table(
    "disputes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("customer", sa.Text, sa.ForeignKey("customers.id"), nullable=False, index=True),
    sa.Column("invoice", sa.Text, sa.ForeignKey("invoices.id"), nullable=False),
    sa.Column("line", sa.Integer, nullable=False),
    *_key_columns(),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),  # of the line, with its tax: not collected meanwhile
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("since_run", sa.BigInteger, nullable=False),
    sa.Column("until_run", sa.BigInteger),
    sa.Column("outcome", sa.Text),  # stands | excluded | conceded
    sa.Column("created_at", sa.BigInteger, nullable=False),
)


def key_to_row(key: Key) -> dict[str, Any]:
    """Write a key's columns."""
    values = (key.license_id, key.start_at, key.end_at, key.charge, key.plan_id, key.version, key.kind)
    return dict(zip(_KEY, values, strict=True))


def key_of(row: Mapping[str, Any]) -> Key:
    """Read a key's columns."""
    names = ("license_id", "start_at", "end_at", "charge", "plan_id", "version", "kind")
    return Key(**{name: row[column] for name, column in zip(names, _KEY, strict=True)})


def read_decided(connection: sa.Connection, asked: Collection[str]) -> dict[str, Account]:
    """What was conceded to some customers, and what they dispute, in any currency."""
    let_off, disputed = concessions.c, disputes.c
    found: dict[str, Account] = {}
    for some in pieces(asked):
        given = sa.select(concessions).where(let_off.customer.in_(some)).order_by(let_off.since_run, let_off.id)
        for row in connection.execute(given):
            own = found.setdefault(row.customer, Account())
            made = Concession(key=key_from_row(row), amount_minor=row.amount_minor, since_run=row.since_run)
            found[row.customer] = replace(own, concessions=(*own.concessions, made))
        held = sa.select(disputes).where(disputed.customer.in_(some)).order_by(disputed.since_run, disputed.id)
        for row in connection.execute(held):
            own = found.setdefault(row.customer, Account())
            dispute = Dispute(key=key_from_row(row), since_run=row.since_run, until_run=row.until_run)
            found[row.customer] = replace(own, disputes=(*own.disputes, dispute))
    return found


def find_line(connection: sa.Connection, invoice_id: str, place: int) -> Any:
    """A line of a finalized document, or None."""
    table = invoice_lines.c
    chosen = sa.select(invoice_lines).where(table.invoice == invoice_id, table.place == place)
    return connection.execute(chosen).one_or_none()


def _same(table: sa.Table, key: Key, *, any_kind: bool = False) -> sa.ColumnElement[bool]:
    row = key_to_row(key)
    return sa.and_(*(table.c[name] == value for name, value in row.items() if not (any_kind and name == "kind")))


def billed_on(connection: sa.Connection, key: Key) -> int:
    """What stands billed on a charge and period, what was conceded already taken off."""
    joined = sa.select(total(invoice_lines.c.amount_minor)).join(
        invoices, invoices.c.id == invoice_lines.c.invoice
    )
    computed = sa.and_(_same(invoice_lines, key), invoices.c.state != "void")
    given = sa.select(total(concessions.c.amount_minor)).where(_same(concessions, key, any_kind=True))
    billed: int = connection.execute(joined.where(computed)).scalar() or 0
    return billed - (connection.execute(given).scalar() or 0)


def is_conceded(connection: sa.Connection, key: Key) -> bool:
    """Tell whether anything was let off on a charge and period."""
    chosen = sa.select(concessions.c.id).where(_same(concessions, key, any_kind=True))
    return connection.execute(chosen.limit(1)).first() is not None


def has_concession(connection: sa.Connection, license_id: str, from_at: int, until: int) -> bool:
    """Tell whether anything was let off on a period of a license that starts between two instants."""
    start_at = concessions.c.start_at
    within = sa.and_(concessions.c.license == license_id, start_at >= from_at, start_at < until)
    return connection.execute(sa.select(concessions.c.id).where(within).limit(1)).first() is not None


def is_excluded(connection: sa.Connection, key: Key) -> bool:
    """Tell whether a dispute about a charge and period ended by an exclusion of its records."""
    ended = sa.and_(_same(disputes, key, any_kind=True), disputes.c.outcome == "excluded")
    return connection.execute(sa.select(disputes.c.id).where(ended).limit(1)).first() is not None


def insert_concession(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a concession."""
    connection.execute(sa.insert(concessions), [row])


def insert_dispute(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Store a dispute."""
    connection.execute(sa.insert(disputes), [row])


def find_dispute(connection: sa.Connection, dispute_id: str) -> Any:
    """A dispute, or None."""
    return connection.execute(sa.select(disputes).where(disputes.c.id == dispute_id)).one_or_none()


def open_dispute(connection: sa.Connection, key: Key) -> str | None:
    """The dispute about a key that has not ended, if there is one."""
    chosen = sa.select(disputes.c.id).where(_same(disputes, key), disputes.c.outcome.is_(None))
    return connection.execute(chosen).scalar()


def who_disputes(connection: sa.Connection, asked: Iterable[str], run_number: int) -> set[str]:
    """Those of some customers who dispute anything, as a billing run knows it."""
    table = disputes.c
    open_then = sa.or_(table.until_run.is_(None), table.until_run > run_number)
    chosen = sa.select(table.customer).where(table.since_run <= run_number, open_then)
    return set(connection.execute(chosen.distinct()).scalars()).intersection(asked)


def end_dispute(connection: sa.Connection, dispute_id: str, *, outcome: str, until_run: int) -> None:
    """Note how a dispute ended, and the first billing run that bills its key again."""
    this = sa.update(disputes).where(disputes.c.id == dispute_id)
    connection.execute(this.values(outcome=outcome, until_run=until_run))


def withheld(connection: sa.Connection, invoice_id: str) -> int:
    """How much of an invoice's lines, with their taxes, is disputed, and not collected meanwhile."""
    table = disputes.c
    chosen = sa.select(total(table.amount_minor)).where(table.invoice == invoice_id, table.outcome.is_(None))
    return connection.execute(chosen).scalar() or 0


def list_disputes(connection: sa.Connection, customer: str) -> list[dict[str, Any]]:
    """A customer's disputes, oldest first."""
    return _rows(connection, disputes, customer)


def list_concessions(connection: sa.Connection, customer: str) -> list[dict[str, Any]]:
    """What was conceded to a customer, oldest first."""
    return _rows(connection, concessions, customer)


def _rows(connection: sa.Connection, table: sa.Table, customer: str) -> list[dict[str, Any]]:
    chosen = sa.select(table).where(table.c.customer == customer).order_by(table.c.created_at, table.c.id)
    return [dict(row._mapping) for row in connection.execute(chosen)]  # noqa: SLF001  SQLAlchemy's public name
