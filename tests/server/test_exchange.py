"""Usage comes in: once, in whatever pieces it was sent."""

import gzip
import random
import threading

import pytest
from exchanging import stored_batches, stored_records, used_device
from fleet import MODEL, START_S

from licensing_server.database import read
from licensing_server.devices import service as devices
from meterkit import limits
from meterkit.exchange import BATCH_MEDIA_TYPE, read_reply
from meterkit.ledger import Total
from meterkit.positions import Position

METER = (MODEL, "call")


def post(client, *texts, **headers):
    body = "\n".join(texts).encode()
    return client.post("/v1/exchanges", content=body, headers={"content-type": BATCH_MEDIA_TYPE} | headers)


@pytest.fixture
def license_id(fleet):
    return fleet.grant()


@pytest.fixture
def device(fleet, license_id):
    return used_device(fleet, license_id)


def test_a_batch_is_answered_with_a_receipt_and_a_token_anchored_at_it(client, fleet, device, license_id):
    answer = post(client, device.batch())
    reply = read_reply(answer.content)
    receipt = device.open_receipt(reply.receipts[0])
    assert receipt.position == device.position
    assert receipt.totals == {METER: Total(units=21)}
    token = device.open_token(reply.token)
    assert token.anchor == receipt.position
    assert (token.license_id, token.time_floor) == (license_id, None)
    assert token.serial > device.serial
    assert reply.keyrings == ()  # it has version 1 already
    assert fleet.units(license_id) == 21


def test_the_same_batch_a_hundred_times_counts_once(client, fleet, device, license_id):
    text = device.batch()
    first = read_reply(post(client, text).content)
    for _ in range(99):
        again = read_reply(post(client, text).content)
        assert (again.receipts, again.token) == (first.receipts, first.token)
    assert fleet.units(license_id) == 21
    assert len(stored_batches(fleet)) == 1
    fleet.clock.advance(90 * 86_400)
    assert read_reply(post(client, text).content).receipts == first.receipts


def test_threads_that_send_the_same_at_once_are_counted_once(fleet, license_id):
    fleets = [fleet.device(license_id) for _ in range(2)]
    texts = []
    for made in fleets:
        for units in (1, 2, 3):
            made.use(units)
        texts += [made.batch(1, 3), made.batch(1, 5), made.batch()]
    start = threading.Barrier(6)
    failures = []

    def send(text):
        try:
            start.wait()
            for _ in range(5):
                fleet.exchange(text)
        except Exception as error:  # noqa: BLE001 - whatever it was, the test must fail
            failures.append(error)

    threads = [threading.Thread(target=send, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert fleet.units(license_id) == 12
    records = stored_records(fleet)
    assert len(records) == len({(row.device, row.epoch, row.seq) for row in records}) == 6
    numbers = [row.acceptance for row in stored_batches(fleet)]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    assert fleet.exceptions() == []


def cuts(last, *, seed):
    """Any cutting, repetition and overlap that, in the end, has sent everything."""
    chance = random.Random(seed)  # noqa: S311 - a test's, on purpose
    pieces = []
    at = 0
    while at < last:
        upto = chance.randint(at + 1, last)
        pieces.append((chance.randint(1, at + 1), upto))
        at = upto
    for _ in range(3):
        first = chance.randint(1, last)
        pieces.insert(chance.randint(0, len(pieces)), (first, chance.randint(first, last)))
    return pieces


@pytest.mark.parametrize("seed", range(12))
def test_however_it_is_cut_sent_again_and_overlapped_the_sums_are_the_same(fleet, device, license_id, seed):
    last = len(device.entries)
    for first, upto in cuts(last, seed=seed):
        receipts = fleet.exchange(device.batch(first, upto)).receipts
        assert len(receipts) == 1
    receipt = device.open_receipt(receipts[0])
    assert (receipt.position, receipt.totals) == (device.position, {METER: Total(units=21)})
    assert fleet.units(license_id) == 21
    assert fleet.exceptions() == []


def test_cut_in_three_in_one_request_is_one_receipt(client, fleet, device, license_id):
    whole = len(device.entries)
    reply = read_reply(post(client, device.batch(1, 3), device.batch(4, 5), device.batch(6, whole)).content)
    assert len(reply.receipts) == 1
    assert device.open_receipt(reply.receipts[0]).position == device.position
    assert device.open_token(reply.token).anchor == device.position
    assert fleet.units(license_id) == 21


def test_after_a_hole_the_receipt_says_where_to_go_on_from(fleet, device, license_id):
    first = fleet.exchange(device.batch(5, 6))
    beginning = device.open_receipt(first.receipts[0])
    assert beginning.position == Position(epoch=device.epoch)
    assert (beginning.totals, first.token) == ({}, None)
    fleet.exchange(device.batch(1, 3))
    later = fleet.exchange(device.batch(6, 7))
    assert device.open_receipt(later.receipts[0]).position == device.at(3)
    assert later.token is None
    assert fleet.units(license_id) == 1
    assert fleet.exceptions() == []
    fleet.exchange(device.batch(4, 8))
    assert fleet.units(license_id) == 21


def test_sent_in_the_wrong_order_in_one_request_what_fits_is_taken(fleet, device):
    reply = fleet.exchange(device.batch(4, 8), device.batch(1, 3), device.batch(7, 8))
    assert [device.open_receipt(text).position for text in reply.receipts] == [device.at(3)]
    assert device.open_token(reply.token).anchor == device.at(3)


def test_a_receipt_at_one_position_is_the_same_whatever_way_led_there(first_fleet, tmp_path):
    receipts = []
    for name, pieces in (("whole", [(1, 8)]), ("cut", [(1, 3), (2, 5), (6, 8)])):
        (tmp_path / name).mkdir()
        fleet = first_fleet.copy(tmp_path / name, seed=5)
        device = fleet.device(fleet.grant())
        for units in (1, 2, 3, 4, 5, 6):
            device.use(units)
        for first, last in pieces:
            reply = fleet.exchange(device.batch(first, last))
        receipts.append(device.open_receipt(reply.receipts[-1]))
        fleet.remove()
    assert receipts[0] == receipts[1]


def test_an_empty_batch_tells_how_far_a_branch_has_reported(fleet, device):
    device.sync()
    fleet.clock.advance(900)
    text = device.batch()
    first = fleet.exchange(text)
    assert device.open_receipt(first.receipts[0]).position == device.position
    assert first.token is not None
    assert fleet.exchange(text).receipts == first.receipts
    assert [row.through for row in stored_batches(fleet)] == [START_S, START_S + 900]
    device.use(1)
    device.sync()
    with read(fleet.server) as connection:
        tips = devices.ledger_store.read_tips(connection, device.id, device.epoch)
    assert [(tip.position, tip.through) for tip in tips] == [(device.position, fleet.clock.now)]


def test_batches_may_be_made_one_after_another_before_any_reply(fleet, device, license_id):
    texts = [device.batch(1, 4), device.batch(5, 8)]
    device.use(10)
    texts.append(device.batch(9, 9))
    for text in texts:
        fleet.exchange(text)
    assert fleet.units(license_id) == 31


def test_gzip_is_taken_and_its_bombs_are_not(client, fleet, device, license_id):
    text = device.batch()
    good = client.post(
        "/v1/exchanges",
        content=gzip.compress(text.encode()),
        headers={"content-type": BATCH_MEDIA_TYPE, "content-encoding": "gzip"},
    )
    assert (good.status_code, fleet.units(license_id)) == (200, 21)
    bomb = client.post(
        "/v1/exchanges",
        content=gzip.compress(b"A" * (limits.EXCHANGE_BYTES_MAX + 1)),
        headers={"content-type": BATCH_MEDIA_TYPE, "content-encoding": "gzip"},
    )
    assert (bomb.status_code, bomb.json()["code"]) == (413, "too_large")


def test_a_request_holds_one_to_sixteen_batches(client, device):
    text = device.batch()
    assert post(client, *[text] * 16).status_code == 200
    answer = post(client, *[text] * 17)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many")
    assert post(client).json()["code"] == "malformed_envelope"
    assert client.post("/v1/exchanges", content=text).json()["code"] == "media_type_unsupported"
    wire = b"A" * (limits.EXCHANGE_WIRE_BYTES_MAX + 1)
    big = client.post("/v1/exchanges", content=wire, headers={"content-type": BATCH_MEDIA_TYPE})
    assert (big.status_code, big.json()["code"]) == (413, "too_large")


def test_a_file_may_hold_any_number(fleet, license_id):
    device = fleet.device(license_id)
    for _ in range(40):
        device.use(1)
    texts = [device.batch(at, at) for at in range(1, 43)]
    reply = fleet.exchange(*texts)
    assert device.open_receipt(reply.receipts[0]).position == device.position
    assert fleet.units(license_id) == 40
