"""A ledger that is damaged, and what is saved of it."""

import os

import pytest
from device_damage import flip, overwrite, raw, set_body
from device_site import MUL, recorded, records, session, use

from device_sdk import LedgerError
from meterkit import limits

# -- as it is damaged


def later(body: bytes) -> bytes:
    """A digit of the record's time is another: what no shape can tell, and every hash from there on does."""
    assert b'"time":18' in body
    return body.replace(b'"time":18', b'"time":19')


def code_of(act) -> str | None:
    try:
        act()
    except LedgerError as fault:
        return fault.code
    return None


DAMAGES = {
    "a bit of a record": lambda site: set_body(site, 4, flip),
    "more units, the hash as it was": lambda site: set_body(
        site, 4, lambda body: body.replace(b'"units":4', b'"units":5')
    ),
    "an altered time, well formed": lambda site: set_body(site, 4, later),
    "an altered time in the last record": lambda site: set_body(site, 5, later),
    "a record gone": lambda site: raw(site, "DELETE FROM records WHERE seq = 4"),
    "two records swapped": lambda site: [
        raw(site, "UPDATE records SET seq = 99 WHERE seq = 4"),
        raw(site, "UPDATE records SET seq = 4 WHERE seq = 5"),
        raw(site, "UPDATE records SET seq = 5 WHERE seq = 99"),
    ],
    "a record twice": lambda site: raw(
        site,
        "INSERT INTO records SELECT seq + 2, kind, hash, body, model, unit, units, unsettled FROM records"
        " WHERE seq = 4",
    ),
    "a hash that is none": lambda site: raw(
        site, "UPDATE records SET hash = 'x' WHERE seq = (SELECT MAX(seq) - 1 FROM records)"
    ),
    "the last hash": lambda site: raw(site, "UPDATE records SET hash = ? WHERE seq = 5", "0" * 64),
    "the last hash, no hex": lambda site: raw(site, "UPDATE records SET hash = 'zz' WHERE seq = 5"),
    "the last record's bytes": lambda site: set_body(site, 5, lambda body: body[:-3]),
    "a record that is empty": lambda site: set_body(site, 4, lambda _: b""),
    "a token record that is no JSON": lambda site: set_body(site, 2, lambda _: b"{"),
    "the epoch": lambda site: raw(site, "UPDATE state SET value = '\"ep_x\"' WHERE name = 'epoch'"),
    "the epoch, no JSON": lambda site: raw(site, "UPDATE state SET value = '\"ep_x' WHERE name = 'epoch'"),
    "the clock, no JSON": lambda site: raw(site, "UPDATE state SET value = '{' WHERE name = 'clock'"),
    "the clock, another shape": lambda site: raw(
        site, "UPDATE state SET value = '{\"hour\":1}' WHERE name = 'clock'"
    ),
    "a trigger": lambda site: raw(
        site, "CREATE TRIGGER free AFTER INSERT ON records BEGIN UPDATE records SET units = 0; END"
    ),
    "a table gone": lambda site: raw(site, "DROP TABLE leases"),
    "an index gone": lambda site: raw(site, "DROP INDEX idx_records_kind_seq"),
    "another table": lambda site: raw(site, "CREATE TABLE mine (x)"),
    "a view for a table": lambda site: [
        raw(site, "ALTER TABLE leases RENAME TO others"),
        raw(site, "CREATE VIEW leases AS SELECT * FROM others"),
    ],
    "the version": lambda site: raw(site, "PRAGMA user_version = 0"),
    "the header": lambda site: overwrite(site, 0, b"\x00" * 100),
    "the first page": lambda site: overwrite(site, 0, os.urandom(4096)),
    "half of the file": lambda site: os.truncate(
        site.path / "ledger.sqlite", (site.path / "ledger.sqlite").stat().st_size // 2
    ),
    "a text": lambda site: (site.path / "ledger.sqlite").write_bytes(b"no ledger at all" * 100),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("used")
def test_a_damaged_ledger_is_set_aside_and_the_device_goes_on(site, damage):
    """And what it then has to say holds from its genesis on, whatever was done to the ledger before."""
    DAMAGES[damage](site)
    device = site.open()
    batches = device.make_batches()
    kept = list(site.path.glob("ledger-*.sqlite"))
    assert len(kept) == 1
    genesis = records(device)[0]
    assert genesis["kind"] == "genesis"
    site.activate(device, MUL)
    use(session(device), 2)
    assert recorded(device) == 2
    site.vendor.now = site.time.now_s
    site.vendor.accept(batches)
    site.vendor.accept(device.make_batches())
    assert site.vendor.units("mul") in (2, 2 + 3, 2 + 3 + 4, 2 + 12)
    assert site.open().make_batches()
    assert list(site.path.glob("ledger-*.sqlite")) == kept


@pytest.mark.usefixtures("used")
def test_what_was_altered_is_not_signed_as_what_happened(site):
    set_body(site, 4, later)
    device = site.open()
    site.vendor.accept(device.make_batches())
    assert site.vendor.units("mul") == 3
    assert (records(device)[0]["lost"], records(device)[0]["previous"]["seq"]) == ({"from": 4, "to": 5}, 3)
    assert not [body for body in site.vendor.records.values() if b'"time":19' in body]


# A hash beside a record is only a note: what counts is the chain of the bodies, which the last record ends.
NOTICED = sorted(DAMAGES.keys() - {"a hash that is none"})


@pytest.mark.parametrize("damage", NOTICED)
def test_a_damage_under_a_running_device_is_a_typed_error_until_it_is_set_aside(site, damage):
    device = site.activated(MUL)
    running = session(device)
    for times in (3, 4, 5):
        use(running, times)
        site.time.run_on(limits.WINDOW_S)
    recorded(device)
    device._store.drop()
    DAMAGES[damage](site)
    site.time.run_on(limits.WINDOW_S)
    codes = set()
    for act in (device.status, lambda: use(running), lambda: use(session(device))):
        codes.add(code_of(act))
    assert codes <= {None, "ledger_damaged", "ledger_unwritable"}
    device.make_batches()
    site.activate(device, MUL)
    use(session(device), 2)
    device.make_batches()
    assert len(list(site.path.glob("ledger-*.sqlite"))) == 1
