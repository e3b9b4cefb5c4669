"""The migrated database is exactly what the stores say it is."""

import pkgutil
import sqlite3
from importlib import import_module

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import licensing_server
from licensing_server import database, migrating
from licensing_server.settings import Settings
from meterkit.errors import ServiceError


@pytest.fixture
def engine(tmp_path, postgresql):
    name = postgresql.create() if postgresql else ""
    url = postgresql.url(name) if postgresql else None
    made = database.make_engine(Settings(directory=tmp_path, postgresql_url=url).database_url)
    yield made
    made.dispose()
    if postgresql:
        postgresql.drop(name)


def load_every_store():
    for module in pkgutil.walk_packages(licensing_server.__path__, "licensing_server."):
        if ".migrations" not in module.name:
            import_module(module.name)


def test_migrations_lead_to_the_tables_that_the_stores_declare(engine):
    load_every_store()
    assert len(database.metadata.tables) > 20
    migrating.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = [(kind, each.table.name) for kind, each, *_ in compare_metadata(context, database.metadata)]
        # The comparison does not ask for which database the stores declare it: for SQLite alone.
        assert found == ([("add_fk", "usage_records")] if engine.dialect.name == "postgresql" else [])


def test_the_keys_are_those_that_the_stores_declare(engine):
    load_every_store()
    migrating.upgrade(engine)
    inspected = sa.inspect(engine)
    keys = {name: inspected.get_pk_constraint(name)["constrained_columns"] for name in database.metadata.tables}
    declared = {name: list(table.primary_key.columns.keys()) for name, table in database.metadata.tables.items()}
    assert keys == declared


def test_batches_that_were_keyed_by_their_number_are_keyed_by_their_device(engine):
    upgrade_to(engine, "0004")
    devices, batches = (sa.Table(name, sa.MetaData(), autoload_with=engine) for name in ("devices", "batches"))
    found = [row_for(batches, device=name, acceptance=number) for number, name in enumerate("baab", 1)]
    with engine.begin() as connection:
        connection.execute(sa.insert(devices), [row_for(devices, id=name, license=None) for name in "ab"])
        connection.execute(sa.insert(batches), found)
    migrating.upgrade(engine)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT * FROM batches ORDER BY acceptance")).mappings()
        assert list(map(dict, rows)) == found
    inspected = sa.inspect(engine)
    assert inspected.get_pk_constraint("batches")["constrained_columns"] == ["device", "acceptance"]
    assert [each["referred_table"] for each in inspected.get_foreign_keys("batches")] == ["devices"]
    assert [each["name"] for each in inspected.get_indexes("batches")] == ["batches_by_place"]


def test_invoices_that_were_met_whole_are_paid(engine):
    upgrade_to(engine, "0011")
    tables = {name: sa.Table(name, sa.MetaData(), autoload_with=engine) for name in ("customers", "billing_runs")}
    invoices = sa.Table("invoices", sa.MetaData(), autoload_with=engine)
    stood = [
        ("invoice", "finalized", 0, "paid"),
        ("invoice", "finalized", 1, "finalized"),
        ("invoice", "draft", 0, "draft"),
        ("invoice", "void", 0, "void"),
        ("credit_note", "finalized", 0, "finalized"),
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(tables["customers"]), [row_for(tables["customers"], id="x")])
        runs = [row_for(tables["billing_runs"], number=number, cut_off=number) for number in range(len(stood))]
        connection.execute(sa.insert(tables["billing_runs"]), runs)
        for run, (kind, state, due, _) in enumerate(stood):
            named = {"id": f"inv_{run}", "number": f"n{run}", "run": run, "customer": "x"}
            row = row_for(invoices, kind=kind, state=state, due_minor=due, **named)
            connection.execute(sa.insert(invoices), [row])
    migrating.upgrade(engine)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT state FROM invoices ORDER BY id")).scalars().all()
    assert found == [state for *_, state in stood]


def upgrade_to(engine, revision):
    config = migrating._config()
    with database.migration(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def row_for(table, **given):
    """A row with something in every column."""
    kinds = {int: 7, bool: True, bytes: b"\x00signed", dict: {}, str: "x"}
    return {column.name: kinds[column.type.python_type] for column in table.columns} | given


def test_migrating_again_changes_nothing(engine):
    migrating.upgrade(engine)
    migrating.upgrade(engine)
    with engine.connect() as connection:
        assert migrating.is_current(connection)


def test_a_database_of_another_version_is_said_to_be_one(fleet):
    migrating.check(fleet.server)
    with database.write(fleet.server) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ServiceError) as refused:
        migrating.check(fleet.server)
    assert refused.value.code == "database_unavailable"
    assert "migrate" in refused.value.detail


def test_an_empty_database_is_said_to_be_none(engine):
    with engine.connect() as connection:
        assert not migrating.is_current(connection)


def test_sqlite_is_durable_and_checks_references(first_embedded_fleet, tmp_path):
    fleet = first_embedded_fleet.copy(tmp_path, seed=2, durable=True)
    with database.read(fleet.server) as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("synchronous", "foreign_keys", "journal_mode", "busy_timeout", "trusted_schema")
        }
    race_fixed = sqlite3.sqlite_version_info >= database.WAL_SINCE
    assert pragmas == {
        "synchronous": 2,
        "foreign_keys": 1,
        "journal_mode": "wal" if race_fixed else "truncate",
        "busy_timeout": database.BUSY_TIMEOUT_MS,
        "trusted_schema": 0,
    }
    fleet.remove()


def test_a_write_is_all_or_nothing(fleet):
    def broken():
        with database.write(fleet.server) as connection:
            database.next_number(connection, "x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    with database.write(fleet.server) as connection:
        assert database.next_number(connection, "x") == 1
        assert database.next_number(connection, "x") == 2


def test_a_read_cannot_write_over_a_writer(fleet):
    with database.write(fleet.server) as connection:
        database.next_number(connection, "x")
        with database.read(fleet.server) as reader:
            assert (
                reader.execute(sa.select(database.counters).where(database.counters.c.name == "x")).first() is None
            )


def test_errors_of_the_database_show_no_parameters(fleet):
    with pytest.raises(ServiceError) as refused, database.write(fleet.server) as connection:
        connection.execute(sa.text("SELECT * FROM nowhere WHERE secret = :secret"), {"secret": "hunter2"})
    assert refused.value.code == "database_unavailable"
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
