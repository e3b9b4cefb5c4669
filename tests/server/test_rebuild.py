"""Everything that is queried can be worked out anew from what devices signed and people decided."""

import json

import pytest
import sqlalchemy as sa
from fleet import START_S
from lively_fleet import DAY, IMPLAUSIBLE, decide_all, hand_over, lively, use

from licensing_server.audit_log import service as audit_log
from licensing_server.database import read, write
from licensing_server.devices.ledger_store import heads
from licensing_server.devices.token_store import exposures, token_limits, tokens
from licensing_server.licenses.store import license_units
from licensing_server.pages import Page
from licensing_server.reconciliation import service as reconciliation
from licensing_server.usage import deciding
from licensing_server.usage.deciding import Resolution
from licensing_server.usage.decision_store import exception_decisions
from licensing_server.usage.rebuild import rebuild
from licensing_server.usage.rollups import usage_rollups
from licensing_server.usage.store import batches, exceptions, usage_records

TABLES = (heads, usage_records, usage_rollups, exposures, license_units, tokens, token_limits, batches, exceptions)


def stored(fleet, tables=TABLES):
    """Everything that could be rebuilt, as it is stored; of sums that are nothing, nothing."""
    with read(fleet.server) as connection:
        found = {table.name: connection.execute(sa.select(table)).all() for table in tables}
    found["license_units"] = [row for row in found["license_units"] if row.units or row.unsettled]
    return {name: sorted(map(repr, rows)) for name, rows in found.items()}


def change(fleet, statement):
    with write(fleet.server) as connection:
        assert connection.execute(statement).rowcount >= 1


def logged(fleet):
    return [
        (each["action"], each["body"])
        for each in audit_log.page(fleet.server, Page(limit=200))["items"]
        if each["action"].endswith(".rebuild")
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_lively_history_rebuilds_identically(fleet, seed):
    chance, made = lively(fleet, seed, steps=80)
    decide_all(fleet, chance)
    fleet.clock.advance(DAY)
    for device in made[:3]:
        use(device, 7, flags=("over_limit",))
        hand_over(device, 1)
    before = stored(fleet)
    found = rebuild(fleet.server, check=True)
    assert found["items"] == []
    assert found["differences"] == found["left"] == 0
    assert found["devices"] == len({device.id for device in made})
    assert rebuild(fleet.server)["differences"] == 0
    assert stored(fleet) == before
    assert logged(fleet) == []


def test_the_histories_hold_what_makes_rebuilding_hard(fleet):
    kinds, outcomes = set(), set()
    for seed in range(3):
        chance, _ = lively(fleet, seed, steps=80)
        decide_all(fleet, chance)
    with read(fleet.server) as connection:
        kinds = set(connection.execute(sa.select(exceptions.c.kind)).scalars())
        outcomes = set(connection.execute(sa.select(exception_decisions.c.outcome)).scalars())
        waiting = connection.execute(sa.select(tokens).where(tokens.c.superseded.is_(True))).all()
        parents = connection.execute(sa.select(batches).where(batches.c.parent.is_not(None))).all()
        moved = connection.execute(sa.select(usage_records.c.license).distinct()).all()
    assert kinds >= {"fork", "reset", "unknown_token", "implausible_rate", "over_limit", "clock", "revoked"}
    assert outcomes >= {"release", "keep", "dismiss_branch", "closed"}
    assert len(waiting) > 10
    assert len(parents) > 10
    assert len(moved) > 3


@pytest.fixture(scope="module")
def played(first_fleet, tmp_path_factory):
    """A lively history, played once."""
    fleet = first_fleet.copy(tmp_path_factory.mktemp("played"), seed=2)
    chance, _ = lively(fleet, 5, steps=80)
    decide_all(fleet, chance)
    fleet.close()
    yield fleet
    fleet.remove()


@pytest.fixture
def history(played, tmp_path):
    """A fleet whose projections can be spoiled."""
    fleet = played.copy(tmp_path, seed=3)
    yield fleet
    fleet.remove()


def first_of(table, *conditions):
    key = list(table.primary_key.columns)
    with_key = sa.select(*key).where(*conditions).order_by(*key).limit(1).subquery()
    return sa.and_(*(column == sa.select(with_key.c[column.name]).scalar_subquery() for column in key))


SPOILED = {
    "a checkpoint's totals": sa.update(heads)
    .where(first_of(heads))
    .values(totals=[{"model": "detector", "unit": "call", "units": 10**6, "unsettled": 0}]),
    "a tip": sa.update(heads).where(first_of(heads, heads.c.is_tip.is_(True))).values(is_tip=False),
    "how far a branch has reported": sa.update(heads).where(first_of(heads)).values(through=5),
    "a checkpoint's batch": sa.update(heads).where(first_of(heads)).values(acceptance=10**6),
    "the token at a checkpoint": sa.update(heads).where(first_of(heads)).values(last_token_serial=1),
    "a checkpoint": sa.delete(heads).where(first_of(heads)),
    "a record's units": sa.update(usage_records).where(first_of(usage_records)).values(units=10**6),
    "a record's license": sa.update(usage_records).where(first_of(usage_records)).values(license="lic_x"),
    "when it was used": sa.update(usage_records).where(first_of(usage_records)).values(service_at=START_S - DAY),
    "a quarantine": sa.update(usage_records)
    .where(first_of(usage_records, usage_records.c.quarantined.is_(True)))
    .values(quarantined=False),
    "a release": sa.update(usage_records)
    .where(first_of(usage_records, usage_records.c.released_run.is_not(None)))
    .values(released_run=None),
    "a dismissal": sa.update(usage_records)
    .where(first_of(usage_records, usage_records.c.dismissed_run.is_not(None)))
    .values(dismissed_run=None),
    "a dismissal that nobody decided": sa.update(usage_records)
    .where(first_of(usage_records, usage_records.c.dismissed_run.is_(None)))
    .values(dismissed_run=1),
    "a record": sa.delete(usage_records).where(first_of(usage_records)),
    "a usable token": sa.update(tokens).where(first_of(tokens)).values(superseded=sa.not_(tokens.c.superseded)),
    "an accepted anchor": sa.update(tokens)
    .where(first_of(tokens, tokens.c.anchor_seq > 0, tokens.c.anchor_accepted.is_(True)))
    .values(anchor_accepted=False),
    "a token's end": sa.update(tokens).where(first_of(tokens)).values(exp=tokens.c.exp + DAY),
    "a limit": sa.update(token_limits).where(first_of(token_limits)).values(units_max=7),
    "what was spent at an anchor": sa.update(token_limits)
    .where(first_of(token_limits, token_limits.c.accepted_at_anchor > 0))
    .values(accepted_at_anchor=10**9),
    "an exposure": sa.update(exposures).where(first_of(exposures)).values(units=exposures.c.units + 1),
    "exposures": sa.delete(exposures),
    "a pool": sa.update(license_units).where(first_of(license_units)).values(units=license_units.c.units + 1),
    "pools": sa.delete(license_units),
    "what was added up": sa.update(usage_rollups)
    .where(first_of(usage_rollups))
    .values(units=usage_rollups.c.units + 1),
    "how far that reaches": sa.update(usage_rollups).where(first_of(usage_rollups)).values(acceptance_last=1),
    "everything that was added up": sa.delete(usage_rollups),
    "where a batch attaches": sa.update(batches)
    .where(first_of(batches, batches.c.parent.is_not(None)))
    .values(parent=None),
    "what of a batch is new": sa.update(batches)
    .where(first_of(batches, batches.c.first_new == 1))
    .values(first_new=2),
    "how an exception stands": sa.update(exceptions)
    .where(first_of(exceptions, exceptions.c.state == "resolved"))
    .values(state="open", resolved_by=None),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_was_spoiled_is_found_and_put_right(history, what):
    fleet = history
    before = stored(fleet)
    change(fleet, SPOILED[what])
    assert stored(fleet) != before
    found = rebuild(fleet.server, check=True)
    assert found["differences"] == found["left"] >= 1
    assert found["items"]
    assert logged(fleet) == []
    mended = rebuild(fleet.server)
    assert mended["left"] == 0 < mended["differences"]
    assert stored(fleet) == before
    assert logged(fleet) != []
    assert rebuild(fleet.server, check=True)["differences"] == 0
    assert audit_log.verify(fleet.server)["holds"]


def test_a_row_that_nobody_signed_is_removed(history):
    fleet = history
    before = stored(fleet)
    with write(fleet.server) as connection:
        row = connection.execute(sa.select(usage_records)).first()._mapping
        connection.execute(sa.insert(usage_records), [{**row, "hash": "ab" * 32, "units": 5}])
    (difference, *_) = rebuild(fleet.server)["items"]
    assert (difference["table"], difference["what"]) == ("usage_records", "unfounded")
    assert stored(fleet) == before


def test_an_exception_taken_away_is_opened_again_and_one_without_ground_is_told(fleet):
    device = fleet.device(fleet.grant(token_units_max=None))
    device.use(IMPLAUSIBLE + 1)
    device.sync()
    with write(fleet.server) as connection:
        (row,) = connection.execute(sa.select(exceptions)).all()
        connection.execute(sa.delete(exceptions))
    (difference,) = rebuild(fleet.server)["items"]
    assert (difference["what"], difference["key"][2]) == ("missing", "implausible_rate")
    (found,) = fleet.exceptions()
    assert (found["evidence"], found["opened_at"], found["state"]) == (row.evidence, row.opened_at, "open")
    with write(fleet.server) as connection:
        invented = {**row._mapping, "id": "exc_invented", "kind": "fork"}
        connection.execute(sa.insert(exceptions), [invented])
    for _ in range(2):
        found = rebuild(fleet.server)
        assert [(each["what"], each["key"]) for each in found["items"]] == [("unfounded", ["exc_invented"])]
        assert found["left"] == 1
    assert len(fleet.exceptions()) == 2


def test_of_what_is_open_already_no_second_exception_is_missed(fleet):
    device = fleet.device(fleet.grant())
    for _ in range(2):
        device.use(1, flags=("over_limit",))
        device.sync()
    (first,) = fleet.exceptions("over_limit")
    fleet.clock.advance(10)
    deciding.resolve(fleet.server, first["id"], Resolution(how="x"))
    fleet.clock.advance(10)
    device.use(1, flags=("over_limit",))
    device.sync()
    assert rebuild(fleet.server, check=True)["differences"] == 0
    second = fleet.exceptions("over_limit")[1]
    change(fleet, sa.delete(exceptions).where(exceptions.c.id == second["id"]))
    assert rebuild(fleet.server, check=True)["differences"] == 1


def test_evidence_that_was_touched_is_told_and_nothing_is_built_on_it(fleet):
    device, other = fleet.device(fleet.grant()), fleet.device(fleet.grant())
    for each in (device, other):
        each.use(10)
        each.sync()
    with write(fleet.server) as connection:
        bodies = dict(connection.execute(sa.select(batches.c.device, batches.c.body)).all())
        these = batches.c.device == device.id
        connection.execute(sa.update(batches).where(these).values(body=bodies[other.id]))
    before = stored(fleet)
    found = rebuild(fleet.server)
    (told,) = found["items"]
    assert (told["table"], told["key"], found["left"]) == ("batches", [device.id], 1)
    assert "key_unknown" in told["what"]
    assert stored(fleet) == before


def test_a_statement_that_does_not_add_up_does_again(history):
    fleet = history
    asked = reconciliation.Asked()
    change(fleet, sa.update(usage_records).where(first_of(usage_records)).values(units=10**6))
    assert reconciliation.page(fleet.server, asked, Page())["code"] == "conservation_broken"
    rebuild(fleet.server)
    assert reconciliation.page(fleet.server, asked, Page())["holds"]


def test_one_device_is_rebuilt_alone_and_taken_from_it_goes_on(fleet):
    device, other = fleet.device(fleet.grant()), fleet.device(fleet.grant())
    for each in (device, other):
        each.use(10)
        each.sync()
    change(fleet, sa.update(usage_records).values(units=11))
    assert rebuild(fleet.server, device=device.id)["tables"] == {"usage_records": 1}
    assert rebuild(fleet.server, device=other.id, check=True)["tables"] == {"license_units": 1, "usage_records": 1}
    device.use(5)
    device.sync()
    assert rebuild(fleet.server, device=device.id, check=True)["differences"] == 0


def test_the_command_ends_with_one_where_something_differs(fleet):
    def run(*arguments):
        return fleet.invoke(*arguments)

    device = fleet.device(fleet.grant())
    device.use(10)
    device.sync()
    assert run("rebuild", "--check").exit_code == 0
    change(fleet, sa.update(usage_records).values(units=11))
    checked = run("rebuild", "--check")
    assert (checked.exit_code, "usage_records" in checked.stdout) == (1, True)
    mended = run("rebuild", "--json")
    assert (mended.exit_code, json.loads(mended.stdout)["tables"]) == (0, {"usage_records": 1})
    assert run("rebuild", "--check").exit_code == 0
    assert run("rebuild", "--device", "dev_none").exit_code == 1
