"""Statements that are sent thousands of times a minute: compiled once, and handed to the driver as they are.

What SQLAlchemy does around one execution takes several times as long as SQLite takes to answer most of them. It
still makes these statements, says how their values are written and read, and holds the transaction.
"""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from meterkit.errors import ServiceError

Convert = Callable[[Any], Any]


class Prepared:
    """One statement, for whatever database it is sent to. Its values have names; its rows are named tuples."""

    def __init__(self, statement: Any) -> None:
        self.statement = statement
        self._sent: dict[str, _Sent] = {}

    def all(self, connection: sa.Connection, **named: Any) -> list[Any]:
        """Execute it, and give its rows: none, if it returns none."""
        sent = self._for(connection)
        values = sent.values(named)
        with at_driver(connection, sent.text, values) as cursor:
            cursor.execute(sent.text, values)
            return sent.rows(cursor.fetchall()) if cursor.description else []

    def each(self, connection: sa.Connection, named: Sequence[Mapping[str, Any]]) -> None:
        """Execute it once for each of several sets of values, if there are any. It returns no rows."""
        if not named:
            return
        sent = self._for(connection)
        values = [sent.values(one) for one in named]
        with at_driver(connection, sent.text, values) as cursor:
            cursor.executemany(sent.text, values)

    def _for(self, connection: sa.Connection) -> "_Sent":
        found = self._sent.get(connection.dialect.name)
        if found is None:
            found = self._sent[connection.dialect.name] = _Sent(self.statement, connection.dialect)
        return found


class _Sent:
    """A statement as one database is sent it."""

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self._order: Sequence[str] | None = compiled.positiontup
        self._asked = {name for bind, name in compiled.bind_names.items() if bind.required}
        self._fixed = {name: value for name, value in compiled.params.items() if name not in self._asked}
        binds = {name: bind.type.dialect_impl(dialect) for bind, name in compiled.bind_names.items()}
        written = {name: kind.bind_processor(dialect) for name, kind in binds.items()}
        self._writers: dict[str, Convert] = {name: write for name, write in written.items() if write is not None}
        columns = list(statement.exported_columns)
        found = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._readers: dict[int, Convert] = {at: read for at, read in enumerate(found) if read is not None}
        self._make = _row_maker([column.name for column in columns])

    def values(self, named: Mapping[str, Any]) -> Any:
        """Values as the driver takes them; raises TypeError unless they are those that the statement asks for."""
        if named.keys() != self._asked:
            raise TypeError(f"asked for {sorted(self._asked)}, given {sorted(named)}")
        given = {**self._fixed, **named}
        for name, write in self._writers.items():
            given[name] = write(given[name])
        return given if self._order is None else tuple(given[name] for name in self._order)

    def rows(self, found: Sequence[Sequence[Any]]) -> list[Any]:
        """Rows as the program takes them."""
        if not self._readers:
            return list(map(self._make, found))
        rows = [list(row) for row in found]
        for at, read in self._readers.items():
            for row in rows:
                row[at] = read(row[at])
        return list(map(self._make, rows))


def _row_maker(names: Sequence[str]) -> Callable[[Sequence[Any]], Any]:
    row: Any = namedtuple("row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024
    made: Callable[[Sequence[Any]], Any] = row._make
    return made


@contextmanager
def at_driver(connection: sa.Connection, text: str, values: Any = None) -> Iterator[Any]:
    """Give a cursor of the driver's own, inside of the connection's transaction; what it raises is raised as
    SQLAlchemy does, and whoever listens to what is executed is told of it as SQLAlchemy does.
    """
    driver = connection.connection.driver_connection
    if driver is None:
        raise ServiceError("database_unavailable")
    error = connection.dialect.loaded_dbapi.Error
    try:
        cursor = driver.cursor()
        try:
            for listener in connection.dispatch.before_cursor_execute:
                listener(connection, cursor, text, values, None, isinstance(values, list))
            yield cursor
        finally:
            cursor.close()
    except error as fault:
        raise exc.DBAPIError.instance(text, None, fault, error) from fault
