"""Devices come in: activation, places, tokens, revocation."""

import gzip
from dataclasses import replace

import pytest
from fleet import MODEL, START_S, FakeDevice, claims_of

from licensing_server.database import write
from licensing_server.devices import service as devices
from licensing_server.devices import store as device_store
from licensing_server.licenses import service as licenses
from meterkit import activation, envelopes, limits, signing
from meterkit.errors import MeterkitError
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, PROBLEM_MEDIA_TYPE, read_reply
from meterkit.keyrings import follow
from meterkit.keys import SigningKey, Trust
from meterkit.licenses import Policy
from meterkit.positions import Position
from meterkit.revocations import Revocations, open_revocations


def refused(call, *args, **kwargs):
    with pytest.raises(MeterkitError) as error:
        call(*args, **kwargs)
    return error.value.code


def post(client, text):
    return client.post("/v1/activations", content=text, headers={"content-type": ACTIVATION_MEDIA_TYPE})


def test_activation_answers_with_all_that_a_device_needs(client, fleet):
    license_id = fleet.grant(features=("night",), grace_s=3_600)
    device = fleet.device()
    answer = post(client, device.request(fleet.code(license_id)))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    reply = read_reply(answer.content)
    trust = Trust(issuer=fleet.server.issuer, roots=fleet.made.roots)
    keyring = follow(list(reply.keyrings[0]), trust=trust, held=None)
    assert keyring == fleet.keyring()
    token = device.open_token(reply.token)
    assert (token.device, token.license_id, token.features) == (device.id, license_id, ("night",))
    assert (token.iat, token.nbf, token.exp) == (START_S, START_S, START_S + limits.TOKEN_LIFE_S)
    assert token.anchor == device.position
    assert token.serial == START_S + 1
    assert token.time_floor is None
    assert (reply.receipts, reply.revocations, reply.models) == ((), None, (MODEL,))


def test_an_activation_may_be_compressed_too(client, fleet):
    request = fleet.device().request(fleet.code(fleet.grant()))
    headers = {"content-type": ACTIVATION_MEDIA_TYPE, "content-encoding": "gzip"}
    assert (
        client.post("/v1/activations", content=gzip.compress(request.encode()), headers=headers).status_code == 200
    )
    bomb = client.post("/v1/activations", content=gzip.compress(b"A" * 1_000_000), headers=headers)
    assert (bomb.status_code, bomb.json()["code"]) == (413, "too_large")


def test_the_device_is_listed_with_its_tokens(api, fleet):
    license_id = fleet.grant()
    device = fleet.device(license_id)
    shown = api.get(f"/v1/devices/{device.id}")
    assert (shown["id"], shown["license"], shown["state"]) == (device.id, license_id, "active")
    assert "activation_request" not in shown
    assert shown in api.get("/v1/devices", license=license_id)["items"]
    assert api.get("/v1/devices", license="lic_" + "a" * 26)["items"] == []
    assert api.get("/v1/devices", license="x", expect=422)["code"] == "malformed_members"
    tokens = api.get(f"/v1/devices/{device.id}/tokens")["items"]
    assert [each["jti"] for each in tokens] == [device.token.jti]
    assert "body" not in tokens[0]


def test_a_code_activates_as_many_devices_as_there_are_places(fleet):
    license_id = fleet.grant(devices_max=2)
    code = fleet.code(license_id)
    one, two, three = fleet.device(), fleet.device(), fleet.device()
    one.activate(code)
    two.activate(code)
    assert refused(three.activate, code) == "code_used_up"
    assert refused(devices.show, fleet.server, three.id) == "not_found"
    one.activate(code)  # the same device asks again freely
    one.activate(fleet.code(license_id))


def test_a_place_is_free_once_token_and_grace_have_ended(fleet):
    license_id = fleet.grant(devices_max=1, token_life_s=7_200, grace_s=3_600)
    code = fleet.code(license_id)
    fleet.device().activate(code)
    late = fleet.device()
    fleet.clock.advance(7_200 + 3_600 - 1)
    assert refused(late.activate, code) == "code_used_up"
    fleet.clock.advance(1)
    late.activate(code)


def test_a_device_that_lost_its_place_gets_receipts_only(fleet):
    license_id = fleet.grant(devices_max=1, token_life_s=7_200, grace_s=0)
    away = fleet.device(license_id)
    away.use(3)
    fleet.clock.advance(7_200)
    fleet.device(license_id)
    reply = away.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert fleet.units(license_id) == 3


def test_asking_again_gives_the_same_token_for_a_while(fleet):
    code = fleet.code(fleet.grant())
    device = fleet.device()
    first = device.activate(code).token
    assert device.activate(code).token == first
    fleet.clock.advance(3_601)
    assert device.activate(code).token != first


def test_serials_grow_across_licenses_and_with_the_clock(fleet):
    fleet.clock.advance(60)
    device = fleet.device(fleet.grant())
    first = device.serial
    fleet.clock.advance(-30)  # the server's clock was set right
    device.activate(fleet.code(fleet.grant()))
    assert device.serial == first + 1
    fleet.clock.advance(5_000)
    device.activate(fleet.code(fleet.grant()))
    assert device.serial == fleet.clock.now + 1


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"proof": "0" * 64}, "proof_wrong"),
        ({"code_id": "code_" + "a" * 26}, "proof_wrong"),
        ({"product": "other"}, "audience_wrong"),
        ({"position": Position(epoch="ep_" + "a" * 26, seq=0, head="1" * 64)}, "malformed_members"),
    ],
)
def test_a_request_that_does_not_hold_is_refused(fleet, changed, code):
    device = fleet.device()
    assert refused(device.activate, fleet.code(fleet.grant()), **changed) == code
    assert refused(devices.show, fleet.server, device.id) == "not_found"


def test_the_proof_of_another_device_is_none(fleet):
    code = fleet.code(fleet.grant())
    one, two = fleet.device(), fleet.device()
    stolen = activation.proof(activation.read_code(code).secret, one.id)
    assert refused(two.activate, code, proof=stolen) == "proof_wrong"


def test_a_request_signed_by_another_key_is_refused(fleet):
    code = fleet.code(fleet.grant())
    device = fleet.device()
    claims = claims_of(envelopes.ACTIVATION, device.request(code))
    forged = signing.sign(envelopes.ACTIVATION, claims, SigningKey(b"f" * 32))
    assert refused(devices.activate, fleet.server, forged) == "key_unknown"


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "€", "x" * 20_000])
def test_what_is_no_envelope_is_a_problem(client, text):
    answer = post(client, text.encode())
    assert answer.status_code in {413, 422}
    assert answer.headers["content-type"] == PROBLEM_MEDIA_TYPE


def test_a_code_ends_with_its_expiry(fleet):
    license_id = fleet.grant()
    code = fleet.code(license_id, expires_at=START_S + 10)
    fleet.device().activate(code)
    fleet.clock.advance(10)
    assert refused(fleet.device().activate, code) == "code_expired"


@pytest.mark.parametrize("state", ["suspended", "ended"])
def test_a_license_that_is_not_active_activates_nothing(fleet, state):
    license_id = fleet.grant()
    code = fleet.code(license_id)
    licenses.change_state(fleet.server, license_id, state)
    assert refused(fleet.device().activate, code) == "license_inactive"


def test_a_token_never_outlasts_its_license(fleet):
    for left_s in (1, 100, limits.TOKEN_LIFE_MIN_S, 3 * 86_400, 8 * 86_400, 60 * 86_400):
        ends_at = fleet.clock.now + left_s
        device = fleet.device(fleet.grant(ends_at=ends_at))
        token = device.token
        assert token.iat < token.exp
        assert token.exp + token.grace_s <= ends_at
        assert token.license_ends == ends_at
        assert token.exp + token.grace_s == min(ends_at, START_S + limits.TOKEN_LIFE_S + limits.GRACE_S)


def test_a_license_that_starts_later_gives_a_token_that_does(fleet):
    device = fleet.device(fleet.grant(starts_at=START_S + 86_400))
    assert (device.token.iat, device.token.nbf) == (START_S, START_S + 86_400)
    assert device.token.exp == START_S + 86_400 + limits.TOKEN_LIFE_S


def test_a_device_moves_to_another_license_and_an_old_request_does_not_move_it_back(fleet):
    first, second = fleet.grant(), fleet.grant()
    device = fleet.device()
    old = device.request(fleet.code(first))
    devices.activate(fleet.server, old)
    device.activate(fleet.code(second))
    fleet.clock.advance(7_200)
    reply = devices.activate(fleet.server, old)
    assert device.open_token(reply.token).license_id == second
    assert devices.show(fleet.server, device.id)["license"] == second


def test_one_device_key_belongs_to_one_product(api, fleet):
    api.post("/v1/products", {"name": "drone"})
    api.post("/v1/products/drone/models", {"name": MODEL, "sha256": ["0" * 64]})
    device = fleet.device(fleet.grant())
    other = fleet.grant(product="drone")
    assert refused(device.activate, fleet.code(other), product="drone") == "product_wrong"


def test_a_receipt_comes_along_where_the_position_is_accepted(fleet):
    license_id = fleet.grant()
    device = fleet.device(license_id)
    device.use(4)
    accepted = device.sync().receipts[0]
    assert device.activate(fleet.code(license_id)).receipts == (accepted,)
    device.use(1)
    reply = device.activate(fleet.code(license_id))
    assert reply.receipts == ()
    assert device.token.anchor == device.position


def test_signing_that_is_not_possible_changes_nothing(fleet):
    code = fleet.code(fleet.grant())
    device = fleet.device()
    fleet.clock.advance(limits.SIGNING_KEY_LIFE_S + 1)
    assert refused(device.activate, code) == "signing_unavailable"
    assert refused(devices.show, fleet.server, device.id) == "not_found"


# -- revocation


def opened(fleet, reply):
    return open_revocations(
        reply.revocations, issuer=fleet.server.issuer, keyring=fleet.keyring(), held=Revocations()
    )


def test_what_is_revoked_is_told_with_the_next_reply(api, fleet):
    license_id = fleet.grant()
    told, revoked = fleet.device(license_id), fleet.device(license_id)
    told.use(1)
    assert told.sync().revocations is None
    assert api.post(f"/v1/tokens/{told.token.jti}/revoke", expect=200)["revocations_version"] == 1
    assert api.post(f"/v1/devices/{revoked.id}/revoke", expect=200)["revocations_version"] == 2
    assert api.post(f"/v1/devices/{revoked.id}/revoke", expect=200)["revocations_version"] == 2
    revocations = opened(fleet, told.sync())
    assert (revocations.version, revocations.devices) == (2, frozenset({revoked.id}))
    assert len(revocations.tokens) == 1


def test_a_revoked_token_is_not_given_again(api, fleet):
    device = fleet.device(fleet.grant())
    device.use(1)
    first = device.sync().token
    api.post(f"/v1/tokens/{device.token.jti}/revoke", expect=200)
    assert fleet.exchange(device.batch()).token not in {None, first}


def test_a_revoked_device_gets_receipts_only(api, fleet):
    license_id = fleet.grant()
    device = fleet.device(license_id)
    device.use(5)
    api.post(f"/v1/devices/{device.id}/revoke", expect=200)
    reply = device.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert fleet.units(license_id) == 5
    assert refused(device.activate, fleet.code(license_id)) == "device_revoked"


def test_a_revoked_license_has_ended(api, fleet):
    license_id = fleet.grant()
    code = fleet.code(license_id)
    device = fleet.device(license_id)
    api.post(f"/v1/licenses/{license_id}/revoke", expect=200)
    assert api.get(f"/v1/licenses/{license_id}")["state"] == "ended"
    assert refused(fleet.device().activate, code) == "license_inactive"
    device.use(1)
    reply = device.sync()
    assert (len(reply.receipts), reply.token) == (1, None)
    assert opened(fleet, reply).licenses == frozenset({license_id})


def test_an_entry_goes_when_all_that_it_names_has_ended(api, fleet):
    short = fleet.device(fleet.grant(token_life_s=3_600, grace_s=0))
    runs_on = fleet.device(fleet.grant(token_life_s=3_600, grace_s=0, policy=Policy(expiry="flag")))
    watcher = fleet.device(fleet.grant())
    api.post(f"/v1/tokens/{short.token.jti}/revoke", expect=200)
    api.post(f"/v1/tokens/{runs_on.token.jti}/revoke", expect=200)
    watcher.begin()
    assert opened(fleet, watcher.sync()).tokens == {short.token.jti, runs_on.token.jti}
    fleet.clock.advance(3_600)
    api.post(f"/v1/devices/{watcher.id}/revoke", expect=200)
    assert opened(fleet, watcher.sync()).tokens == {runs_on.token.jti}


@pytest.mark.parametrize("path", ["/v1/tokens/tok_none", "/v1/devices/dev_none", "/v1/licenses/lic_none"])
def test_what_is_not_there_cannot_be_revoked(api, path):
    assert api.post(f"{path}/revoke", expect=404)["code"] == "not_found"


def test_a_change_behind_ones_back_is_seen(fleet):
    device = fleet.device(fleet.grant())
    with write(fleet.server) as connection:
        stored = device_store.find(connection, device.id)
        assert device_store.update(connection, stored)
        assert not device_store.update(connection, stored)
        assert not device_store.update(connection, replace(stored, id=FakeDevice.make(fleet).id))


def test_the_keyring_is_public(client, fleet):
    shown = client.get("/v1/keyring").json()
    assert (shown["issuer"], len(shown["keyrings"])) == (fleet.server.issuer, 1)
    trust = Trust(issuer=shown["issuer"], roots=fleet.made.roots)
    assert follow(shown["keyrings"][0], trust=trust, held=None) == fleet.keyring()
