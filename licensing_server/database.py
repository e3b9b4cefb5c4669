"""The database: one engine, one way to read, one way to write. All that is SQLite's or PostgreSQL's own is here.

A write is one transaction that holds the database's write lock from its first statement (SQLite: `BEGIN
IMMEDIATE`; PostgreSQL: an advisory lock, which all processes on all machines share), so what it has read stays
true until it commits, and numbers come in commit order. A read sees one consistent state, and holds up no write.
"""

import functools
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, Self

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from licensing_server.prepared import Prepared, at_driver
from licensing_server.turns import BUSY_TIMEOUT_MS, taken_turn
from meterkit.errors import ServiceError

_CACHE_KIB = 4 * 1024  # of SQLite's pages: what a group writes, without going to the disk before it commits
_ROWS_AT_ONCE = 50  # in one of SQLite's statements: one by one takes a quarter longer, more at once no less
_NAMES_MAX = 500  # in one statement: no engine takes any number of them

WAL_SINCE = (3, 51, 3)  # earlier versions have a race that can lose a commit in WAL mode
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # an integer key that SQLite takes as its rowid

_READ = "meterkit_read"
_ASIDE = "meterkit_sums"
_SUMS_KIB = 128 * 1024  # of memory for sums over much, for each process of PostgreSQL's that takes part
_WRITE_LOCK = 0x6D65746572  # one number of PostgreSQL's 64-bit advisory locks
_CONNECT_TIMEOUT_S = 10
# What is acknowledged is durable, whatever the database's default is. The lock comes last, in a statement of its
# own: under READ COMMITTED, every statement after it sees what was committed before.
_POSTGRESQL_WRITE = f"""
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
    SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS};
    SELECT pg_advisory_xact_lock({_WRITE_LOCK})
"""

Connection = sa.Connection  # what services hand on to stores, without knowing SQL
metadata = sa.MetaData()


class HasEngine(Protocol):
    """Whatever holds the engine: the server object, or a test's stand-in."""

    @property
    def engine(self) -> sa.Engine:
        """The database's engine."""


def make_engine(url: str) -> sa.Engine:
    """Make the engine for a database URL. It opens no connection yet, and never shows parameters in errors.

    Raises:
        ServiceError: `database_unavailable` if the URL is none, or its driver is not installed.
    """
    asked = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "meterkit"}
    try:
        on_sqlite = sa.make_url(url).get_backend_name() == "sqlite"
        engine = sa.create_engine(
            url, hide_parameters=True, pool_size=8, max_overflow=40, connect_args={} if on_sqlite else asked
        )
    except exc.ArgumentError:
        raise ServiceError("database_unavailable", "the database's URL is none") from None
    except ModuleNotFoundError:
        raise ServiceError("database_unavailable", "install meterkit[postgresql]") from None
    if on_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite if on_sqlite else _begin_postgresql)
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
        f"cache_size=-{_CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get(_READ, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: sa.Connection) -> None:
    if connection.get_execution_options().get(_READ, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return
    connection.exec_driver_sql(_POSTGRESQL_WRITE)


@contextmanager
def write(server: HasEngine) -> Iterator[sa.Connection]:
    """Open the one write transaction of a use case: committed at the end, rolled back on any error.

    Raises:
        ServiceError: `database_unavailable` when it cannot be begun or committed. After a failed commit the
            outcome is unknown: callers ask again, and every use case that matters answers a repeat alike.
    """
    engine = server.engine
    with _faults_named(engine), engine.connect() as connection, taken_turn(engine), connection.begin():
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
        if engine.dialect.name == "sqlite":  # after an I/O error a connection's state is not to be trusted
            engine.dispose()
        raise ServiceError("database_unavailable", type(fault.orig).__name__) from None


def pieces(names: Iterable[Any]) -> Iterator[list[Any]]:
    """Cut names into as many as one statement may hold, in order."""
    ordered = sorted(names)
    return (ordered[at : at + _NAMES_MAX] for at in range(0, len(ordered), _NAMES_MAX))


def total(units: Any) -> sa.ColumnElement[int]:
    """Add up a column of whole numbers, as a whole number: on PostgreSQL a sum has another type.

    A sum beyond 64 bits fails, as `database_unavailable`: it is never a wrong number.
    """
    return sa.cast(sa.func.sum(units), sa.BigInteger)


def insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store many rows of the same columns, as fast as the database takes them: by COPY on PostgreSQL."""
    if not rows:
        return
    columns = [table.c[name] for name in rows[0]]
    values = [list(row.values()) for row in rows]
    for place in (at for at, column in enumerate(columns) if isinstance(column.type, sa.JSON)):
        for row in values:
            row[place] = json.dumps(row[place]) if row[place] != [] else "[]"  # nearly every record has no flags
    insert_values(connection, table, tuple(rows[0]), values)


def insert_values(
    connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Store many rows as `insert_all` does, of values in the order of the columns; JSON is given as its text."""
    if not rows:
        return
    names = ", ".join(map(connection.dialect.identifier_preparer.quote, columns))
    if connection.dialect.name == "sqlite":
        statement = f"INSERT INTO {table.name} ({names}) VALUES "  # noqa: S608 - names of this program's own
        _insert_rows(connection, statement, rows)
    else:
        _copy(connection, f"COPY {table.name} ({names}) FROM STDIN", rows)


def _insert_rows(connection: sa.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> None:
    """Many rows a statement, as far as they go, and the rest one by one."""
    width, whole = len(rows[0]), len(rows) - len(rows) % _ROWS_AT_ONCE
    if any(len(row) != width for row in rows):
        raise ValueError("rows of one statement have as many values each")
    marks = f"({', '.join('?' * width)})"
    many = statement + ", ".join([marks] * _ROWS_AT_ONCE)
    with at_driver(connection, statement + marks, rows) as cursor:
        for at in range(0, whole, _ROWS_AT_ONCE):
            cursor.execute(many, tuple(chain.from_iterable(rows[at : at + _ROWS_AT_ONCE])))
        cursor.executemany(statement + marks, rows[whole:])


def _copy(connection: sa.Connection, statement: str, values: Sequence[Sequence[Any]]) -> None:
    with at_driver(connection, statement) as cursor, cursor.copy(statement) as copying:
        for row in values:
            copying.write_row(row)


def add_to(
    connection: sa.Connection, table: sa.Table, sums: sa.Select[Any], how: Mapping[str, str], *, many: bool = False
) -> None:
    """Add sums to a table's rows: a new row where its key is none yet, else each column as `how` says: by adding
    (`+`), or the smaller (`<`) or larger (`>`) of both. `many` are sums over much of what there is.
    """
    if many and connection.dialect.name == "postgresql":
        key = [column.name for column in table.primary_key]
        sums = _set_aside(connection, sums).order_by(*map(sa.column, key))  # rows are entered faster in order
    made = _insert(connection.dialect.name, table)
    made = made.from_select([column.name for column in sums.selected_columns], sums)
    connection.execute(_on_conflict(made, table, how))


def add_rows(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], how: Mapping[str, str]
) -> None:
    """Add rows, each of whole columns, to a table's rows as `add_to` does; no two of them have the same key."""
    if rows:
        _adding_rows(connection.dialect.name, table, tuple(how.items())).each(connection, rows)


@functools.cache  # making it anew takes longer than executing it
def _adding_rows(dialect_name: str, table: sa.Table, how: tuple[tuple[str, str], ...]) -> Prepared:
    return Prepared(_on_conflict(_insert(dialect_name, table), table, dict(how)))


def _insert(dialect_name: str, table: sa.Table) -> Any:
    dialect: Any = sqlite if dialect_name == "sqlite" else postgresql
    return dialect.insert(table)


def _on_conflict(made: Any, table: sa.Table, how: Mapping[str, str]) -> sa.Insert:
    own, new = table.c, made.excluded
    changed = {
        name: own[name] + new[name]
        if sign == "+"
        else sa.case((new[name].op(sign)(own[name]), new[name]), else_=own[name])
        for name, sign in how.items()
    }
    statement: sa.Insert = made.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)
    return statement


def _set_aside(connection: sa.Connection, sums: sa.Select[Any]) -> sa.Select[Any]:
    """Work sums out into a table of this transaction's own: PostgreSQL does that on several cores, but only so.

    It takes far more groups for granted than there are, and would rather sort all rows than keep sums in memory;
    what it was just given it does not know of, and would look up the records of each of its few rows.
    """
    text = sums.compile(connection, compile_kwargs={"literal_binds": True})
    connection.exec_driver_sql(f"SET LOCAL work_mem = '{_SUMS_KIB}kB'; SET LOCAL enable_sort = off")
    connection.exec_driver_sql("SET LOCAL enable_nestloop = off")
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_ASIDE}")  # of an earlier sum in this transaction
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {_ASIDE} ON COMMIT DROP AS {text}")
    connection.exec_driver_sql("SET LOCAL work_mem TO DEFAULT; SET LOCAL enable_sort TO DEFAULT")
    connection.exec_driver_sql("SET LOCAL enable_nestloop TO DEFAULT")
    return sa.select(sa.table(_ASIDE, *(sa.column(column.name) for column in sums.selected_columns)))


class _Names(sa.TypeDecorator[Collection[str]]):
    """A list of names as one parameter: an array, or on SQLite the JSON of one."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        made: Any = sa.Text() if dialect.name == "sqlite" else postgresql.ARRAY(sa.Text)
        return dialect.type_descriptor(made)

    def process_bind_param(self, value: Collection[str] | None, dialect: sa.Dialect) -> Any:
        names = list(value or ())
        return json.dumps(names) if dialect.name == "sqlite" else names


class listed(FunctionElement[bool]):  # noqa: N801 - to be read as a condition
    """Whether a column is one of a list of names, which is given when the statement is executed.

    However long the list is, the statement is the same: it is made, compiled and prepared once.
    """

    inherit_cache = True
    type = sa.Boolean()

    def __init__(self, column: sa.ColumnElement[str], name: str) -> None:
        super().__init__(column, sa.bindparam(name, type_=_Names()))

    def self_group(self, against: Any = None) -> Self:  # noqa: ARG002
        """Stand among conditions as it is: what SQLAlchemy compares with true, no index of SQLite's serves."""
        return self


@compiles(listed, "sqlite")
def _listed_in_json(element: listed, compiler: Any, **options: Any) -> str:
    column, names = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({names}))"  # noqa: S608 - names of this program's own


@compiles(listed, "postgresql")
def _listed_in_array(element: listed, compiler: Any, **options: Any) -> str:
    column, names = (compiler.process(each, **options) for each in element.clauses)
    return f"{column} = ANY ({names})"


def next_numbers(connection: sa.Connection, name: str, count: int) -> range:
    """Count on by so many, as `next_number` does; gives the numbers."""
    last = next_number(connection, name, by=count)
    return range(last - count + 1, last + 1)


def next_number(connection: sa.Connection, name: str, *, by: int = 1) -> int:
    """Count on, by one if no more is asked for, in the caller's own transaction: numbers come in commit order and
    leave no gap. Gives the last.
    """
    for row in _COUNTED.all(connection, named=name, by=by):
        return int(row.value)
    connection.execute(sa.insert(counters).values(name=name, value=by))
    return by


def last_number(connection: sa.Connection, name: str) -> int:
    """The number that `next_number` gave last, as the caller's transaction sees it; 0 before the first."""
    return max((int(row.value) for row in _LAST.all(connection, named=name)), default=0)


def number_to_come(connection: sa.Connection, name: str) -> int:
    """The number that `next_number` will give next; until the caller's transaction ends, it gives it to nobody."""
    chosen = sa.select(counters.c.value).where(counters.c.name == name).with_for_update()
    value = connection.execute(chosen).scalar_one_or_none()
    if value is None:
        connection.execute(sa.insert(counters).values(name=name, value=0))
    return int(value or 0) + 1


counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_LAST = Prepared(sa.select(counters.c.value).where(counters.c.name == sa.bindparam("named")))
_COUNTED = Prepared(
    sa.update(counters)
    .where(counters.c.name == sa.bindparam("named"))
    .values(value=counters.c.value + sa.bindparam("by"))
    .returning(counters.c.value)
)


@contextmanager
def migration(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open the transaction in which the schema is changed: alone, and with references checked at its end.

    Raises:
        ServiceError: `database_unavailable`; the schema is as it was then.
    """
    with _faults_named(engine):
        if engine.dialect.name == "sqlite":
            yield from _sqlite_migration(engine)
        else:
            with engine.begin() as connection:
                yield connection


def _sqlite_migration(engine: sa.Engine) -> Iterator[sa.Connection]:
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
