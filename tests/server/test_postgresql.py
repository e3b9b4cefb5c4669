"""What is PostgreSQL's own: making a server there, migrating at once, and a database that goes and comes back."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from fleet import Clock, Fleet, Random
from postgresql import Cluster
from starlette.testclient import TestClient

from licensing_server import database, directory, migrating, settings
from licensing_server.app import create_app
from licensing_server.cli import cli
from meterkit.errors import ServiceError


@pytest.fixture
def name(cluster):
    made = cluster.create()
    yield made
    cluster.drop(made)


def init(path, url, **given):
    return directory.init(path, issuer="Vendor", clock=Clock(), random=Random(3), postgresql_url=url, **given)


def test_init_makes_no_file_where_the_database_is_elsewhere(tmp_path, cluster, name):
    made = init(tmp_path / "server", cluster.url(name))
    assert not list(made.directory.rglob("*.sqlite3"))
    with pytest.raises(ServiceError) as refused:
        init(tmp_path / "other", cluster.url(name))
    assert refused.value.code == "already_initialized"
    assert not (tmp_path / "other").exists()


def test_the_command_line_takes_the_database_from_the_environment_and_never_shows_it(tmp_path, cluster, name):
    url = cluster.url(name).replace("meterkit@", "meterkit:hidden@")
    environment = {settings.DATABASE_URL: url, settings.DIRECTORY: str(tmp_path / "server")}
    made = CliRunner().invoke(cli, ["init", str(tmp_path / "server"), "--issuer", "Vendor"], env=environment)
    assert made.exit_code == 0
    listed = CliRunner().invoke(cli, ["product", "list"], env=environment)
    assert listed.exit_code == 0
    read = settings.read(environment)
    server = directory.open_server(read)
    assert "hidden" not in f"{made.output}{listed.output}{read!r}{server!r}"
    cluster.drop(name)
    refused = CliRunner().invoke(cli, ["product", "list"], env=environment)
    assert (refused.exit_code, "hidden" in refused.output) == (1, False)
    assert "[database_unavailable]" in refused.output


@pytest.mark.parametrize("url", ["mysql://user:hidden@host/name", "postgresql://host/name", "hidden"])
def test_another_database_is_refused_without_showing_its_url(url, tmp_path):
    with pytest.raises(ServiceError) as refused:
        settings.read({settings.DATABASE_URL: url}, str(tmp_path))
    assert refused.value.code == "database_unavailable"
    assert "hidden" not in str(refused.value)


def test_migrations_that_begin_at_once_run_once(cluster, name):
    engines = [database.make_engine(cluster.url(name)) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(migrating.upgrade, engines))
    with engines[0].connect() as connection:
        assert migrating.is_current(connection)
    for engine in engines:
        engine.dispose()


def test_a_write_lock_that_is_held_for_long_is_waited_for_within_bounds(tmp_path, monkeypatch, cluster):
    quickly = database._POSTGRESQL_WRITE.replace(str(database.BUSY_TIMEOUT_MS), "50")
    monkeypatch.setattr(database, "_POSTGRESQL_WRITE", quickly)
    fleet = Fleet.start(tmp_path, cluster=cluster)
    with database.write(fleet.server) as connection:
        database.next_number(connection, "held")
        with pytest.raises(ServiceError) as refused, database.write(fleet.server):
            pass
        with database.read(fleet.server) as reading:  # held up by nobody
            assert reading.execute(sa.text("SELECT count(*) FROM counters WHERE name = 'held'")).scalar_one() == 0
    assert refused.value.code == "database_unavailable"
    fleet.remove()


def test_a_read_cannot_write(cluster, tmp_path):
    fleet = Fleet.start(tmp_path, cluster=cluster)
    with pytest.raises(ServiceError), database.read(fleet.server) as connection:
        database.next_number(connection, "x")
    fleet.remove()


# Connections that died with their server are dropped by the pool, not closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_database_that_went_away_is_used_again_when_it_is_back(tmp_path):
    cluster = Cluster()
    fleet = Fleet.start(tmp_path, cluster=cluster)
    device = fleet.device(fleet.grant())
    device.use(3)
    body = device.batch()
    client = TestClient(create_app(fleet.server), raise_server_exceptions=False)
    assert client.get("/readyz").status_code == 200
    cluster.stop()
    assert client.get("/readyz").status_code == 503
    with pytest.raises(ServiceError) as refused:
        fleet.exchange(body)
    assert refused.value.code == "database_unavailable"
    cluster.start()
    assert client.get("/readyz").status_code == 200
    (receipt,) = fleet.exchange(body).receipts
    assert device.open_receipt(receipt).position == device.position
    fleet.close()
    cluster.close()


def test_a_server_starts_again_on_what_it_committed_when_everything_was_killed(tmp_path):
    """Nothing that was acknowledged is lost, though the database was told that it may be."""
    cluster = Cluster("fsync=on", "synchronous_commit=off", "wal_writer_delay=10s")
    fleet = Fleet.start(tmp_path, cluster=cluster)
    license_id = fleet.grant()
    device = fleet.device(license_id)
    device.use(7)
    device.take(fleet.exchange(device.batch()))
    cluster.stop()
    cluster.start()
    fleet.close()
    assert fleet.units(license_id) == 7
    fleet.close()
    cluster.close()


def test_the_planner_knows_how_many_ledgers_there_are(tmp_path, cluster, name):
    """By itself it multiplies the distinct values of all columns, and then adds up all usage in one process."""
    init(tmp_path / "server", cluster.url(name))
    engine = database.make_engine(cluster.url(name))
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # no devices stand behind these
        connection.exec_driver_sql(
            """
            INSERT INTO usage_records (
                device, epoch, seq, hash, prev, license, token, model, unit, digest, units, unsettled, "window",
                provisional, service_at, shifted, flags, recorded_at, acceptance, quarantined
            )
            SELECT ledger, ledger, record, '', '', ledger %% 50, '', 'model', 'call', '', 1, 0, 0,
                false, 0, false, '[]', 0, 1, false
            FROM generate_series(1, 100) AS ledger, generate_series(1, 100) AS record
            """
        )
        connection.exec_driver_sql("ANALYZE usage_records")
        grouped = "SELECT device, epoch, license, model, unit FROM usage_records GROUP BY 1, 2, 3, 4, 5"
        (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {grouped}").scalar_one()
    engine.dispose()
    assert 50 < plan["Plan"]["Plan Rows"] < 200  # without, it takes a tenth of all rows: 1,000
