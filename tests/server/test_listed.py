"""Lists as one parameter: the same rows on both databases, by an index, and a statement that never changes."""

import pytest
import sqlalchemy as sa

from licensing_server.catalog import store as catalog
from licensing_server.database import metadata, read, write
from licensing_server.devices import decision_store, group_store, ledger_store, revocation_store
from licensing_server.devices import store as devices
from licensing_server.devices.revocation_store import revocations
from licensing_server.licenses import spans
from licensing_server.licenses import store as licenses
from licensing_server.usage import store as usage

STATEMENTS = {
    "models": catalog._MODELS,
    "devices": devices._ALL,
    "revisions": devices._REVISIONS,
    "tips": ledger_store._TIPS,
    "places": ledger_store._PLACES,
    "tokens": group_store._ALL_KNOWN,
    "superseded": group_store._SUPERSEDE,
    "exposed": group_store._EXPOSED,
    "exposures": group_store._EXPOSURES,
    "written off": decision_store._WRITTEN_OFF,
    "revoked": revocation_store._INSTANTS,
    "licenses": licenses._ALL,
    "grants": licenses._ALL_GRANTS,
    "units": licenses._ALL_UNITS,
    "spans": spans._ADDED_UP,
    "exceptions": usage._OPEN_KINDS,
}
NAMES = ["plain", "", "it's", 'a "b"', "back\\slash", "{braces,}", "NULL", "é 漢 😀", "%s :x ?"]


@pytest.mark.parametrize("asked", [[], NAMES[:1], NAMES, [*NAMES, "nowhere"]])
def test_those_are_found_that_are_named(fleet, asked):
    rows = [{"kind": "token", "subject": name, "created_at": at} for at, name in enumerate([*NAMES, "other"])]
    with write(fleet.server) as connection:
        connection.execute(sa.insert(revocations), rows)
    with read(fleet.server) as connection:
        found = revocation_store.read_instants(connection, asked)
    assert found == {name: at for at, name in enumerate(NAMES) if name in asked}


@pytest.mark.parametrize("name", STATEMENTS)
def test_an_index_finds_them(fleet, name):
    statement = STATEMENTS[name].statement
    if fleet.cluster is not None:
        pytest.skip("how PostgreSQL looks depends on how much there is")
    compiled = statement.compile(dialect=fleet.server.engine.dialect)
    with read(fleet.server) as connection:
        nothing = tuple("[]" for _ in compiled.positiontup)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", nothing).all()
    scanned = {table for table in metadata.tables if any(f"SCAN {table}" == row.detail for row in plan)}
    assert not scanned, plan
    assert "json_each" in str(plan)


def test_the_statement_is_the_same_however_many_are_named(fleet):
    seen = []
    sa.event.listen(fleet.server.engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    with read(fleet.server) as connection:
        for count in (0, 1, 40):
            revocation_store.read_instants(connection, NAMES[:1] * count)
    assert len({text for text in seen if "revocations" in text}) == 1
