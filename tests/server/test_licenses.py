import pytest
from fleet import MODEL, PRODUCT, START_S

from meterkit import activation, limits


@pytest.fixture
def terms(fleet):
    return {
        "customer": fleet.customer,
        "plan": fleet.plan,
        "product": PRODUCT,
        "models": [{"name": MODEL, "token_units_max": 100, "pool_units": 1_000, "pool_per": "period"}],
        "devices_max": 3,
    }


def test_a_customer_has_a_name_and_a_time_zone(api):
    made = api.post("/v1/customers", {"name": "Müller & Söhne", "time_zone": "Asia/Kathmandu"})
    assert api.get(f"/v1/customers/{made['id']}") == made
    assert made in api.get("/v1/customers")["items"]
    for zone in ("Mars/Olympus", "", "../../etc/passwd", "localtime", "CEST+1"):
        assert (
            api.post("/v1/customers", {"name": "x", "time_zone": zone}, expect=422)["code"] == "malformed_members"
        )


def test_a_license_says_what_it_grants(api, fleet, terms):
    made = api.post("/v1/licenses", terms)
    assert made == api.get(f"/v1/licenses/{made['id']}")
    assert made["state"] == "active"
    assert made["starts_at"] == fleet.clock.now
    assert made["anchor_at"] == START_S - 3_600  # midnight in Berlin
    assert made["token_life_s"] == limits.TOKEN_LIFE_S
    assert made["versions"] == [{"plan": fleet.plan, "version": 1, "starts_at": fleet.clock.now}]
    assert made["models"] == [
        {
            "model": MODEL,
            "unit": "call",
            "token_units_max": 100,
            "pool_units": 1_000,
            "pool_per": "period",
            "accepted_units": 0,
        }
    ]
    assert [item["id"] for item in api.get("/v1/licenses", customer=fleet.customer)["items"]] == [made["id"]]
    assert api.get("/v1/licenses", customer="cus_none")["items"] == []


def test_a_license_holds_the_plan_version_of_its_day(api, fleet, terms):
    body = api.get(f"/v1/plans/{fleet.plan}")["body"]
    first = api.post("/v1/licenses", terms)
    api.post(f"/v1/plans/{fleet.plan}/versions", {"body": body | {"currency": "USD"}})
    second = api.post("/v1/licenses", terms)
    named = api.post("/v1/licenses", terms | {"plan_version": 1})
    assert [each["versions"][0]["version"] for each in (first, second, named)] == [1, 2, 1]
    api.post("/v1/licenses", terms | {"plan_version": 9}, expect=404)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"customer": "cus_" + "a" * 26}, 404),
        ({"plan": "plan_" + "a" * 26}, 404),
        ({"product": "none"}, 404),
        ({"models": [{"name": "none"}]}, 404),
        ({"models": [{"name": MODEL}, {"name": MODEL}]}, 422),
        ({"models": []}, 422),
        ({"models": [{"name": MODEL, "token_units_max": 0}]}, 422),
        ({"models": [{"name": MODEL, "token_units_max": -1}]}, 422),
        ({"models": [{"name": MODEL, "token_units_max": "5"}]}, 422),
        ({"models": [{"name": MODEL, "pool_units": 2**53}]}, 422),
        ({"models": [{"name": MODEL, "pool_per": "day"}]}, 422),
        ({"devices_max": 0}, 422),
        ({"devices_max": True}, 422),
        ({"token_life_s": limits.TOKEN_LIFE_MIN_S - 1}, 422),
        ({"token_life_s": limits.TOKEN_LIFE_MAX_S + 1}, 422),
        ({"grace_s": limits.GRACE_MAX_S + 1}, 422),
        ({"policy": {"limit": "allow"}}, 422),
        ({"fork_policy": "ignore"}, 422),
        ({"features": ["a", "a"]}, 422),
        ({"starts_at": START_S, "ends_at": START_S}, 422),
        ({"ends_at": -1}, 422),
        ({"ends_at": 2**63}, 422),
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(api, terms, changed, status):
    api.post("/v1/licenses", terms | changed, expect=status)


def test_a_license_goes_through_its_states_and_never_back_from_its_end(api, fleet, terms):
    path = f"/v1/licenses/{api.post('/v1/licenses', terms)['id']}"
    assert api.post(f"{path}/suspend", expect=200)["state"] == "suspended"
    assert api.post(f"{path}/suspend", expect=200)["state"] == "suspended"
    assert api.post(f"{path}/resume", expect=200)["state"] == "active"
    fleet.clock.advance(5)
    ended = api.post(f"{path}/end", expect=200)
    assert (ended["state"], ended["ends_at"]) == ("ended", fleet.clock.now)
    for verb in ("suspend", "resume"):
        assert api.post(f"{path}/{verb}", expect=409)["code"] == "state_conflict"


def test_a_license_ends_by_itself(api, fleet, terms):
    made = api.post("/v1/licenses", terms | {"ends_at": fleet.clock.now + 10})
    fleet.clock.advance(9)
    assert api.get(f"/v1/licenses/{made['id']}")["state"] == "active"
    fleet.clock.advance(1)
    assert api.get(f"/v1/licenses/{made['id']}")["state"] == "ended"
    assert api.post(f"/v1/licenses/{made['id']}/codes", {}, expect=403)["code"] == "license_inactive"


def test_an_activation_code_is_shown_once_and_kept_sealed(api, fleet):
    license_id = fleet.grant()
    made = api.post(f"/v1/licenses/{license_id}/codes", {"expires_at": fleet.clock.now + 60})
    code = activation.read_code(made["code"])
    assert code.id == made["id"]
    listed = api.get(f"/v1/licenses/{license_id}/codes")["items"]
    assert [item["id"] for item in listed] == [code.id]
    assert "code" not in listed[0]
    stored = fleet.stored()
    assert repr(code.secret)[2:-1].encode() not in stored
    assert made["code"].split(".")[1].encode() not in stored
    assert code.id.encode() in stored


def test_what_does_not_fit_into_one_token_is_not_granted(api, terms):
    path = f"/v1/products/{PRODUCT}/models"
    names = [f"m{n}" for n in range(40)]
    for n, name in enumerate(names):
        api.post(path, {"name": name, "sha256": [f"{n:064x}", f"{n + 100:064x}"]})
    models = [{"name": name} for name in names]
    assert api.post("/v1/licenses", terms | {"models": models}, expect=413)["code"] == "too_many"
    api.post("/v1/licenses", terms | {"models": models[:15]})


def test_one_files_two_names_are_not_licensed_together(api, terms):
    path = f"/v1/products/{PRODUCT}/models"
    for name in ("by-call", "by-call-too"):
        api.post(path, {"name": name, "sha256": ["a" * 64]})
    models = [{"name": "by-call"}, {"name": "by-call-too"}]
    assert api.post("/v1/licenses", terms | {"models": models}, expect=422)["code"] == "malformed_members"
    api.post("/v1/licenses", terms | {"models": models[:1]})


def test_a_digest_is_not_added_to_a_second_model(api):
    path = f"/v1/products/{PRODUCT}/models"
    api.post(path, {"name": "one", "sha256": ["a" * 64]})
    api.post(path, {"name": "two", "sha256": ["b" * 64]})
    assert api.post(f"{path}/two/digests", {"sha256": "a" * 64}, expect=409)["code"] == "state_conflict"
