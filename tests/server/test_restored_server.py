"""A server put back from yesterday's backup: it asks for what it forgot, and takes nobody for a clone."""

import shutil
from dataclasses import replace

import pytest
from billing_fleet import FEBRUARY
from exchanging import exposed, limit_of, stored_batches, stored_records, used_device
from exposed_fleet import compare_exposures
from fleet import MODEL, FakeDevice, claims_of

from licensing_server.database import read
from licensing_server.devices import ledger_store
from licensing_server.devices import service as devices
from licensing_server.licenses import service as licenses
from licensing_server.licenses import store as license_store
from licensing_server.pages import Page
from licensing_server.reconciliation import service as reconciliation
from licensing_server.settings import DATABASE_FILE
from licensing_server.usage import deciding
from licensing_server.usage import service as usage
from licensing_server.usage.deciding import Resolution
from licensing_server.usage.rebuild import rebuild
from meterkit import audit, envelopes, signing
from meterkit.exchange import Has
from meterkit.ledger import Total

METER = (MODEL, "call")
DAY_S = 86_400


@pytest.fixture
def license_id(fleet, request):
    return fleet.grant(fork_policy=getattr(request, "param", "flag"))


@pytest.fixture
def device(fleet, license_id):
    made = used_device(fleet, license_id)
    made.sync()
    return made


class Backup:
    """The database, copied and put back as people do it."""

    def __init__(self, fleet, path):
        self.fleet = fleet
        self.path = path
        self.copy = ""

    def take(self):
        self.fleet.close()
        if self.fleet.cluster:
            self.copy = self.fleet.cluster.create(self.fleet.database)
        else:
            shutil.copyfile(self.fleet.server.directory / DATABASE_FILE, self.path)

    def put_back(self):
        self.fleet.lose_database()
        if self.fleet.cluster:
            self.fleet.cluster.create(self.copy, name=self.fleet.database)
        else:
            shutil.copyfile(self.path, self.fleet.server.directory / DATABASE_FILE)


@pytest.fixture
def database(fleet, tmp_path):
    made = Backup(fleet, tmp_path / "backup")
    yield made
    if made.copy:
        fleet.cluster.drop(made.copy)


def a_day_on(fleet, device, units=100):
    fleet.clock.advance(DAY_S)
    device.use(units, token=installed(device))
    device.sync()


def installed(device):
    """The token that is in force: a newer one may have come, and not been recorded yet."""
    return [entry.claims["jti"] for entry in device.entries if entry.claims["kind"] == "token"][-1]


def summed(fleet, license_id):
    (item,) = usage.sum_usage(fleet.server, license_id=license_id)["items"]
    return item["units"], item["quarantined"]


def pooled(fleet, license_id):
    with read(fleet.server) as connection:
        return license_store.accepted_units(connection, license_id, METER, 0)


def test_what_was_forgotten_is_asked_for_and_counted_once(fleet, device, database, license_id):
    backed_up = device.position
    database.take()
    a_day_on(fleet, device)
    a_day_on(fleet, device, 200)
    confirmed, held = device.receipt, device.position
    database.put_back()
    assert fleet.units(license_id) == 21
    a_day_on(fleet, device, 400)  # brings a receipt that only this server can have signed
    asked = device.open_receipt(device.receipt)
    assert (asked.position, asked.totals) == (backed_up, {METER: Total(units=21)})
    assert asked.iat > device.open_receipt(confirmed).iat
    assert fleet.units(license_id) == 21
    reply = device.sync()
    assert device.open_receipt(device.receipt).position == device.position
    assert device.open_token(reply.token).anchor == device.position
    assert fleet.units(license_id) == 21 + 100 + 200 + 400
    assert len(stored_records(fleet)) == 6 + 3
    (told,) = fleet.exceptions()
    assert (told["kind"], told["device"], told["license"]) == ("server_rollback", device.id, license_id)
    assert told["evidence"]["receipt"] == confirmed
    assert told["evidence"]["position"] == held.to_claims()
    assert told["evidence"]["totals"][0]["units"] == 21 + 300
    assert told["evidence"]["known"] == backed_up.to_claims()
    assert told["evidence"]["known_totals"][0]["units"] == 21


def test_it_is_told_once_and_asked_for_as_often_as_the_answer_is_lost(fleet, device, database):
    database.take()
    a_day_on(fleet, device)
    database.put_back()
    fleet.clock.advance(DAY_S)
    text = device.batch()
    first = fleet.exchange(text)
    assert device.open_receipt(first.receipts[0]).position.seq == 8
    again = [device.open_receipt(fleet.exchange(text).receipts[0]) for _ in range(3)]
    # The end of the branch was asked for in vain, as far as the server can tell: from the beginning, then.
    assert {receipt.position.seq for receipt in again} == {0}
    assert len({receipt.iat for receipt in again}) == 1
    assert len(fleet.exceptions("server_rollback")) == 1
    device.take(fleet.exchange(text))
    device.sync()
    assert device.open_receipt(device.receipt).position == device.position
    assert fleet.units(device.token.license_id) == 121
    assert len(fleet.exceptions()) == 1


def test_a_clone_in_the_time_that_is_lost_is_found_again(fleet, device, database, license_id):
    database.take()
    clone = device.clone()
    a_day_on(fleet, device, 100)
    a_day_on(fleet, clone, 1_000)
    database.put_back()
    for each in (device, clone, device, clone):
        fleet.clock.advance(DAY_S)
        each.sync()
    assert fleet.units(license_id) == 21 + 100 + 1_000
    assert len(fleet.exceptions("fork")) == 1
    assert fleet.exceptions("reset") == []


def test_a_ledger_that_began_in_the_time_that_is_lost_is_asked_for_from_its_beginning(
    fleet, device, database, license_id
):
    database.take()
    device.reset()
    device.install()
    device.use(5)
    a_day_on(fleet, device)
    database.put_back()
    fleet.clock.advance(DAY_S)
    device.sync()
    assert device.open_receipt(device.receipt).position.seq == 0
    device.sync()
    assert fleet.units(license_id) == 21 + 105
    assert sorted(each["kind"] for each in fleet.exceptions()) == ["reset", "server_rollback"]


def test_a_device_that_it_never_saw_is_refused_until_it_asks_again(fleet, database, license_id):
    code = fleet.code(license_id)
    database.take()
    device = fleet.device()
    device.activate(code)
    device.install()
    a_day_on(fleet, device)
    lost = device.serial
    database.put_back()
    with pytest.raises(Exception, match="key_unknown"):
        device.sync()
    fleet.clock.advance(10)
    device.activate(code)
    device.sync()
    device.sync()
    assert device.serial > lost
    # Its records name a token that the server does not know any more: kept, receipted, and for a person to see.
    assert summed(fleet, license_id) == (0, 100)
    assert sorted(each["kind"] for each in fleet.exceptions()) == ["server_rollback", "unknown_token"]


def test_usage_under_a_forgotten_token_is_kept_aside_and_told(fleet, device, database, license_id):
    database.take()
    fleet.clock.advance(7_200)
    device.sync()
    device.install()
    a_day_on(fleet, device)
    forgotten = device.serial
    database.put_back()
    fleet.clock.advance(DAY_S)
    device.sync()
    device.sync()
    assert summed(fleet, license_id) == (21, 100)
    assert device.serial > forgotten
    device.install()
    device.use(7)
    device.sync()
    assert summed(fleet, license_id) == (28, 100)


def test_serials_go_on_above_what_the_device_holds(fleet, device, database):
    database.take()
    for _ in range(3):
        fleet.clock.advance(7_200)
        device.sync()
        device.install()
    held = device.serial
    database.put_back()
    fleet.clock.now -= 20_000  # the machine it was put back on has a clock that is behind, too
    fleet.exchange(device.batch())
    reply = fleet.exchange(device.batch(1, license_id=device.token.license_id))
    assert device.open_token(reply.token).serial > held


def test_revocations_go_on_above_the_list_that_devices_hold(fleet, device, database, license_id):
    other = fleet.device(license_id)
    database.take()
    devices.revoke(fleet.server, "device", other.id)
    has = Has(serial=device.serial, keyring=1, revocations=1, receipt=device.receipt)
    fleet.exchange(device.batch(has=has))
    database.put_back()
    fleet.exchange(device.batch(has=has))
    assert devices.revoke(fleet.server, "device", other.id)["revocations_version"] == 2
    reply = fleet.exchange(device.batch(has=has))
    assert claims_of(envelopes.REVOCATIONS, reply.revocations)["version"] == 2


def test_a_receipt_that_this_server_did_not_sign_proves_nothing(fleet, device):
    receipt = device.open_receipt(device.receipt)
    ahead = receipt._replace(position=receipt.position._replace(seq=50, head="1" * 64)).to_claims()
    stranger = FakeDevice.make(fleet)
    forged = signing.sign(envelopes.RECEIPT, ahead, stranger.key)
    misdirected = fleet.server.sign(envelopes.RECEIPT, {**ahead, "sub": stranger.id})
    for text in (forged, misdirected, "eyJh.eyJh." + "A" * 86, device.reply.token):
        device.use(1)
        fleet.exchange(device.batch(has=Has(serial=device.serial, keyring=1, revocations=0, receipt=text)))
    assert fleet.exceptions() == []
    assert fleet.units(device.token.license_id) == 25


def test_after_it_is_resolved_an_old_batch_does_not_open_it_again(fleet, device, database):
    database.take()
    a_day_on(fleet, device)
    database.put_back()
    fleet.clock.advance(DAY_S)
    old = device.batch()
    device.sync()
    device.sync()
    (told,) = fleet.exceptions()
    deciding.resolve(fleet.server, told["id"], Resolution(how="the backup of that day"), who="me")
    before = len(stored_batches(fleet))
    fleet.exchange(old)
    assert [each["state"] for each in fleet.exceptions()] == ["resolved"]
    assert len(stored_batches(fleet)) == before


def obstinate(fleet, device):
    """Send what follows the newest receipt held, whatever is asked: what is before it is pruned."""
    fleet.clock.advance(DAY_S)
    return fleet.exchange(device.batch())


@pytest.fixture
def pruned(fleet, device, database, license_id):
    """A device that has no records before a receipt that its server forgot, and was asked for them in vain."""
    database.take()
    a_day_on(fleet, device, 100)
    a_day_on(fleet, device, 200)
    database.put_back()
    device.use(7, token=installed(device))
    for _ in range(2):
        assert obstinate(fleet, device).token is None
    assert fleet.units(license_id) == 21
    return device


def test_for_what_is_gone_the_receipts_totals_are_trusted(fleet, pruned, license_id):
    forgotten = pruned.open_receipt(pruned.receipt)
    reply = obstinate(fleet, pruned)
    (receipt,) = map(pruned.open_receipt, reply.receipts)
    assert (receipt.position, receipt.totals) == (pruned.position, {METER: Total(units=21 + 300 + 7)})
    # Which token was in force where the records are gone is not known: set aside up to the next token record.
    assert summed(fleet, license_id) == (21, 7)
    with read(fleet.server) as connection:
        (tip,) = ledger_store.read_tips(connection, pruned.id, pruned.epoch)
    assert tip.position == pruned.position
    pruned.take(reply)
    pruned.install()
    pruned.use(50)
    pruned.sync()
    assert summed(fleet, license_id) == (71, 7)
    assert sorted(each["kind"] for each in fleet.exceptions()) == [
        "records_gone",
        "server_rollback",
        "unknown_token",
    ]
    (gone,) = fleet.exceptions("records_gone")
    assert (gone["evidence"]["first"], gone["evidence"]["last"]) == (9, forgotten.position.seq)
    assert gone["evidence"]["units"] == [{"model": MODEL, "unit": "call", "units": 300, "unsettled": 0}]
    assert reconciliation.page(fleet.server, reconciliation.Asked(), Page())["holds"]
    assert rebuild(fleet.server, check=True)["items"] == []


@pytest.mark.parametrize("pieces", [[(9, 0)], [(1, 0)], [(9, 9), (10, 0)], [(9, 1)], [(9, 10), (10, 0)]])
@pytest.mark.parametrize("at_once", [True, False])
def test_records_that_come_after_all_fill_the_gap_and_count_once(fleet, pruned, license_id, pieces, at_once):
    has = Has(serial=pruned.serial, keyring=1, revocations=0, receipt=pruned.receipt)
    end = pruned.open_receipt(pruned.receipt).position.seq
    pieces = [(first, last if last > 1 else end + last) for first, last in pieces]
    pruned.take(obstinate(fleet, pruned))
    assert pooled(fleet, license_id) == 321
    found = [pruned.batch(first, last, has=has) for first, last in pieces]
    for texts in [found] if at_once else [[text] for text in found]:
        fleet.exchange(*texts)
    assert summed(fleet, license_id) == (321, 7)
    assert pooled(fleet, license_id) == 321
    with read(fleet.server) as connection:
        (tip,) = ledger_store.read_tips(connection, pruned.id, pruned.epoch)
    assert tip.position == pruned.position
    (gone,) = fleet.exceptions("records_gone")
    assert (gone["state"], gone["outcome"], gone["resolved_by"]) == ("resolved", "came", "server")
    assert at_once is False or fleet.exceptions("fork") == []
    assert reconciliation.page(fleet.server, reconciliation.Asked(), Page())["holds"]
    assert rebuild(fleet.server, check=True)["items"] == []
    for text in found:
        fleet.exchange(text)
    pruned.install()
    pruned.use(50)
    pruned.sync()
    assert summed(fleet, license_id) == (371, 7)
    assert rebuild(fleet.server, check=True)["items"] == []


def missing_of(fleet, device):
    """Let a receipt stand for records from 9 on; give what the device holds by then, and the last of them."""
    has = Has(serial=device.serial, keyring=1, revocations=0, receipt=device.receipt)
    end = device.open_receipt(device.receipt).position.seq
    device.take(obstinate(fleet, device))
    return has, end


@pytest.mark.parametrize("license_id", ["hold", "suspend"], indirect=True)
def test_what_comes_after_all_in_pieces_keeps_nothing_from_the_device(fleet, pruned, license_id):
    has, end = missing_of(fleet, pruned)
    for seq in range(9, end + 1):
        fleet.exchange(pruned.batch(seq, seq, has=has))
        assert stands(fleet, pruned, license_id) == (False, "active")
    pruned.install()
    pruned.use(50)
    assert fleet.exchange(pruned.batch()).token is not None
    assert summed(fleet, license_id) == (371, 7)


@pytest.mark.parametrize("license_id", ["hold", "suspend"], indirect=True)
@pytest.mark.parametrize("records", ["amid", "up to it", "past it", "a second, amid", "piece by piece past it"])
def test_a_clone_among_what_is_missing_is_one_once_it_cannot_be_that(fleet, pruned, license_id, records):
    clone = replace(pruned.clone(), entries=pruned.entries[:8])
    has, end = missing_of(fleet, pruned)
    for _ in range(20):
        clone.use(1_000, token=installed(clone))
    if records == "a second, amid":
        fleet.exchange(pruned.batch(9, 9, has=has))
    last = {"amid": end - 1, "a second, amid": 9, "up to it": end}.get(records, end + 3)
    pieces = [(seq, seq) for seq in range(9, last + 1)] if records.startswith("piece") else [(9, last)]
    for first, to in pieces:
        assert stands(fleet, pruned, license_id) == (False, "active") or first > end
        fleet.exchange(clone.batch(first, to, has=has))
    is_clone = records != "amid"
    policy = licenses.show(fleet.server, license_id)["fork_policy"]
    expected = {"hold": (is_clone, "active"), "suspend": (False, "suspended" if is_clone else "active")}
    assert stands(fleet, pruned, license_id) == expected[policy]
    assert len(fleet.exceptions("fork")) == 1 + (records == "a second, amid")
    assert rebuild(fleet.server, check=True)["items"] == []


def stands(fleet, device, license_id):
    """Whether the device is held, and how its license stands."""
    return devices.show(fleet.server, device.id)["held"], licenses.show(fleet.server, license_id)["state"]


def test_what_is_gone_is_accepted_where_a_run_asks_what_is_exposed(fleet, pruned, license_id):
    """Of a million 328 are accepted, 300 of them by a receipt alone; then the records come, and it is the same."""
    has = Has(serial=pruned.serial, keyring=1, revocations=0, receipt=pruned.receipt)
    pruned.take(obstinate(fleet, pruned))
    name = (license_id, pruned.id, METER)
    gone = [each.get(name) for each in compare_exposures(fleet, 4)]
    assert gone[-1] is not None
    fleet.exchange(pruned.batch(9, pruned.open_receipt(pruned.receipt).position.seq, has=has))
    assert [each.get(name) for each in compare_exposures(fleet, 5)][-1] == gone[-1]


def test_what_is_gone_uses_the_pool_up_and_is_not_given_again(fleet, database):
    license_id = fleet.grant(token_units_max=400, pool_units=1_000)
    device = fleet.device(license_id)
    device.sync()
    database.take()
    a_day_on(fleet, device, 300)
    database.put_back()
    for _ in range(3):
        reply = obstinate(fleet, device)
    device.take(reply)
    assert limit_of(device) == 400
    device.install()
    device.use(1)
    device.sync()
    assert exposed(fleet, license_id) == 400
    assert limit_of(fleet.device(license_id)) == 1_000 - 301 - 400


def test_an_invoice_proves_itself_and_says_that_records_are_gone(embedded_fleet, tmp_path):
    biller = embedded_fleet
    database = Backup(biller, tmp_path / "backup")
    device = biller.device(biller.grant())
    biller.use(device, 10, biller.clock.now + DAY_S)
    database.take()
    a_day_on(biller, device, 100)
    database.put_back()
    device.use(7, token=installed(device))
    for _ in range(3):
        reply = obstinate(biller, device)
    device.take(reply)
    device.install()
    clone = device.clone()
    device.use(5)
    device.sync()
    clone.use(6)  # forked ledgers are followed again from their batches
    clone.sync()
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert draft["total_minor"] == 10 + 5 + 6
    biller.finalize(draft["id"])
    result = biller.audit(draft["id"])
    assert result.findings == ()
    assert audit.GONE in result.unproven
    biller.close()


def test_one_answer_that_was_lost_gives_nothing_up(fleet, device, database, license_id):
    database.take()
    a_day_on(fleet, device)
    database.put_back()
    obstinate(fleet, device)  # the answer is lost
    device.sync()
    device.sync()
    assert fleet.units(license_id) == 121
    assert fleet.exceptions("records_gone") == []
