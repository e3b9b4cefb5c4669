"""Commits that fail, or in which a process is killed: before they were done, or after."""

import sqlite3

import pytest

from device_sdk.ledger_store import LedgerStore


class Killed(BaseException):
    """The end of a process, where it stands: nothing that catches errors catches it."""


class Faulty:
    """A connection whose next COMMIT fails: before it was done, or after."""

    def __init__(self, connection: sqlite3.Connection, faults: list[str]) -> None:
        self._connection = connection
        self._faults = faults

    @property
    def total_changes(self) -> int:
        return self._connection.total_changes

    def execute(self, sql: str, *values) -> sqlite3.Cursor:
        if sql != "COMMIT" or not self._faults:
            return self._connection.execute(sql, *values)
        fault = self._faults.pop()
        if fault.endswith("after"):
            self._connection.execute(sql)
        if fault.startswith("killed"):
            raise Killed
        raise sqlite3.OperationalError("disk I/O error")


def fail_commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is appended to the list befalls the next transaction of any device: it fails `before` or `after` its
    commit, or `at once`; or its process is `killed before` or `killed after` it.
    """
    pending: list[str] = []
    begin = LedgerStore._begin

    def faulty(store: LedgerStore) -> Faulty:
        if pending[-1:] == ["at once"]:
            pending.pop()
            raise sqlite3.OperationalError("attempt to write a readonly database")
        return Faulty(begin(store), pending)

    monkeypatch.setattr(LedgerStore, "_begin", faulty)
    return pending
