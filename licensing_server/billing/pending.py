"""What waits because a line of its key is disputed (BILLING §5): shown with runs, and with disputes.

It is worked out anew each time, on a connection on which nothing is kept.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from licensing_server.billing import computing, dispute_store, run_store
from licensing_server.billing.run_store import RUN_SCOPE, StoredRun
from licensing_server.customers import store as customer_store
from licensing_server.database import Connection, next_number, write
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import money
from meterkit.attribution import Run
from meterkit.lines import Key, Line

_SHOWN = (
    *("license", "charge", "plan", "version", "kind", "service_start_at", "service_end_at"),
    *("description", "quantity", "quantity_before", "amount_minor"),
)


class _Undo(Exception):  # noqa: N818  no error: it ends a transaction whose changes are not kept
    pass


def _undo() -> NoReturn:
    raise _Undo


@contextmanager
def undone(server: Server) -> Iterator[Connection]:
    """A write transaction that is undone when the caller has seen what it wanted to."""
    try:
        with write(server) as connection:
            yield connection
            _undo()
    except _Undo:
        return


@contextmanager
def next_run(server: Server, customer: str | None = None) -> Iterator[tuple[Connection, Run]]:
    """The run that would come next, of all that is known now, on a connection on which nothing is kept."""
    scope = customer or RUN_SCOPE
    with undone(server) as connection:
        now = server.clock()
        made = StoredRun(
            number=next_number(connection, "billing_run"),
            cut_off=max(now, run_store.newest_cut_off(connection, scope) or 0) + 1,
            acceptance_max=run_store.newest_acceptance(connection),
            scope=scope,
            state="open",
            created_at=now,
        )
        run_store.insert_run(connection, made)
        yield connection, made.limits


def of_run(server: Server, run: StoredRun) -> list[Document]:
    """What waits at a run, as it knew it."""
    with undone(server) as connection:
        return read(connection, run.limits, run_store.customers_in(connection, run.scope))


def read(connection: Connection, run: Run, asked: Iterable[str]) -> list[Document]:
    """What waits at a run of some customers."""
    return [
        to_document(customer, line) for customer, lines in _lines(connection, run, asked).items() for line in lines
    ]


def of_disputes(server: Server, customer: str) -> dict[Key, Line]:
    """What waits of a customer now, by key."""
    with next_run(server, customer) as (connection, run):
        return {line.key: line for line in _lines(connection, run, [customer]).get(customer, ())}


def _lines(connection: Connection, run: Run, asked: Iterable[str]) -> dict[str, list[Line]]:
    """What waits at a run, by customer; only those are looked at who dispute something."""
    disputing = dispute_store.who_disputes(connection, asked, run.number)
    found: dict[str, list[Line]] = {}
    for portion in run_store.portions(connection, sorted(disputing)):
        for each in computing.read_all(connection, customer_store.find_all(connection, portion), run):
            found[each.id] = each.pending()
    return found


def to_document(customer: str, line: Line) -> Document:
    """Show to people what waits: the units and the amount by which its line would differ."""
    claims = line.to_claims()
    shown = {"amount": money.to_text(line.amount_minor, line.currency), "currency": line.currency}
    return {"customer": customer, **{name: claims[name] for name in _SHOWN}, **shown}
