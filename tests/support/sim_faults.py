"""How a simulated server fails: its process dies, its commits fail, another request comes between.

All of it is done where SQLAlchemy tells of statements and commits, so it is the same for every database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc


class Died(BaseException):
    """The end of the server's process: nothing that catches errors catches it."""


@dataclass
class Plan:
    """What befalls the next request, and what became of its writes."""

    dies_at: int | None = None  # before this statement of its write transaction
    commit: str | None = None  # its commit fails `before` it is done, or `after`, or the process dies `after`
    between: Callable[[], None] | None = None  # runs after the request was judged, before it is written
    connections: int = 0
    statements: int = 0
    wrote: bool = False
    committed: bool = False

    def __post_init__(self) -> None:
        self.is_quiet = self.dies_at is None and self.commit is None


class Faults:
    """The listeners on one server's engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._plan: Plan | None = None
        event.listen(engine, "engine_connect", self._connect)
        event.listen(engine, "before_cursor_execute", self._execute)
        event.listen(engine, "commit", self._commit)

    @contextmanager
    def planned(self, plan: Plan) -> Iterator[Plan]:
        """Let a plan befall what runs inside. After a death the process starts again: it has kept no state."""
        outer, self._plan = self._plan, plan
        try:
            yield plan
        finally:
            self._plan = outer
            if not plan.is_quiet:
                self._engine.dispose()

    def _connect(self, _: sa.Connection) -> None:
        plan = self._plan
        if plan is None:
            return
        plan.connections, plan.wrote = plan.connections + 1, False
        if plan.connections == 2 and plan.between is not None:
            between, plan.between = plan.between, None
            with self.planned(Plan()):
                between()

    def _execute(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        plan = self._plan
        if plan is None:
            return
        plan.statements += 1
        if plan.statements == plan.dies_at:
            raise Died
        plan.wrote = plan.wrote or statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE")

    def _commit(self, connection: sa.Connection) -> None:
        plan = self._plan
        if plan is None or not plan.wrote:
            return
        fault, plan.commit = plan.commit, None
        if fault is not None and fault.endswith("before"):
            self._fail(fault)
        if fault is not None:
            connection.connection.dbapi_connection.commit()
        plan.committed = True
        if fault is not None:
            self._fail(fault)

    def _fail(self, fault: str) -> None:
        if fault.startswith("dies"):
            raise Died
        raise exc.OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))
