"""The tables of a ledger: creating and migrating them. The only home of `sqlite_utils`.

It is imported only when a ledger is new or older than this SDK, never on the way to an answer.
"""

from __future__ import annotations

from sqlite_utils import Database

from device_sdk.ledger_store import APPLICATION_ID, Connection
from device_sdk.ledger_transaction import SCHEMA_VERSION


def migrate(connection: Connection) -> None:
    """Bring a ledger to this SDK's schema, inside the caller's own write transaction."""
    database = Database(connection, execute_plugins=False)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, step in enumerate(_STEPS, start=1):
        if number > version:
            step(database)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _first_light(database: Database) -> None:
    """Records, the marks of live cells, the leases of processes, and what is known of time."""
    database.table("records").create(
        {
            "seq": int,
            "kind": str,
            "hash": str,
            "body": bytes,
            "model": str,
            "unit": str,
            "units": int,
            "unsettled": int,
        },
        pk="seq",
        not_null={"kind", "hash", "body", "units", "unsettled"},
        strict=True,
    )
    database.table("records").create_index(["model", "unit", "seq", "units", "unsettled"])
    database.table("records").create_index(["kind", "seq"])
    database.table("cells").create(
        {
            "cell": str,
            "file": str,
            "slot": int,
            "token": str,
            "model": str,
            "unit": str,
            "digest": str,
            "flags": str,
            "provisional": int,
            "boot": str,
            "mark": int,
        },
        pk="cell",
        not_null={"file", "slot", "token", "model", "unit", "digest", "flags", "provisional", "boot", "mark"},
        strict=True,
    )
    database.table("leases").create(
        {"file": str, "model": str, "unit": str, "units": int, "boot": str},
        pk=("file", "model", "unit"),
        not_null={"units", "boot"},
        strict=True,
    )
    database.table("state").create({"name": str, "value": str}, pk="name", not_null={"value"}, strict=True)


def _pruning(database: Database) -> None:
    """Receipts at which the chain may be cut, once they are old enough."""
    database.table("receipts").create(
        {"seq": int, "text": str, "taken_s": int}, pk="seq", not_null={"text", "taken_s"}, strict=True
    )


_STEPS = (_first_light, _pruning)
