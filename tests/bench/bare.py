"""The bare database: the rows that an ingest left, stored again in tables like theirs, with nothing asked."""

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from fleet import Fleet

from licensing_server.settings import DATABASE_FILE

TABLES = ("batches", "usage_records")
CONNECTIONS = 8
GROUP = 16  # batches a transaction, on SQLite

Batch = list[tuple[str, list[tuple[Any, ...]]]]


def store_again(fleet: Fleet, work: Path) -> float:
    """Seconds to store every batch's rows again."""
    if fleet.cluster is not None:
        with psycopg.connect(fleet.cluster.dsn(fleet.database)) as connection:
            return _copy_all(fleet.cluster.dsn(fleet.database), connection)
    with sqlite3.connect(fleet.server.directory / DATABASE_FILE) as connection:
        return _insert_all(connection, work / "bare.sqlite3")


# -- PostgreSQL


def _copy_all(dsn: str, connection: psycopg.Connection) -> float:
    numbers = [row[0] for row in connection.execute("SELECT acceptance FROM batches ORDER BY acceptance")]
    batches = [[(name, _rows_as_copied(connection, name, number)) for name in TABLES] for number in numbers]
    for name in TABLES:
        connection.execute(f"CREATE TABLE bare_{name} (LIKE {name} INCLUDING ALL)")
    connection.commit()
    return _in_threads(lambda mine: _copy_some(dsn, mine), [batches[n::CONNECTIONS] for n in range(CONNECTIONS)])


def _rows_as_copied(connection: psycopg.Connection, table: str, acceptance: int) -> bytes:
    chosen = f"COPY (SELECT * FROM {table} WHERE acceptance = {acceptance}) TO STDOUT"  # noqa: S608
    with connection.cursor().copy(chosen) as copied:
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


def _insert_all(connection: sqlite3.Connection, path: Path) -> float:
    bare = sqlite3.connect(path, isolation_level=None)
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    bare.execute(f"PRAGMA journal_mode = {mode}")
    bare.execute("PRAGMA synchronous = FULL")
    for (made,) in connection.execute(
        "SELECT sql FROM sqlite_schema WHERE tbl_name IN ('batches', 'usage_records') AND sql IS NOT NULL"
        " ORDER BY type DESC"
    ):
        bare.execute(made)
    numbers = [row[0] for row in connection.execute("SELECT acceptance FROM batches ORDER BY acceptance")]
    groups = [_rows_of(connection, numbers[at : at + GROUP]) for at in range(0, len(numbers), GROUP)]
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


def _rows_of(connection: sqlite3.Connection, numbers: list[int]) -> Batch:
    marks = ",".join("?" * len(numbers))
    chosen = {name: f"SELECT * FROM {name} WHERE acceptance IN ({marks})" for name in TABLES}  # noqa: S608
    return [(name, connection.execute(chosen[name], numbers).fetchall()) for name in TABLES]
