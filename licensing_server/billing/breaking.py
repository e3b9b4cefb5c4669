"""Breakage: what is left of a prepaid credit when nothing can be paid from it any more (BILLING §5).

It is booked by the run that finds a credit's validity and the 90 days after it over, in the transaction in which
that run comes to its end. What a document gives back to such a credit later, the next run books; nothing is booked
twice.
"""

from typing import Any

import sqlalchemy as sa

from licensing_server.accounts import journal
from licensing_server.accounts.journal import BREAKAGE, PREPAID, About
from licensing_server.accounts.store import credits as prepaid
from licensing_server.audit_log import service as audit_log
from licensing_server.billing.account_store import left_of
from licensing_server.billing.run_store import RUN_SCOPE, StoredRun
from licensing_server.database import Connection
from licensing_server.server import Server
from meterkit.accounts import CREDIT_USABLE_S


def book(server: Server, connection: Connection, run: StoredRun) -> None:
    """Book what is left of the credits that a run, and so every later one, can use no more."""
    at = server.clock()
    for row in connection.execute(_left(run)).all():
        about = About(at=at, kind=journal.BROKEN, subject=row.id, customer=row.customer, currency=row.currency)
        journal.post(connection, about, {PREPAID: row.left_minor, BREAKAGE: -row.left_minor})
        body = {"amount_minor": row.left_minor, "currency": row.currency, "run": run.number}
        audit_log.append(
            server, connection, who=audit_log.SERVER, action="credit.breakage", subject=row.id, body=body
        )


def _left(run: StoredRun) -> sa.Select[Any]:
    """The credits of a run's scope that are over, and have something left."""
    credit = prepaid.c
    left = left_of(credit)
    over = credit.expires_at <= run.cut_off - CREDIT_USABLE_S
    chosen = sa.select(credit.id, credit.customer, credit.currency, left.label("left_minor"))
    if run.scope != RUN_SCOPE:
        chosen = chosen.where(credit.customer == run.scope)
    return chosen.where(over, credit.since_run <= run.number, left > 0).order_by(credit.id)
