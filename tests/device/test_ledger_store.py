"""The ledger on disk, as it is opened."""

import sqlite3
import subprocess
import sys

import pytest
from device_site import MUL, Site, recorded, session, use
from vendor import PRODUCT, Vendor

from device_sdk import LedgerError
from device_sdk import ledger_store as ledger_store_module
from device_sdk.ledger_store import APPLICATION_ID
from device_sdk.ledger_transaction import SCHEMA_VERSION
from meterkit import limits

OPEN_ONCE = """
import sys
from device_sdk import Device, Trust
trust = Trust(issuer=sys.argv[2], roots=(sys.argv[3],))
sys.stdin.readline()
device = Device.open(sys.argv[1], trust=trust, product=sys.argv[4])
with device.counter.transaction() as tx:
    print(device.id, tx.position().epoch, tx.position().seq)
"""


@pytest.fixture
def used(site):
    """A device with usage of several windows in its ledger, all folded, and closed."""
    device = site.activated(MUL)
    running = session(device)
    for times in (3, 4, 5):
        use(running, times)
        site.time.run_on(limits.WINDOW_S)
    device.close()
    return device


def raw(site: Site, sql: str, *values) -> list:
    """Somebody else's hand on the file."""
    connection = sqlite3.connect(site.path / "ledger.sqlite")
    try:
        found = connection.execute(sql, values).fetchall()
        connection.commit()
        return found
    finally:
        connection.close()


# -- as it is opened


def test_the_pragmas_are_those_that_keep_a_commit(site):
    device = site.activated(MUL)
    with device.counter.transaction() as tx:
        for name, wanted in {
            "journal_mode": "truncate",
            "synchronous": 2,
            "trusted_schema": 0,
            "foreign_keys": 1,
            "cell_size_check": 1,
            "mmap_size": 0,
            "busy_timeout": limits.BUSY_TIMEOUT_MS,
            "application_id": APPLICATION_ID,
            "user_version": SCHEMA_VERSION,
            "locking_mode": "normal",
        }.items():
            assert tx.execute(f"PRAGMA {name}").fetchone()[0] == wanted, name


@pytest.mark.usefixtures("used")
def test_a_pragma_that_does_not_hold_is_refused(site, monkeypatch):
    monkeypatch.setitem(ledger_store_module._PRAGMAS, "synchronous", 7)
    with pytest.raises(LedgerError) as caught:
        site.open()
    assert caught.value.code == "ledger_unwritable"


def test_tables_are_strict(site):
    device = site.activated(MUL)
    with device.counter.transaction() as tx:
        tables = tx.rows("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")
    assert {name for name, _ in tables} == {"records", "cells", "leases", "state", "receipts"}
    assert all(sql.rstrip().endswith("STRICT") for _, sql in tables)
    for sql in (
        "INSERT INTO leases VALUES ('f', 'm', 'u', 'many', 'b')",
        "INSERT INTO state VALUES ('x', NULL)",
        "INSERT INTO records (seq, kind, hash, body, units, unsettled) VALUES (99, 'usage', 'h', 'text', 1, 0)",
    ):
        with pytest.raises(LedgerError), device.counter.transaction() as tx:
            tx.execute(sql)


def test_many_processes_at_the_first_open_make_one_ledger(tmp_path):
    trust = Vendor(now=1).trust
    argv = [sys.executable, "-c", OPEN_ONCE, tmp_path / "device", trust.issuer, trust.roots[0], PRODUCT]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    told = {process.communicate(timeout=120)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 16
    assert len(told) == 1
    assert not list((tmp_path / "device").glob("ledger-*"))


@pytest.mark.usefixtures("used")
def test_a_newer_schema_is_refused_and_left_alone(site):
    raw(site, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = (site.path / "ledger.sqlite").read_bytes()
    with pytest.raises(LedgerError) as caught:
        site.open()
    assert caught.value.code == "ledger_newer"
    assert (site.path / "ledger.sqlite").read_bytes() == before
    assert not list(site.path.glob("ledger-*"))


@pytest.mark.usefixtures("used")
def test_a_locked_ledger_is_waited_for_but_not_for_ever(site, monkeypatch):
    monkeypatch.setattr(limits, "BUSY_TIMEOUT_MS", 50)
    monkeypatch.setitem(ledger_store_module._PRAGMAS, "busy_timeout", 50)
    holder = sqlite3.connect(site.path / "ledger.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerError) as caught:
        site.open()
    assert caught.value.code == "ledger_unwritable"
    holder.execute("ROLLBACK")
    holder.close()
    assert recorded(site.open()) == 12


def test_a_ledger_that_is_deleted_under_a_running_device_is_not_written_into_nowhere(site):
    device = site.activated(MUL)
    running = session(device)
    use(running, 3)
    for path in site.path.glob("ledger.sqlite*"):
        path.unlink()
    site.time.run_on(limits.WINDOW_S)
    for act in (device.status, lambda: use(session(device))):
        with pytest.raises(LedgerError) as caught:
            act()
        assert caught.value.code == "ledger_damaged"
    batches = device.make_batches()
    use(running, 2)
    assert recorded(device) == 2
    site.vendor.accept([*batches, *device.make_batches()])
