"""Accounts over HTTP and on the command line: every route and command once, by the same rules."""

import json

import pytest
from account_ways import FALLING
from billing_fleet import DAY, FEBRUARY, MARCH, at
from fleet import Api
from starlette.testclient import TestClient

from licensing_server.app import create_app

ALL = (
    ("POST", "/v1/tax-rates"),
    ("POST", "/v1/customers/{customer}/credits"),
    ("POST", "/v1/customers/{customer}/refunds"),
    ("POST", "/v1/invoices/{invoice}/payments"),
    ("POST", "/v1/invoices/{invoice}/void"),
    ("POST", "/v1/invoices/{invoice}/disputes"),
    ("POST", "/v1/invoices/{invoice}/concessions"),
    ("POST", "/v1/disputes/dsp_none/resolve"),
    ("GET", "/v1/customers/{customer}/tax-rates"),
    ("GET", "/v1/customers/{customer}/credits"),
    ("GET", "/v1/customers/{customer}/account"),
    ("GET", "/v1/customers/{customer}/disputes"),
    ("GET", "/v1/invoices/{invoice}/payments"),
    ("GET", "/v1/credit-notes"),
)


@pytest.fixture
def api(biller):
    with TestClient(create_app(biller.server), raise_server_exceptions=False) as client:
        yield Api(client, biller.made.api_key)


@pytest.fixture
def invoice(biller) -> dict:
    """100 calls at 1.00, of January."""
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls_at(FALLING))))
    biller.use(device, 100, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    return biller.finalize(biller.run()[0]["id"])


def test_only_who_may_read_or_write_billing_may(api, biller, invoice):
    keys = {
        scope: api.post("/v1/api-keys", {"name": scope, "scopes": [scope]})["key"]
        for scope in ("billing:read", "billing:write", "customers:write")
    }
    for method, path in ALL:
        url = path.format(customer=biller.customer, invoice=invoice["id"])
        assert api.client.request(method, url).status_code == 401
        may = {"billing:read", "billing:write"} if method == "GET" else {"billing:write"}
        for scope, key in keys.items():
            answer = api.client.request(method, url, headers={"authorization": f"Bearer {key}"})
            assert (answer.status_code == 403) == (scope not in may), (url, scope, answer.status_code)


def test_taxes_and_credits(api, biller):
    rate = {"name": "VAT", "percent": "19", "starts_at": 0, "customer": biller.customer}
    assert api.post("/v1/tax-rates", rate)["customers"] == 1
    assert api.post("/v1/tax-rates", {"name": "VAT", "percent": "16", "starts_at": FEBRUARY})["customers"] == 1
    shown = api.get(f"/v1/customers/{biller.customer}/tax-rates")["items"]
    assert [each["percent"] for each in shown] == ["19", "16"]
    for wrong in ({"percent": "101"}, {"percent": "1.00001"}, {"percent": 19}, {"name": ""}, {"since_run": 1}):
        assert api.post("/v1/tax-rates", rate | wrong, expect=422)["code"] == "malformed_members"
    assert api.post("/v1/tax-rates", rate | {"customer": "cus_" + "a" * 26}, expect=404)["code"] == "not_found"
    path = f"/v1/customers/{biller.customer}/credits"
    key = {"Idempotency-Key": "deposit"}
    body = {"currency": "EUR", "amount": "10.00", "priority": 1, "expires_at": MARCH, "starts_at": 0}
    first = api.post(path, body, **key)
    assert api.post(path, body, **key) == first
    assert api.post(path, body | {"amount": "11"}, expect=409, **key)["code"] == "idempotency_conflict"
    for number in range(3):
        biller.clock.now += 1
        api.post(path, {"currency": "EUR", "amount": f"{number + 1}"})
    found, cursor = [], None
    while True:
        page = api.get(path, limit=3, **({"cursor": cursor} if cursor else {}))
        found += [each["amount_minor"] for each in page["items"]]
        cursor = page.get("next")
        if not cursor:
            break
    assert sorted(found) == [100, 200, 300, 1000]
    assert api.post(path, {"currency": "XXY", "amount": "1"}, expect=422)["code"] == "currency_wrong"
    (item,) = api.get(f"/v1/customers/{biller.customer}/account")["items"]
    assert (item["prepaid"], item["owes"], item["balance"]) == ("16.00", "0.00", "0.00")
    for each in ("account", "credits", "tax-rates", "disputes"):
        assert api.get(f"/v1/customers/cus_none/{each}", expect=404)["code"] == "not_found"


def test_payments(api, invoice):
    path = f"/v1/invoices/{invoice['id']}/payments"
    key = {"Idempotency-Key": "sepa-1"}
    first = api.post(path, {"reference": "SEPA 1", "amount": "40"}, **key)
    assert api.post(path, {"reference": "SEPA 1", "amount": "40"}, **key) == first
    shown = api.get(path)
    assert (shown["paid_minor"], shown["open_minor"], len(shown["items"])) == (4000, 6000, 1)
    assert api.post(path, {"reference": "x", "amount": "60.01"}, expect=409)["code"] == "state_conflict"
    late = {"reference": "x", "paid_at": FEBRUARY + DAY}
    assert api.post(path, late, expect=422)["code"] == "malformed_members"
    api.post(path, {"reference": "SEPA 2"})
    assert api.get(f"/v1/invoices/{invoice['id']}")["state"] == "paid"
    assert api.post("/v1/invoices/inv_none/payments", {"reference": "x"}, expect=404)["code"] == "not_found"


def test_a_void_document_is_shown_as_one_and_replaced(api, biller, invoice):
    path = f"/v1/invoices/{invoice['id']}/void"
    assert api.post(path, {}, expect=422)["code"] == "malformed_members"
    gone = api.post(path, {"note": "wrong address"}, expect=200)
    assert (gone["state"], gone["void_run"], gone["number"]) == ("void", 2, "INV-000001")
    assert api.post(path, {"note": "again"}, expect=409)["code"] == "state_conflict"
    assert api.get(f"/v1/invoices/{invoice['id']}") == gone
    biller.clock.now += DAY
    again = biller.finalize(biller.run()[0]["id"])
    assert again["replaces"] == ["INV-000001"]
    assert api.get(f"/v1/invoices/{invoice['id']}/payments")["replaced_by"] == again["number"]


def test_disputes_concessions_credit_notes_and_refunds(api, biller, invoice):
    path = f"/v1/invoices/{invoice['id']}"
    held = api.post(f"{path}/disputes", {"line": 1, "note": "not ours"})
    assert api.post(f"{path}/disputes", {"line": 1, "note": "x"}, expect=409)["code"] == "state_conflict"
    assert api.post(f"{path}/disputes", {"line": 2, "note": "x"}, expect=404)["code"] == "not_found"
    assert api.post(f"{path}/disputes", {"line": 0, "note": "x"}, expect=422)["code"] == "malformed_members"
    end = f"/v1/disputes/{held['id']}/resolve"
    assert api.post(end, {"outcome": "lost", "note": "x"}, expect=422)["code"] == "malformed_members"
    assert api.post(end, {"outcome": "conceded", "note": "x"}, expect=422)["code"] == "malformed_members"
    ended = api.post(end, {"outcome": "conceded", "amount": "10", "note": "x"}, expect=200)
    assert ended["outcome"] == "conceded"
    assert api.post("/v1/disputes/dsp_none/resolve", {"outcome": "stands", "note": "x"}, expect=404)
    api.post(f"{path}/concessions", {"line": 1, "amount": "5", "note": "x"})
    too_much = {"line": 1, "amount": "85.01", "note": "x"}
    assert api.post(f"{path}/concessions", too_much, expect=409)["code"] == "state_conflict"
    shown = api.get(f"/v1/customers/{biller.customer}/disputes")
    assert [each["outcome"] for each in shown["disputes"]] == ["conceded"]
    assert [each["amount_minor"] for each in shown["concessions"]] == [1000, 500]
    biller.clock.now += DAY
    biller.finalize(biller.run()[0]["id"])
    (note,) = api.get("/v1/credit-notes")["items"]
    assert (note["number"], note["total_minor"]) == ("CN-000001", -1500)
    assert api.get("/v1/credit-notes", customer="cus_none")["items"] == []
    back = f"/v1/customers/{biller.customer}/refunds"
    named = {"currency": "EUR", "reference": "SEPA"}
    assert api.post(back, {"amount": "15.01", **named}, expect=409)["code"] == "state_conflict"
    key = {"Idempotency-Key": "back"}
    first = api.post(back, {"amount": "15", **named}, **key)
    assert api.post(back, {"amount": "15", **named}, **key) == first
    (item,) = api.get(f"/v1/customers/{biller.customer}/account")["items"]
    assert (item["owes"], item["balance"]) == ("100.00", "0.00")


def run_cli(biller, *args, expect=0):
    done = biller.invoke("--json", *args)
    assert done.exit_code == expect, done.output
    return json.loads(done.stdout) if expect == 0 else done.stderr


def test_every_command_does_the_same(biller, invoice):
    customer, number = biller.customer, invoice["id"]
    assert run_cli(biller, "account", "set-tax", "VAT", "19", "--starts-at", "1", "--customer", customer)[
        "customers"
    ]
    assert run_cli(biller, "account", "set-tax", "VAT", "16", "--starts-at", FEBRUARY)["customers"] == 1
    assert len(run_cli(biller, "account", "taxes", customer)["items"]) == 2
    assert (
        run_cli(biller, "account", "add-credit", customer, "7.50", "EUR", "--priority", 3)["amount_minor"] == 750
    )
    assert [each["priority"] for each in run_cli(biller, "account", "credits", customer)["items"]] == [3]
    assert run_cli(biller, "account", "show", customer)["items"][0]["prepaid"] == "7.50"
    assert run_cli(biller, "invoice", "pay", number, "--reference", "A", "--amount", "1")["open_minor"] == 9900
    assert run_cli(biller, "invoice", "payments", number)["paid_minor"] == 100
    assert "[state_conflict]" in run_cli(biller, "invoice", "void", number, "--note", "x", expect=1)
    held = run_cli(biller, "dispute", "open", number, "--line", 1, "--note", "not ours")
    assert "[state_conflict]" in run_cli(
        biller, "dispute", "concede", number, "--line", 1, "--amount", "1", "--note", "x", expect=1
    )
    run_cli(biller, "dispute", "resolve", held["id"], "--outcome", "stands", "--note", "theirs")
    run_cli(biller, "dispute", "concede", number, "--line", 1, "--amount", "2", "--note", "x")
    assert [each["outcome"] for each in run_cli(biller, "dispute", "list", customer)["items"]] == ["stands"]
    biller.clock.now += DAY
    (draft,) = biller.run()
    biller.finalize(draft["id"])  # commands read the system's clock, and no key is good for then
    note = run_cli(biller, "invoice", "finalize", draft["id"])
    assert (note["kind"], note["total"]) == ("credit_note", "-2.00")  # untaxed, as what it lowers
    assert run_cli(biller, "invoice", "refund", customer, "2", "EUR", "--reference", "B")["amount_minor"] == 200
    assert "[state_conflict]" in run_cli(biller, "invoice", "void", note["id"], "--note", "x", expect=1)


def test_what_is_shown_says_what_is_due(biller, invoice):
    run_cli(biller, "account", "add-credit", biller.customer, "30", "EUR", "--starts-at", "0")
    gone = run_cli(biller, "invoice", "void", invoice["id"], "--note", "again")
    assert (gone["state"], gone["number"]) == ("void", "INV-000001")
    biller.clock.now += DAY
    (draft,) = biller.run()
    biller.finalize(draft["id"])
    for command in ("finalize", "show"):
        shown = biller.invoke("invoice", command, draft["id"])
        assert shown.exit_code == 0
        assert "due" in shown.stdout
        assert "70.00" in shown.stdout
        assert "100.00" in shown.stdout
    assert "100.00" in biller.invoke("invoice", "show", invoice["id"]).stdout
