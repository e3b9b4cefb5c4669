"""The end of a process, within a transaction."""

from typing import Any

import sqlalchemy as sa


class Killed(BaseException):
    """The process ends here: nothing of the program may catch it."""


def kill_at(engine: sa.Engine, nth: int) -> None:
    """End the process as the nth statement, or commit, is about to be carried out. What begins a transaction is
    no statement of it.
    """
    left = [nth]

    def commit(_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def count(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "pg_advisory_xact_lock" not in statement and not statement.startswith("SET TRANSACTION"):
            commit(connection)

    sa.event.listen(engine, "before_cursor_execute", count)
    sa.event.listen(engine, "commit", commit)
