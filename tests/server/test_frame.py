"""What every route shares: problems, bodies, scopes, pages, idempotency, health."""

import gzip
import json
import zlib
from dataclasses import replace

import pytest
from fleet import PLAN, PRODUCT, Api
from starlette.testclient import TestClient

from licensing_server import bodies, directory
from licensing_server.api_keys import service as api_keys
from licensing_server.app import ROUTERS, create_app
from licensing_server.auth import Allowed
from licensing_server.pages import LIMIT_MAX
from meterkit import limits
from meterkit.errors import CODES, InputError, ServiceError
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, BATCH_MEDIA_TYPE

PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/v1/keyring"),
    ("POST", "/v1/activations"),
    ("POST", "/v1/exchanges"),
}


def routes():
    for router in ROUTERS:
        for route in router.routes:
            for method in route.methods:
                yield method, route.path, route


def scope_of(route):
    asked = getattr(route, "dependencies", ())  # a plain route asks for nothing
    guards = [each.dependency.scope for each in asked if isinstance(each.dependency, Allowed)]
    return guards[0] if guards else None


PROTECTED = sorted((method, path, scope_of(route)) for method, path, route in routes() if scope_of(route))


def fill(path):
    return path.replace("{version}", "1").replace("{number}", "1").replace("{", "").replace("}", "")


def test_there_are_routes_to_test():
    assert len(PROTECTED) > 30


def test_every_route_is_either_public_by_name_or_asks_for_a_scope():
    open_routes = {(method, path) for method, path, route in routes() if scope_of(route) is None}
    assert open_routes == PUBLIC


def test_no_two_routes_answer_one_request():
    asked = [(method, path) for method, path, _ in routes()]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in PROTECTED])
def test_without_a_key_every_protected_route_answers_alike(client, method, path):
    bare = client.request(method, fill(path))
    wrong = client.request(method, fill(path), headers={"authorization": "Bearer mk_key_nope.nope"})
    assert (bare.status_code, wrong.status_code) == (401, 401)
    assert bare.content == wrong.content
    assert bare.json()["code"] == "unauthenticated"
    assert bare.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path", "scope"), PROTECTED)
def test_a_key_with_every_other_scope_is_forbidden(client, fleet, method, path, scope):
    area = scope.split(":")[0]
    others = sorted(each for each in api_keys.SCOPES if each.split(":")[0] != area and each != "admin")
    others += [f"{area}:read"] if scope == f"{area}:write" else []
    key = api_keys.create(fleet.server, name="others", scopes=others)["key"]
    answer = client.request(method, fill(path), headers={"authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(("method", "path", "scope"), PROTECTED)
def test_a_key_with_exactly_the_scope_is_let_in(client, fleet, method, path, scope):
    key = api_keys.create(fleet.server, name="one", scopes=[scope])["key"]
    answer = client.request(method, fill(path), headers={"authorization": f"Bearer {key}"})
    assert answer.status_code not in {401, 403, 500}


def test_write_includes_read_and_nothing_else(client, fleet):
    key = Api(client, api_keys.create(fleet.server, name="w", scopes=["catalog:write"])["key"])
    key.get("/v1/products")
    assert key.get("/v1/customers", expect=403)["code"] == "forbidden"


def test_a_key_ends_with_its_expiry_and_with_its_revocation(client, fleet, api):
    made = api.post("/v1/api-keys", {"name": "k", "scopes": ["admin"], "expires_at": fleet.clock.now + 10})
    key = Api(client, made["key"])
    key.get("/v1/products")
    fleet.clock.advance(10)
    key.get("/v1/products", expect=401)
    other = api.post("/v1/api-keys", {"name": "k", "scopes": ["admin"]})
    Api(client, other["key"]).get("/v1/products")
    revoked = api.post(f"/v1/api-keys/{other['id']}/revoke", expect=200)
    assert revoked["revoked_at"] == fleet.clock.now
    Api(client, other["key"]).get("/v1/products", expect=401)


@pytest.mark.parametrize(
    "mangle",
    [
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key.upper(),
        lambda key: key.split(".")[0],
        lambda key: key.split(".")[0] + ".",
        lambda key: "." + key.split(".")[1],
        lambda key: key.replace("mk_", "", 1),
        lambda key: key + "\u00ff",
        lambda key: key * 100,
    ],
)
def test_a_key_that_is_not_quite_one_is_none(client, fleet, mangle):
    header = f"Bearer {mangle(fleet.made.api_key)}".encode("latin-1")
    answer = client.get("/v1/products", headers={b"authorization": header})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_the_secret_of_another_key_does_not_fit(client, fleet):
    one = api_keys.create(fleet.server, name="a", scopes=["admin"])["key"]
    two = api_keys.create(fleet.server, name="b", scopes=["admin"])["key"]
    mixed = f"{one.split('.')[0]}.{two.split('.')[1]}"
    assert client.get("/v1/products", headers={"authorization": f"Bearer {mixed}"}).status_code == 401


def test_scopes_come_from_a_closed_list(api):
    refused = api.post("/v1/api-keys", {"name": "k", "scopes": ["root"]}, expect=422)
    assert refused["code"] == "malformed_members"
    api.post("/v1/api-keys", {"name": "k", "scopes": []}, expect=422)


def test_api_keys_are_listed_without_secret_or_hash(api, fleet):
    secret = fleet.made.api_key.split(".")[1]
    text = json.dumps(api.get("/v1/api-keys"))
    assert secret not in text
    assert "hash" not in text


# -- problems


def test_a_refusal_is_a_problem_document(client):
    answer = client.get("/v1/products")
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem == {
        "type": "urn:meterkit:problem:unauthenticated",
        "title": CODES["unauthenticated"].sentence,
        "status": 401,
        "code": "unauthenticated",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/products/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/openapi.json", 404, "not_found"),
        ("DELETE", "/v1/products", 405, "method_not_allowed"),
        ("GET", "/v1/exchanges", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_a_problem_too(client, method, path, status, code):
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_an_unexpected_fault_says_nothing_of_itself(fleet, caplog):
    def broken():
        raise RuntimeError("the secret is mk-secret-ed25519.AAAA")

    app = create_app(replace(fleet.server, clock=broken))
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/v1/activations", content="x.y.z", headers={"content-type": ACTIVATION_MEDIA_TYPE})
        assert answer.status_code == 422  # judged before any clock is read
        answer = client.get("/v1/products", headers={"authorization": f"Bearer {fleet.made.api_key}"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "mk-secret" not in caplog.text


# -- bodies


def test_a_body_must_be_json_by_its_media_type(client, fleet):
    headers = {"authorization": f"Bearer {fleet.made.api_key}"}
    for kind in (None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"):
        sent = headers | ({"content-type": kind} if kind else {})
        answer = client.post("/v1/products", content=b'{"name":"x"}', headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported"), kind
    good = client.post(
        "/v1/products",
        content=b'{"name":"x"}',
        headers=headers | {"content-type": "application/json; charset=UTF-8"},
    )
    assert good.status_code == 201


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"name":"x","name":"y"}', "malformed_json"),
        (b'{"name":1.0}', "malformed_json"),
        (b'{"name":NaN}', "malformed_json"),
        (b'{"name":1e400}', "malformed_json"),
        (b"\xef\xbb\xbf{}", "malformed_json"),
        (b'{"name":"\xff"}', "not_text"),
        (b'{"name":"\\ud800"}', "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b"[]", "malformed_members"),
        (b"null", "malformed_members"),
        (b"{}", "malformed_members"),
        (b'{"name":5}', "malformed_members"),
        (b'{"name":true}', "malformed_members"),
        (b'{"name":"x\\u0000"}', "malformed_members"),
        (b'{"name":""}', "malformed_members"),
        (b'{"name":"x","extra":1}', "malformed_members"),
    ],
)
def test_bodies_are_strict(client, fleet, body, code):
    headers = {"authorization": f"Bearer {fleet.made.api_key}", "content-type": "application/json"}
    answer = client.post("/v1/products", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_nothing_that_was_sent_is_echoed(client, fleet):
    headers = {"authorization": f"Bearer {fleet.made.api_key}"}
    body = {"customer": "SECRET-ONE", "SECRET-TWO": 1, "devices_max": "SECRET-THREE"}
    answer = client.post("/v1/licenses", json=body, headers=headers)
    assert answer.status_code == 422
    assert "SECRET" not in answer.text
    answer = client.get("/v1/products?limit=SECRET&cursor=SECRET", headers=headers)
    assert answer.status_code == 422
    assert "SECRET" not in answer.text


def test_too_large_a_body_is_refused_before_it_is_read(client, fleet):
    headers = {"authorization": f"Bearer {fleet.made.api_key}", "content-type": "application/json"}
    body = b" " * (limits.BODY_BYTES_MAX + 1)
    answer = client.post("/v1/products", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    def in_parts():
        for _ in range(limits.BODY_BYTES_MAX // 65_536 + 1):
            yield b" " * 65_536

    answer = client.post("/v1/products", content=in_parts(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    answer = client.post("/v1/products", content=b"{}", headers=headers | {"content-length": "9" * 5_000})
    assert answer.status_code in {400, 413, 422}


def test_a_gzip_bomb_is_refused_by_its_size(client, fleet):
    bomb = gzip.compress(b" " * (64 * 1024 * 1024))
    headers = {"authorization": f"Bearer {fleet.made.api_key}", "content-type": "application/json"}
    answer = client.post("/v1/products", content=bomb, headers=headers | {"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x1f\x8b",
        gzip.compress(b"{}", mtime=0)[:-1],
        gzip.compress(b"{}", mtime=0) + b"x",
        gzip.compress(b"{}", mtime=0) * 2,
        zlib.compress(b"{}"),
    ],
)
def test_only_one_whole_gzip_member_is_taken(data):
    with pytest.raises(InputError) as refused:
        bodies.gunzip(data, 100)
    assert refused.value.code == "malformed_file"


def test_gzip_to_exactly_the_limit_is_taken():
    assert bodies.gunzip(gzip.compress(b"x" * 100), 100) == b"x" * 100
    with pytest.raises(InputError) as refused:
        bodies.gunzip(gzip.compress(b"x" * 101), 100)
    assert refused.value.code == "too_large"


def test_another_encoding_is_not_taken(client):
    answer = client.post(
        "/v1/exchanges", content=b"x", headers={"content-type": BATCH_MEDIA_TYPE, "content-encoding": "br"}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported")


# -- pages


def test_pages_show_every_item_once_while_others_are_added(api, fleet):
    for place in range(7):
        fleet.clock.advance(place % 2)
        api.post("/v1/products", {"name": f"p{place}"})
    seen, cursor = [], {}
    for step in range(20):
        page = api.get("/v1/products", limit=2, **cursor)
        seen += [item["name"] for item in page["items"]]
        fleet.clock.advance(1)
        if step < 3:
            api.post("/v1/products", {"name": f"late{step}"})
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert sorted(seen) == sorted([PRODUCT, *(f"p{n}" for n in range(7)), *(f"late{n}" for n in range(3))])


@pytest.mark.parametrize("cursor", ["x", "!!", "W10", "WzEsMl0", "W251bGwsInAiXQ", "' OR 1=1--"])
def test_a_cursor_that_no_page_gave_is_refused(api, cursor):
    assert api.get("/v1/products", cursor=cursor, expect=422)["code"] == "malformed_members"


@pytest.mark.parametrize("limit", [0, -1, LIMIT_MAX + 1, "x", 10**30])
def test_a_page_has_bounds(api, limit):
    assert api.get("/v1/products", limit=limit, expect=422)["code"] == "malformed_members"


# -- idempotency


def test_a_creation_asked_again_is_answered_again_and_made_once(api, client, fleet):
    key = {"idempotency-key": "one"}
    first = api.post("/v1/customers", {"name": "A", "time_zone": "UTC"}, **key)
    fleet.clock.advance(60)
    assert api.post("/v1/customers", {"name": "A", "time_zone": "UTC"}, **key) == first
    assert api.post("/v1/customers", {"name": "A", "time_zone": "UTC"}) != first
    refused = api.post("/v1/customers", {"name": "B", "time_zone": "UTC"}, expect=409, **key)
    assert refused["code"] == "idempotency_conflict"
    assert api.post("/v1/products", {"name": "A"}, expect=409, **key)["code"] == "idempotency_conflict"
    other = Api(client, api.post("/v1/api-keys", {"name": "o", "scopes": ["customers:write"]})["key"])
    assert other.post("/v1/customers", {"name": "B", "time_zone": "UTC"}, **key)["name"] == "B"


def test_a_secret_shown_once_is_answered_again_and_stored_sealed(api, fleet):
    license_id = fleet.grant()
    first = api.post(f"/v1/licenses/{license_id}/codes", {}, **{"idempotency-key": "c"})
    again = api.post(f"/v1/licenses/{license_id}/codes", {}, **{"idempotency-key": "c"})
    assert again["code"] == first["code"]
    stored = fleet.stored()
    assert first["id"].encode() in stored
    assert first["code"].split(".")[1].encode() not in stored


def test_a_refused_creation_is_not_remembered(api):
    refused = api.post("/v1/products", {"name": PRODUCT}, expect=409, **{"idempotency-key": "k"})
    assert refused["code"] == "already_exists"
    assert api.post("/v1/plans", {"name": "again", "body": PLAN}, **{"idempotency-key": "k"})["name"] == "again"


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_bounds(api, key):
    refused = api.post("/v1/products", {"name": "x"}, expect=422, **{"idempotency-key": key})
    assert refused["code"] == "malformed_members"


@pytest.mark.parametrize(
    ("path", "query"),
    [("usage", {"model": "a\0b"}), ("exceptions", {"device": "\0"}), ("licenses", {"cursor": "\0"})],
)
def test_a_nul_in_a_query_is_refused_on_every_database(api, path, query):
    assert api.get(f"/v1/{path}", expect=422, **query)["code"] == "malformed_members"


# -- health


def test_health_needs_no_database_and_readiness_does(client, fleet):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}
    fleet.lose_database()
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json()["code"] == "database_unavailable"


def test_readiness_ends_with_the_signing_keys(client, fleet):
    fleet.clock.advance(limits.SIGNING_KEY_LIFE_S + 1)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "signing_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_a_clock_before_the_keyring_signs_nothing(fleet):
    with pytest.raises(ServiceError) as refused:
        fleet.server.check_can_sign("token", 0)
    assert refused.value.code == "signing_unavailable"
    for purpose in directory.PURPOSES:
        fleet.server.check_can_sign(purpose, fleet.clock.now)
