import pytest
from fleet import DIGEST, MODEL, PLAN, PRODUCT

from meterkit import limits
from meterkit.canonical import sha256_hex

AXIS = {"input": "images", "dim": 0}


def test_a_product_is_named_once(api):
    made = api.post("/v1/products", {"name": "drone"})
    assert made["name"] == "drone"
    assert api.post("/v1/products", {"name": "drone"}, expect=409)["code"] == "already_exists"
    assert "drone" in [item["name"] for item in api.get("/v1/products")["items"]]


@pytest.mark.parametrize("name", ["", " x", "a/b", "é", "x" * 65, "' OR 1=1--", "-x"])
def test_a_name_is_of_letters_digits_and_few_signs(api, name):
    assert api.post("/v1/products", {"name": name}, expect=422)["code"] == "malformed_members"


def test_a_model_is_known_by_its_files_and_counted_one_way(api):
    path = f"/v1/products/{PRODUCT}/models"
    made = api.post(path, {"name": "frames", "unit": "item", "axis": AXIS, "sha256": [DIGEST]})
    assert made == api.get(f"{path}/frames")
    assert (made["unit"], made["axis"], made["sha256"]) == ("item", AXIS, [DIGEST])
    assert api.post(path, {"name": "frames", "sha256": [DIGEST]}, expect=409)["code"] == "already_exists"
    assert {item["name"] for item in api.get(path)["items"]} == {MODEL, "frames"}


@pytest.mark.parametrize(
    "changed",
    [
        {"unit": "item", "axis": None},
        {"unit": "call", "axis": AXIS},
        {"unit": "frame"},
        {"unit": "item", "axis": {"input": "x", "dim": 32}},
        {"unit": "item", "axis": {"input": "x"}},
        {"sha256": []},
        {"sha256": [DIGEST, DIGEST]},
        {"sha256": [DIGEST.upper()]},
        {"sha256": [sha256_hex(bytes([n])) for n in range(limits.MODEL_DIGESTS_MAX + 1)]},
    ],
)
def test_a_model_that_no_token_could_carry_is_refused(api, changed):
    body = {"name": "m", "sha256": [DIGEST], **changed}
    assert api.post(f"/v1/products/{PRODUCT}/models", body, expect=422)["code"] == "malformed_members"


def test_another_file_may_count_as_a_model_up_to_a_limit(api):
    path = f"/v1/products/{PRODUCT}/models/{MODEL}"
    for n in range(limits.MODEL_DIGESTS_MAX - 1):
        api.post(f"{path}/digests", {"sha256": sha256_hex(bytes([n]))})
    assert len(api.get(path)["sha256"]) == limits.MODEL_DIGESTS_MAX
    api.post(f"{path}/digests", {"sha256": DIGEST})  # known already: nothing changes
    refused = api.post(f"{path}/digests", {"sha256": sha256_hex(b"one too many")}, expect=413)
    assert refused["code"] == "too_many"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/v1/products/none/models"),
        ("get", f"/v1/products/{PRODUCT}/models/none"),
        ("get", "/v1/plans/plan_none"),
        ("get", "/v1/customers/cus_none"),
        ("get", "/v1/licenses/lic_none"),
        ("get", "/v1/devices/dev_none"),
        ("get", "/v1/devices/dev_none/tokens"),
        ("get", "/v1/licenses/lic_none/codes"),
        ("get", "/v1/products/%00/models"),
        ("get", "/v1/products/' OR 1=1--/models"),
    ],
)
def test_what_is_not_there_is_not_found(api, method, path):
    assert getattr(api, method)(path, expect=404)["code"] == "not_found"


def test_a_plan_keeps_every_version(api):
    made = api.post("/v1/plans", {"name": "gold", "body": PLAN})
    dearer = {**PLAN, "currency": "USD"}
    second = api.post(f"/v1/plans/{made['id']}/versions", {"body": dearer})
    assert (made["version"], second["version"]) == (1, 2)
    assert api.get(f"/v1/plans/{made['id']}")["body"] == dearer
    assert api.get(f"/v1/plans/{made['id']}/versions/1")["body"] == PLAN
    assert api.get(f"/v1/plans/{made['id']}/versions/3", expect=404)["code"] == "not_found"
    for version in ("0", "-1", "x", str(2**70)):
        api.get(f"/v1/plans/{made['id']}/versions/{version}", expect=422)
    assert api.post("/v1/plans", {"name": "gold", "body": PLAN}, expect=409)["code"] == "already_exists"
    assert {(item["name"], item["version"]) for item in api.get("/v1/plans")["items"]} == {
        ("gold", 2),
        ("standard", 1),
    }


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"currency": "XXZ"}, "malformed_plan"),
        ({"charges": []}, "malformed_plan"),
        ({"extra": 1}, "malformed_plan"),
        ({"close": {"policy": "estimate", "days": 3}}, "malformed_plan"),
    ],
)
def test_a_plan_that_cannot_be_billed_is_refused(api, changed, code):
    assert api.post("/v1/plans", {"name": "p", "body": PLAN | changed}, expect=422)["code"] == code


def test_a_price_that_cannot_be_charged_is_refused(api):
    charge = PLAN["charges"][0] | {"price": {"model": "per_unit", "unit_amount": "-1"}}
    refused = api.post("/v1/plans", {"name": "p", "body": PLAN | {"charges": [charge]}}, expect=422)
    assert refused["code"] == "malformed_price"
