"""From the embedded database to PostgreSQL: everything arrives, and nobody goes on with the old one."""

import pytest
import sqlalchemy as sa
from billing_fleet import FEBRUARY, at

from licensing_server import database, directory, moving
from licensing_server.billing import service as billing
from licensing_server.settings import DATABASE_URL, Settings
from meterkit.errors import ServiceError


@pytest.fixture
def name(cluster):
    made = cluster.create()
    yield made
    cluster.drop(made)


@pytest.fixture
def biller(embedded_fleet):
    """An installation with some life in it: devices, usage, a fork, invoices."""
    made = embedded_fleet
    device = made.device(made.grant())
    made.use(device, 150, at("2026-01-05"))
    made.clock.now = FEBRUARY
    (draft,) = made.run()
    made.finalize(draft["id"])
    return made


@pytest.fixture
def moved(biller, cluster, name):
    """The same server, as it is opened on the other database."""
    settings = Settings(directory=biller.settings.directory, postgresql_url=cluster.url(name))
    made = directory.open_server(settings, clock=biller.clock, random=biller.random)
    yield made
    made.engine.dispose()


def contents(server):
    with database.read(server) as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in database.metadata.sorted_tables
        }


def test_everything_arrives_and_the_server_goes_on(biller, moved):
    device = biller.device(biller.grant())
    device.use(4)
    before = contents(biller.server)
    shown = moving.move(biller.server, moved)
    assert contents(moved) == before
    assert {item["table"]: item["rows"] for item in shown["items"]} == {
        name: len(rows) for name, rows in before.items()
    }
    biller.close()
    biller.server = moved
    device.take(biller.exchange(device.batch()))
    biller.clock.now += 86_400
    assert billing.run(moved)["state"] == "done"


def test_who_still_works_on_the_old_database_is_refused_and_loses_nothing(biller, moved):
    device = biller.device(biller.grant())
    device.use(4)
    moving.move(biller.server, moved)
    with pytest.raises(ServiceError) as refused:
        biller.exchange(device.batch())
    assert refused.value.code == "database_unavailable"
    with pytest.raises(ServiceError) as again:
        moving.move(biller.server, moved)
    assert again.value.code == "database_unavailable"
    assert "moved" in again.value.detail


def test_a_database_that_holds_something_is_not_moved_into(biller, moved):
    with moved.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE theirs (x int)")
    before = contents(biller.server)
    with pytest.raises(ServiceError) as refused:
        moving.move(biller.server, moved)
    assert refused.value.code == "already_initialized"
    assert contents(biller.server) == before


def test_what_does_not_arrive_as_it_was_sent_is_not_committed(biller, moved):
    def spoil(*sent):
        _connection, _cursor, statement, parameters, _context, many = sent
        if statement.startswith("INSERT INTO usage_records"):
            for row in parameters if many else [parameters]:
                row["units"] += 1

    sa.event.listen(moved.engine, "before_cursor_execute", spoil)
    before = contents(biller.server)
    with pytest.raises(ServiceError) as refused:
        moving.move(biller.server, moved)
    assert refused.value.code == "database_unavailable"
    assert "usage_records" in refused.value.detail
    assert contents(biller.server) == before
    assert contents(moved)["usage_records"] == []


def test_the_command_moves_and_says_what(biller, cluster, name, tmp_path):
    biller.close()
    copy = biller.copy(tmp_path / "other", seed=5)
    done = copy.invoke("migrate-data")
    assert (done.exit_code, "[database_unavailable]" in done.output) == (1, True)
    copy.settings = Settings(directory=copy.settings.directory, postgresql_url=cluster.url(name))
    assert copy.environment[DATABASE_URL] == cluster.url(name)
    done = copy.invoke("--json", "migrate-data")
    assert done.exit_code == 0, done.output
    assert '"usage_records"' in done.stdout
    listed = copy.invoke("invoice", "list")
    assert "INV-000001" in listed.stdout
    copy.close()
