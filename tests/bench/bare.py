"""The bare database: the rows that an ingest left, stored again in tables like theirs, with nothing asked.

Of each batch that is itself and its records, and what stands for its answer: the ledger's new head, the receipt,
the token and its limits. What an ingest changes in rows that are there already, the bare database leaves out.
"""

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from fleet import Fleet

from licensing_server.database import _prepare_sqlite
from licensing_server.settings import DATABASE_FILE

CONNECTIONS = 8
GROUP = 16  # batches a transaction, on SQLite
RECORDS = ("batches", "usage_records")
_ROWS = {
    "batches": "SELECT * FROM batches WHERE acceptance IN ",
    "usage_records": "SELECT * FROM usage_records WHERE acceptance IN ",
    "heads": "SELECT * FROM heads WHERE acceptance IN ",
    "receipts": "SELECT receipts.* FROM receipts JOIN batches ON receipts.device = batches.device AND"
    " receipts.epoch = batches.epoch AND receipts.head = batches.head AND seq = to_seq WHERE acceptance IN ",
    "tokens": "SELECT tokens.* FROM tokens JOIN batches ON tokens.device = batches.device AND"
    " tokens.epoch = batches.epoch AND anchor_head = head AND anchor_seq = to_seq WHERE acceptance IN ",
    "token_limits": "SELECT token_limits.* FROM token_limits JOIN tokens USING (jti) JOIN batches ON"
    " tokens.device = batches.device AND tokens.epoch = batches.epoch AND anchor_head = head AND"
    " anchor_seq = to_seq WHERE acceptance IN ",
}
ALL = tuple(_ROWS)

Batch = list[tuple[str, list[tuple[Any, ...]]]]


def store_again(fleet: Fleet, work: Path, tables: Sequence[str] = ALL) -> float:
    """Seconds to store every batch's rows of these tables again."""
    if fleet.cluster is not None:
        with psycopg.connect(fleet.cluster.dsn(fleet.database)) as connection:
            return _copy_all(fleet.cluster.dsn(fleet.database), connection, tables)
    with sqlite3.connect(fleet.server.directory / DATABASE_FILE) as connection:
        return _insert_all(connection, work / f"bare-{len(tables)}.sqlite3", tables)


# -- PostgreSQL


def _copy_all(dsn: str, connection: psycopg.Connection, tables: Sequence[str]) -> float:
    numbers = [row[0] for row in connection.execute("SELECT acceptance FROM batches ORDER BY acceptance")]
    batches = [[(name, _rows_as_copied(connection, name, number)) for name in tables] for number in numbers]
    for name in tables:
        connection.execute(f"DROP TABLE IF EXISTS bare_{name}")
        connection.execute(f"CREATE TABLE bare_{name} (LIKE {name} INCLUDING ALL)")
    connection.commit()
    return _in_threads(lambda mine: _copy_some(dsn, mine), [batches[n::CONNECTIONS] for n in range(CONNECTIONS)])


def _rows_as_copied(connection: psycopg.Connection, table: str, acceptance: int) -> bytes:
    with connection.cursor().copy(f"COPY ({_ROWS[table]} ({acceptance})) TO STDOUT") as copied:
        return b"".join(bytes(part) for part in copied)


def _copy_some(dsn: str, batches: list[list[tuple[str, bytes]]]) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for batch in batches:
            with connection.transaction(), connection.cursor() as cursor:
                for name, data in batch:
                    with cursor.copy(f"COPY bare_{name} FROM STDIN") as copied:
                        copied.write(data)


def _in_threads(work: Any, parts: list[Any]) -> float:
    threads = [threading.Thread(target=work, args=[part]) for part in parts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


# -- SQLite


def _insert_all(connection: sqlite3.Connection, path: Path, tables: Sequence[str]) -> float:
    bare = sqlite3.connect(path, isolation_level=None)
    _prepare_sqlite(bare, None)
    bare.execute("PRAGMA foreign_keys = OFF")  # it has no devices
    for kind in ("table", "index"):
        made = "SELECT sql, tbl_name FROM sqlite_schema WHERE type = ? AND sql IS NOT NULL"
        for statement, name in connection.execute(made, [kind]):
            if name in tables:
                bare.execute(statement)
    numbers = [row[0] for row in connection.execute("SELECT acceptance FROM batches ORDER BY acceptance")]
    groups = [_rows_of(connection, numbers[at : at + GROUP], tables) for at in range(0, len(numbers), GROUP)]
    started = time.perf_counter()
    for group in groups:
        bare.execute("BEGIN IMMEDIATE")
        for name, rows in group:
            marks = ",".join("?" * len(rows[0]))
            bare.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)  # noqa: S608
        bare.execute("COMMIT")
    seconds = time.perf_counter() - started
    bare.close()
    return seconds


def _rows_of(connection: sqlite3.Connection, numbers: list[int], tables: Sequence[str]) -> Batch:
    marks = ",".join("?" * len(numbers))
    return [(name, connection.execute(f"{_ROWS[name]} ({marks})", numbers).fetchall()) for name in tables]
