"""The database: one engine, one way to read, one way to write. All that is SQLite's own is in this file.

A write is one transaction that holds the database's write lock from its first statement (`BEGIN IMMEDIATE`),
so what it has read stays true until it commits. A read sees one consistent state.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event, exc

from meterkit.errors import ServiceError

BUSY_TIMEOUT_MS = 10_000
WAL_SINCE = (3, 51, 3)  # earlier versions have a race that can lose a commit in WAL mode
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # an integer key that SQLite takes as its rowid

_READ = "meterkit_read"

Connection = sa.Connection  # what services hand on to stores, without knowing SQL
metadata = sa.MetaData()


class HasEngine(Protocol):
    """Whatever holds the engine: the server object, or a test's stand-in."""

    @property
    def engine(self) -> sa.Engine:
        """The database's engine."""


def make_engine(url: str) -> sa.Engine:
    """Make the engine for a database URL. It opens no connection yet, and never shows parameters in errors."""
    engine = sa.create_engine(url, hide_parameters=True, pool_size=8, max_overflow=40)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's `begin` event decides, not the driver
    journal = "WAL" if sqlite3.sqlite_version_info >= WAL_SINCE else "TRUNCATE"
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        f"journal_mode={journal}",
        "synchronous=FULL",
        "foreign_keys=ON",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        "mmap_size=0",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get(_READ, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@contextmanager
def write(server: HasEngine) -> Iterator[sa.Connection]:
    """Open the one write transaction of a use case: committed at the end, rolled back on any error.

    Raises:
        ServiceError: `database_unavailable` when it cannot be begun or committed. After a failed commit the
            outcome is unknown: callers ask again, and every use case that matters answers a repeat alike.
    """
    with _faults_named(server.engine), server.engine.begin() as connection:
        yield connection


@contextmanager
def read(server: HasEngine) -> Iterator[sa.Connection]:
    """Open a read transaction: one consistent state, nothing locked for writers longer than it lasts."""
    with _faults_named(server.engine), server.engine.connect() as plain:
        connection = plain.execution_options(**{_READ: True})
        with connection.begin():
            yield connection


@contextmanager
def _faults_named(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    except exc.TimeoutError:
        raise ServiceError("database_unavailable", "all connections are in use") from None
    except exc.IntegrityError:
        raise ServiceError("state_conflict", "the database's own rules forbid it") from None
    except exc.DatabaseError as fault:
        engine.dispose()  # after an I/O error a connection's state is not to be trusted
        raise ServiceError("database_unavailable", type(fault.orig).__name__) from None


def next_number(connection: sa.Connection, name: str) -> int:
    """Count on by one, in the caller's own transaction: numbers come in commit order and leave no gap."""
    counted = (
        sa.update(counters)
        .where(counters.c.name == name)
        .values(value=counters.c.value + 1)
        .returning(counters.c.value)
    )
    value = connection.execute(counted).scalar_one_or_none()
    if value is None:
        connection.execute(sa.insert(counters).values(name=name, value=1))
        return 1
    return int(value)


counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


@contextmanager
def migration(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open the transaction in which the schema is changed: alone, and with references checked at its end."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        if driver is None:
            raise ServiceError("database_unavailable")
        # Rebuilding a table would drop what refers to it; this can only be switched outside a transaction.
        driver.execute("PRAGMA foreign_keys=OFF").close()
        try:
            with connection.begin():
                yield connection
                if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                    raise ServiceError("database_unavailable", "a reference would be broken")
        finally:
            driver.execute("PRAGMA foreign_keys=ON").close()
