"""Statements that go to the driver as they are: they come to what SQLAlchemy makes of them, and fail alike."""

import pytest
import sqlalchemy as sa

from licensing_server.catalog.store import models
from licensing_server.database import insert_all, listed, read, write
from licensing_server.devices.ledger_store import heads
from licensing_server.devices.revocation_store import revocations
from licensing_server.devices.store import devices
from licensing_server.licenses.store import licenses
from licensing_server.prepared import Prepared
from meterkit.errors import ServiceError

REVOKE = Prepared(sa.insert(revocations))
REVOKED = Prepared(sa.select(revocations).where(listed(revocations.c.subject, "subjects")))


def revoked(*subjects):
    return [{"kind": "token", "subject": subject, "created_at": 1} for subject in subjects]


@pytest.mark.parametrize("table", [models, licenses, devices, heads], ids=str)
def test_rows_hold_the_same_values_of_the_same_types(fleet, table):
    device = fleet.device(fleet.grant())
    device.use(3)
    device.sync()
    statement = sa.select(table)
    with read(fleet.server) as connection:
        found = Prepared(statement).all(connection)
        expected = connection.execute(statement).all()
    assert found
    assert list(map(repr, map(tuple, found))) == list(map(repr, map(tuple, expected)))
    assert [row._asdict() for row in found] == [dict(row._mapping) for row in expected]


def test_values_of_the_statement_itself_are_sent_with_those_that_are_named(fleet):
    device = fleet.device(fleet.grant())
    change = sa.update(devices).where(devices.c.id == sa.bindparam("this")).values(held=True)
    with write(fleet.server) as connection:
        assert Prepared(change.returning(devices.c.id, devices.c.held)).all(connection, this=device.id) == [
            (device.id, True)
        ]
        assert Prepared(change).all(connection, this="nobody") == []


@pytest.mark.parametrize("named", [{}, {"subject": []}, {"subjects": [], "kind": "token"}])
def test_what_is_not_asked_for_or_missing_is_no_value(fleet, named):
    with read(fleet.server) as connection, pytest.raises(TypeError, match="subjects"):
        REVOKED.all(connection, **named)


def test_whoever_listens_to_statements_hears_of_them_before_they_are_carried_out(fleet):
    heard = []

    def listen(connection, _cursor, statement, *_):
        heard.append((statement.split()[0], connection.execute(sa.select(revocations)).all()))

    with write(fleet.server) as connection:
        sa.event.listen(fleet.server.engine, "before_cursor_execute", listen, once=True)
        REVOKE.each(connection, revoked("a"))
    assert heard == [("INSERT", [])]


def test_what_the_database_forbids_is_a_conflict_and_leaves_nothing(fleet):
    with pytest.raises(ServiceError) as refused, write(fleet.server) as connection:
        REVOKE.each(connection, revoked("a", "b", "a"))
    assert refused.value.code == "state_conflict"
    with read(fleet.server) as connection:
        assert REVOKED.all(connection, subjects=["a", "b"]) == []


def cut_off_while_writing(fleet):
    with write(fleet.server) as connection:
        ours = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        fleet.cluster.execute(f"SELECT pg_terminate_backend({ours})")
        REVOKE.each(connection, revoked("a"))


def test_a_connection_that_was_cut_off_is_not_used_again(fleet):
    if fleet.cluster is None:
        pytest.skip("SQLite has no connection to lose")
    with pytest.raises(ServiceError) as refused:
        cut_off_while_writing(fleet)
    assert refused.value.code == "database_unavailable"
    with write(fleet.server) as connection:
        REVOKE.each(connection, revoked("b"))
        assert [row.subject for row in REVOKED.all(connection, subjects=["a", "b"])] == ["b"]


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 100, 149])
def test_however_many_rows_there_are_each_is_stored_once(fleet, count):
    rows = revoked(*(f"tok_{number:03}" for number in range(count)))
    with write(fleet.server) as connection:
        insert_all(connection, revocations, rows)
    with read(fleet.server) as connection:
        found = connection.execute(sa.select(revocations).order_by(revocations.c.subject)).all()
    assert [{**row._mapping} for row in found] == rows


@pytest.mark.parametrize("place", [0, 50, 99])
def test_of_rows_one_of_which_may_not_be_stored_none_is(fleet, place):
    rows = revoked(*(f"tok_{number:03}" for number in range(100)))
    rows[place]["subject"] = rows[place - 1]["subject"]
    with pytest.raises(ServiceError, match="state_conflict"), write(fleet.server) as connection:
        insert_all(connection, revocations, rows)
    with read(fleet.server) as connection:
        assert connection.execute(sa.select(revocations)).all() == []
