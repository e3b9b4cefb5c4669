"""Billing over HTTP and on the command line: the same operations, the same answers."""

import json

import pytest
from billing_fleet import DAY, FEBRUARY, at
from fleet import Api
from starlette.testclient import TestClient

from licensing_server.app import create_app
from meterkit import audit, evidence


@pytest.fixture
def biller(biller):
    device = biller.device(biller.grant())
    biller.use(device, 150, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    return biller


@pytest.fixture
def api(biller):
    with TestClient(create_app(biller.server), raise_server_exceptions=False) as client:
        yield Api(client, biller.made.api_key)


def test_a_run_a_draft_an_invoice_and_its_evidence(api, biller):
    run = api.post("/v1/billing-runs", {"cut_off": FEBRUARY})
    assert (run["number"], run["state"], run["customer"], run["failed"]) == (1, "done", None, [])
    (invoice_id,) = run["invoices"]
    draft = api.get(f"/v1/invoices/{invoice_id}")
    assert (draft["state"], draft["total"]) == ("draft", "1.50")
    api.get(f"/v1/invoices/{invoice_id}/evidence", expect=409)
    final = api.post(f"/v1/invoices/{invoice_id}/finalize", expect=200)
    assert api.post(f"/v1/invoices/{invoice_id}/finalize", expect=200) == final
    answer = api.client.get(f"/v1/invoices/{invoice_id}/evidence", headers=api.headers)
    assert answer.headers["content-type"] == "application/zip"
    assert "INV-000001.zip" in answer.headers["content-disposition"]
    assert audit.recompute(evidence.read_zip(answer.content), {biller.made.fingerprint}).holds
    (listed,) = api.get("/v1/invoices", customer=biller.customer)["items"]
    assert (listed["number"], "lines" in listed, "evidence" in listed) == ("INV-000001", False, False)
    assert api.get("/v1/invoices", customer="cus_none")["items"] == []
    assert api.get("/v1/billing-runs/1")["invoices"] == [invoice_id]
    assert [item["number"] for item in api.get("/v1/billing-runs")["items"]] == [1]


def test_the_same_idempotency_key_makes_one_run(api, biller):
    key = {"Idempotency-Key": "january"}
    first = api.post("/v1/billing-runs", {}, **key)
    biller.clock.now = FEBRUARY + DAY
    assert api.post("/v1/billing-runs", {}, **key) == first
    assert api.post("/v1/billing-runs", {"dry_run": False}, expect=409, **key)["code"] == "idempotency_conflict"
    assert api.post("/v1/billing-runs", {})["number"] == 2


def test_what_is_wrong_is_named(api):
    assert api.post("/v1/billing-runs", {"cut_off": FEBRUARY + DAY}, expect=422)["code"] == "malformed_members"
    assert api.post("/v1/billing-runs", {"cutoff": 1}, expect=422)["code"] == "malformed_members"
    assert api.post("/v1/billing-runs", {"cut_off": "1"}, expect=422)["code"] == "malformed_members"
    api.post("/v1/billing-runs", {"cut_off": FEBRUARY})
    assert api.post("/v1/billing-runs", {"cut_off": FEBRUARY - 1}, expect=409)["code"] == "run_superseded"
    for path in ("/v1/invoices/inv_none", "/v1/invoices/inv_none/evidence", "/v1/billing-runs/9"):
        assert api.get(path, expect=404)["code"] == "not_found"
    assert api.post("/v1/invoices/inv_none/finalize", expect=404)["code"] == "not_found"


def test_a_dry_run_stores_nothing(api):
    seen = api.post("/v1/billing-runs", {"dry_run": True})
    assert [draft["total"] for draft in seen["drafts"]] == ["1.50"]
    assert api.get("/v1/billing-runs")["items"] == []


def run_cli(biller, *args, expect=0):
    done = biller.invoke("--json", *args)
    assert done.exit_code == expect, done.output
    return json.loads(done.stdout) if done.stdout.startswith("{") else done


def test_the_command_line_does_the_same(biller):
    seen = run_cli(biller, "billing", "run", "--cut-off", str(FEBRUARY), "--dry-run")
    assert [draft["total"] for draft in seen["drafts"]] == ["1.50"]
    run = run_cli(
        biller, "billing", "run", "--cut-off", "2026-02-01T00:00:00+01:00", "--customer", biller.customer
    )
    assert (run["cut_off"], run["customer"]) == (FEBRUARY, biller.customer)
    (invoice_id,) = run["invoices"]
    assert run_cli(biller, "billing", "show", "1")["invoices"] == [invoice_id]
    assert len(run_cli(biller, "billing", "list")["items"]) == 1
    assert run_cli(biller, "invoice", "show", invoice_id)["total"] == "1.50"
    assert len(run_cli(biller, "invoice", "list", "--customer", biller.customer)["items"]) == 1


def test_finalizing_and_evidence_on_the_command_line(biller, tmp_path):
    (draft,) = biller.run()
    out = tmp_path / "proof.zip"
    biller.finalize(draft["id"])
    written = run_cli(biller, "invoice", "evidence", draft["id"], "--out", str(out))
    assert written["bytes"] == out.stat().st_size
    assert audit.recompute(evidence.read_zip(out.read_bytes()), {biller.made.fingerprint}).holds
    assert run_cli(biller, "invoice", "finalize", draft["id"])["number"] == "INV-000001"
    shown = biller.invoke("invoice", "show", draft["id"])
    assert shown.exit_code == 0
    assert "calls: detector, per call" in shown.stdout
    assert "1.50" in shown.stdout
    done = biller.invoke("invoice", "finalize", draft["id"])
    assert "INV-000001" in done.stdout


def test_a_run_that_could_not_bill_everyone_says_so(biller):
    biller.spoil_plan()
    done = run_cli(biller, "billing", "run", "--cut-off", str(FEBRUARY), expect=1)
    assert done["state"] == "open"
    assert done["failed"] == [{"customer": biller.customer, "code": "malformed_plan"}]
