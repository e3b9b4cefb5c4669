"""Usage comes in: what does not hold is refused, and what a license says is answered."""

from dataclasses import replace

import pytest
from exchanging import refused, stored_batches, used_device
from fleet import MODEL, PRODUCT, FakeDevice, claims_of

from licensing_server.catalog import service as catalog
from licensing_server.licenses import service as licenses
from licensing_server.usage import store as usage_store
from meterkit import envelopes, limits, signing
from meterkit.canonical import sha256_hex
from meterkit.exchange import BATCH_MEDIA_TYPE, Has, read_reply


def post(client, *texts, **headers):
    body = "\n".join(texts).encode()
    return client.post("/v1/exchanges", content=body, headers={"content-type": BATCH_MEDIA_TYPE} | headers)


@pytest.fixture
def license_id(fleet):
    return fleet.grant()


@pytest.fixture
def device(fleet, license_id):
    return used_device(fleet, license_id)


def test_a_device_that_is_not_known_is_refused(client, fleet, device):
    stranger = replace(device, key=FakeDevice.make(fleet).key)
    answer = post(client, stranger.batch())
    assert (answer.status_code, answer.json()["code"]) == (401, "key_unknown")


def test_another_devices_records_are_no_genesis_of_ones_own(fleet, device, license_id):
    thief = fleet.device(license_id)
    thief.entries, thief.epoch, thief.receipt = list(device.entries), device.epoch, None
    assert refused(fleet.exchange, thief.batch()) == "record_out_of_place"
    assert fleet.units(license_id) == 0


def test_one_request_holds_one_devices_batches(fleet, device, license_id):
    other = fleet.device(license_id)
    other.use(50)
    reply = fleet.exchange(device.batch(), other.batch())
    assert [device.open_receipt(text).device for text in reply.receipts] == [device.id]
    assert fleet.units(license_id) == 21


def test_another_product_is_refused(fleet, device):
    assert refused(fleet.exchange, device.batch(product="drone")) == "audience_wrong"


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_flipped_bit_anywhere_is_refused(fleet, device, license_id, at):
    parts = device.batch().split(".")
    middle = len(parts[at]) // 2
    parts[at] = parts[at][:middle] + ("A" if parts[at][middle] != "A" else "B") + parts[at][middle + 1 :]
    assert refused(fleet.exchange, ".".join(parts)) in {
        "signature_bad",
        "malformed_header",
        "malformed_envelope",
        "key_unknown",
        "wrong_type",
    }
    assert fleet.units(license_id) == 0


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"head": "1" * 64}, "chain_broken"),
        ({"seq_from": 1, "prev": "1" * 64}, "malformed_members"),
        ({"license_id": None}, "record_out_of_place"),
        ({"license_id": "lic_" + "a" * 26}, "record_out_of_place"),
        ({"seq_to": 7}, "malformed_members"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(fleet, device, license_id, changed, code):
    assert refused(fleet.exchange, device.batch(**changed)) == code
    assert (fleet.units(license_id), stored_batches(fleet)) == (0, [])


def test_a_record_changed_and_signed_again_breaks_the_chain(fleet, device, license_id):
    fleet.exchange(device.batch(1, 4))
    bodies = [entry.body for entry in device.entries[4:]]
    bodies[2] = bodies[2].replace(b'"units":5', b'"units":4').replace(b'"to":15', b'"to":14')
    assert bodies[2] != device.entries[6].body
    text = device.batch(5, 8, bodies=tuple(bodies))
    assert refused(fleet.exchange, text) == "chain_broken"
    assert fleet.units(license_id) == 3


def test_a_bad_batch_takes_nothing_with_it_that_came_before(client, fleet, device, license_id):
    bad = device.batch(4, 8, head="1" * 64)
    answer = post(client, device.batch(1, 3), bad)
    reply = read_reply(answer.content)
    assert [device.open_receipt(text).position for text in reply.receipts] == [device.at(3)]
    assert fleet.units(license_id) == 1
    assert post(client, bad).json()["code"] == "chain_broken"


def test_usage_of_two_licenses_is_not_in_one_batch(fleet, device):
    other = fleet.grant()
    device.activate(fleet.code(other))
    device.install()
    device.use(7)
    assert refused(fleet.exchange, device.batch(1)) == "record_out_of_place"
    fleet.exchange(device.batch(1, 8, license_id=device.entries[1].claims["license"]))
    fleet.exchange(device.batch(9))
    assert fleet.units(other) == 7


@pytest.mark.parametrize("state", ["suspended", "ended"])
def test_a_license_that_is_not_active_gets_receipts_only(fleet, device, license_id, state):
    licenses.change_state(fleet.server, license_id, state)
    reply = device.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert fleet.units(license_id) == 21


def test_serials_follow_what_the_device_holds(fleet, device):
    high = fleet.clock.now + 5_000
    has = Has(serial=high, keyring=1, revocations=0, receipt=None)
    reply = fleet.exchange(device.batch(has=has))
    assert device.open_token(reply.token).serial == high + 1


def test_a_serial_that_nobody_gave_bricks_nothing(fleet, device):
    has = Has(serial=limits.INTEGER_MAX, keyring=1, revocations=0, receipt=None)
    assert fleet.exchange(device.batch(has=has)).token is not None
    fleet.clock.advance(7_200)
    assert fleet.exchange(device.batch(has=has)).token is not None


def test_signing_that_is_not_possible_acknowledges_nothing(client, fleet, device, license_id):
    fleet.clock.advance(limits.SIGNING_KEY_LIFE_S + 1)
    answer = post(client, device.batch())
    assert (answer.status_code, answer.json()["code"]) == (503, "signing_unavailable")
    assert (fleet.units(license_id), stored_batches(fleet)) == (0, [])


def test_evidence_is_kept_as_it_was_signed(fleet, device):
    text = device.batch()
    fleet.exchange(text)
    (row,) = stored_batches(fleet)
    assert usage_store.unpack(row.body) == text
    assert row.received_at == fleet.clock.now


def test_a_receipt_signed_as_a_batch_is_none(fleet, device):
    claims = claims_of(envelopes.RECEIPT, device.sync().receipts[0])
    assert refused(fleet.exchange, signing.sign(envelopes.RECEIPT, claims, device.key)) == "wrong_type"


def test_usage_is_accepted_also_when_its_models_no_longer_fit_into_a_token(fleet):
    models = []
    for name in [MODEL, *(f"m{n}" for n in range(9))]:
        if name != MODEL:
            catalog.create_model(
                fleet.server,
                product=PRODUCT,
                name=name,
                unit="call",
                axis=None,
                sha256=[sha256_hex(name.encode())],
            )
        models.append({"name": name, "token_units_max": None, "pool_units": None, "pool_per": "license"})
    license_id = fleet.grant(models=tuple(models))
    device = fleet.device(license_id)
    device.use(21)
    for model in models:
        for n in range(limits.MODEL_DIGESTS_MAX - 1):
            digest = sha256_hex(f"{model['name']} {n}".encode())
            catalog.add_digest(fleet.server, product=PRODUCT, name=model["name"], sha256=digest)
    reply = device.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert fleet.units(license_id) == 21
