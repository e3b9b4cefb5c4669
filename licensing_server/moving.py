"""Moving a server's data from its embedded database into PostgreSQL, whole or not at all, with proof.

The embedded database stays locked meanwhile: servers on it answer 503, and devices come again. Afterwards its
tables are there under other names, so that nobody goes on writing to what is the truth no more.
"""

import hashlib
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from licensing_server import migrating
from licensing_server.database import HasEngine, metadata, write
from licensing_server.pages import Document
from meterkit.errors import ServiceError

_ROWS_AT_ONCE = 1_000
_DIGEST_VALUES = 2**256

Told = Callable[[str], None]


def move(source: HasEngine, target: HasEngine, *, tell: Told = lambda _: None) -> Document:
    """Copy every table into an empty database, read both again, and give what was compared.

    It commits to the new database first: killed in between, the old one is still the truth, and the new one is
    to be emptied before the next attempt. `tell` is called with each table's name.

    Raises:
        ServiceError: `already_initialized` if the new database is not empty; `database_unavailable` if one cannot
            be used, the old one has another schema version, or what arrived is not what was sent. The old
            database is as it was then.
    """
    migrating.check(source)
    if not migrating.is_empty(target.engine):
        raise ServiceError("already_initialized", "the database is not empty")
    migrating.upgrade(target.engine)
    with write(source) as reading:
        with write(target) as writing:
            for table in reversed(metadata.sorted_tables):  # a schema may begin with rows of its own
                writing.execute(sa.delete(table))
            items = [_move_table(reading, writing, table, tell) for table in metadata.sorted_tables]
        for table in metadata.sorted_tables:
            reading.exec_driver_sql(f'ALTER TABLE "{table.name}" RENAME TO "{migrating.MOVED}{table.name}"')
    return {"items": items, "rows": sum(int(item["rows"]) for item in items)}


def _move_table(reading: sa.Connection, writing: sa.Connection, table: sa.Table, tell: Told) -> Document:
    tell(table.name)
    for rows in _read(reading, table):
        writing.execute(sa.insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])
    sent, arrived = _digest(_read(reading, table)), _digest(_read(writing, table))
    if sent != arrived:
        raise ServiceError("database_unavailable", f"{table.name} did not arrive as it was sent")
    return {"table": table.name, "rows": sent[0], "digest": f"{sent[1]:064x}"}


def _read(connection: sa.Connection, table: sa.Table) -> Iterator[list[tuple[object, ...]]]:
    streamed = sa.select(table).execution_options(yield_per=_ROWS_AT_ONCE)
    for rows in connection.execute(streamed).partitions():
        yield [tuple(row) for row in rows]


def _digest(parts: Iterator[list[tuple[object, ...]]]) -> tuple[int, int]:
    """How many rows there are, and the sum of their hashes: databases give them in orders of their own."""
    count = total = 0
    for rows in parts:
        count += len(rows)
        total += sum(int.from_bytes(hashlib.sha256(repr(row).encode()).digest()) for row in rows)
    return count, total % _DIGEST_VALUES
