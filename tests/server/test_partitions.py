"""A PostgreSQL database partitioned by device, as docs/operations.md says, and what goes on in it."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from lively_fleet import DAY, decide_all, hand_over, lively, use

from licensing_server import database
from licensing_server.billing import service as billing
from licensing_server.database import read
from licensing_server.pages import Page
from licensing_server.reconciliation import service as reconciliation
from licensing_server.usage.rebuild import rebuild

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
TABLES = ("usage_records", "batches", "heads", "receipts")
PARTS = 16

pytestmark = pytest.mark.parametrize("postgresql", ["postgresql"], indirect=True)


def partition(fleet, parts=PARTS):
    """Run the document's own lines."""
    (lines,) = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert f"pg_advisory_xact_lock({database._WRITE_LOCK})" in lines
    assert lines.count(f"integer := {PARTS};") == 1
    with fleet.server.engine.connect() as connection, connection.connection.driver_connection.transaction():
        connection.connection.driver_connection.execute(lines.replace(f":= {PARTS};", f":= {parts};"))


def parts_of(fleet):
    """How many partitions each table has; all of their indexes are there."""
    with read(fleet.server) as connection:
        missing = sa.text("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
        assert connection.execute(missing).all() == []
        counted = sa.text("SELECT count(*) FROM pg_inherits WHERE inhparent = CAST(:name AS regclass)")
        return {name: connection.execute(counted, {"name": name}).scalar_one() for name in TABLES}


def everything(fleet):
    with read(fleet.server) as connection:
        tables = database.metadata.sorted_tables
        return {table.name: sorted(map(repr, connection.execute(sa.select(table)))) for table in tables}


def described(fleet):
    """Each table's columns, keys, references and indexes, by their names."""
    found = sa.inspect(fleet.server.engine)
    return {
        name: (
            [(each["name"], str(each["type"]), each["nullable"]) for each in found.get_columns(name)],
            (found.get_pk_constraint(name)["name"], found.get_pk_constraint(name)["constrained_columns"]),
            [(each["name"], each["referred_table"]) for each in found.get_foreign_keys(name)],
            sorted((each["name"], each["column_names"], each["unique"]) for each in found.get_indexes(name)),
        )
        for name in TABLES
    }


def test_a_partitioned_server_goes_on_as_before_and_back_again(fleet):
    chance, made = lively(fleet, 3)
    before, shape = everything(fleet), described(fleet)
    partition(fleet)
    assert (parts_of(fleet), everything(fleet), described(fleet)) == (dict.fromkeys(TABLES, PARTS), before, shape)
    go_on(fleet, chance, made)
    before = everything(fleet)
    for parts in (4, 0):
        partition(fleet, parts)
        assert (parts_of(fleet), everything(fleet), described(fleet)) == (
            dict.fromkeys(TABLES, parts),
            before,
            shape,
        )
    go_on(fleet, chance, made)


def go_on(fleet, chance, made):
    """Exchanges, a fork, decisions, a statement, a rebuild, and a bill."""
    forks = len(fleet.exceptions("fork"))
    twin = (device := fleet.device(fleet.grant())).clone()
    for each, units in ((device, 5), (twin, 6)):
        each.use(units)
        each.sync(first=1)
    assert len(fleet.exceptions("fork")) == forks + 1
    for each in made[:3]:
        use(each, 7)
        hand_over(each, 1)
    decide_all(fleet, chance)
    fleet.clock.advance(40 * DAY)
    shown = reconciliation.page(fleet.server, reconciliation.Asked(), Page())
    assert (shown["holds"], bool(shown["items"])) == (True, True)
    found = rebuild(fleet.server, check=True)
    assert (found["items"], found["devices"] > 3) == ([], True)
    assert billing.run(fleet.server)


def test_an_exchange_touches_one_partition_of_each_table(fleet):
    lively(fleet, 3)
    partition(fleet)
    plain = fleet.device(fleet.grant())
    plain.use(5)
    twin = plain.clone()
    for device, units in ((plain, 5), (twin, 6), (plain, 7)):
        with noted(fleet) as statements:
            device.use(units)
            device.sync(first=1)
        touched = {name for each in statements for name in scanned(fleet, *each)}
        tables = [re.sub(r"_\d+_of_\d+$", "", name) for name in touched]
        assert sorted(tables) == sorted(set(tables)), touched
        assert {"heads"} <= set(tables)
    assert fleet.exceptions("fork")
    by_license = "SELECT units FROM usage_records WHERE license = 'any'"
    assert len(scanned(fleet, by_license, {})) == PARTS


def test_upgrades_reach_the_partitions(fleet):
    partition(fleet)
    with database.migration(fleet.server.engine) as connection:
        op = Operations(MigrationContext.configure(connection))
        op.add_column("usage_records", sa.Column("noted", sa.Text()))
        op.create_index("usage_by_note", "usage_records", ["device", "noted"])
        op.drop_index("usage_by_meter", "usage_records")
    found = sa.inspect(fleet.server.engine)
    assert "noted" in [each["name"] for each in found.get_columns(f"usage_records_0_of_{PARTS}")]
    held = [each["column_names"] for each in found.get_indexes(f"usage_records_0_of_{PARTS}")]
    assert ["device", "noted"] in held
    assert ["license", "model", "unit", "service_at"] not in held


@contextmanager
def noted(fleet):
    """What is asked of the partitioned tables meanwhile: statements with their values."""
    found = []

    def note(_connection, _cursor, statement, values, *_):
        if re.search(rf"\b({'|'.join(TABLES)})\b", statement) and re.match("SELECT|UPDATE|DELETE", statement):
            found.append((statement, values))

    sa.event.listen(fleet.server.engine, "before_cursor_execute", note)
    yield found
    sa.event.remove(fleet.server.engine, "before_cursor_execute", note)


def scanned(fleet, statement, values):
    """The partitions that a statement is planned to look into."""
    with read(fleet.server) as connection:
        (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", values).scalar_one()
    names = set(re.findall(r'"Relation Name": "(\w+)"', json.dumps(plan)))
    return {name for name in names if re.search(r"_\d+_of_\d+$", name)}
