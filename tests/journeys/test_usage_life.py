"""A usage record's life, through real processes: counted, folded, handed over, receipted, invoiced, audited."""

import json
import subprocess

from real_server import BIN

GRADUATED = {150: "10.50", 400: "13.00"}  # 100 at 0.10, the rest at 0.01


def draw_up(server, license_customer: str) -> dict:
    """Run billing and finalize; gives the finalized invoice. A second later: a cut-off names a run."""
    server.move_clock(1)
    server.ask("POST", "/billing-runs", {"customer": license_customer})
    drafts = [each for each in server.ask("GET", "/invoices")["items"] if each["state"] == "draft"]
    assert len(drafts) == 1
    return server.ask("POST", f"/invoices/{drafts[0]['id']}/finalize")


def audit(path, *options: str) -> tuple[int, dict]:
    command = [BIN / "meterkit", "audit", path, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


def test_usage_over_http_is_counted_receipted_invoiced_and_audited(server, device, model_path, tmp_path):
    license_id = server.grant(limit=1_000)
    device("activate", server.code(license_id), server.url)
    server.stop()
    for calls in (50, 60, 40):
        assert device("run", model_path, calls)["delivered"] == calls
    server.start()
    device("sync")

    receipted = (device.path / "receipt.jws").read_bytes()
    assert totals(receipted) == {("mul", "call"): 150}
    assert server.ask("GET", f"/usage?license={license_id}")["items"][0]["units"] == 150

    invoice = draw_up(server, server.customer)
    document = server.ask("GET", f"/invoices/{invoice['id']}")
    amounts = {line["charge"]: (line["quantity"], line["amount"]) for line in document["lines"]}
    assert amounts["calls"] == (150, GRADUATED[150])
    assert amounts["fee"][1] == "49.00"

    evidence = tmp_path / "evidence.zip"
    evidence.write_bytes(server.ask("GET", f"/invoices/{invoice['id']}/evidence"))
    status, result = audit(evidence, "--root", server.fingerprint)
    assert (status, result["holds"], result["pinned"]) == (0, True, True)
    assert audit(evidence, "--root", "0" * 64)[0] == 1
    place = 1 + [line["charge"] for line in document["lines"]].index("calls")
    told = subprocess.run(
        [BIN / "meterkit", "explain", evidence, "--line", str(place)], capture_output=True, text=True, check=True
    )
    assert f"This line bills {GRADUATED[150]} EUR" in told.stdout
    assert "whose head is" in told.stdout


def totals(receipt: bytes) -> dict:
    path = subprocess.run(
        [BIN / "meterkit", "inspect", "/dev/stdin", "--json"], input=receipt, capture_output=True, check=True
    )
    says = json.loads(path.stdout)[0]["says"]
    return {(each["model"], each["unit"]): each["units"] for each in says["totals"]}


def test_usage_by_files_only_opens_no_socket(server, offline_device, model_path, tmp_path):
    license_id = server.grant(limit=1_000)
    request = tmp_path / "first.mkact"
    offline_device("request", server.code(license_id), request)
    server.run_cli("exchange", str(request))
    assert {each["part"]: each["state"] for each in offline_device("import", request.with_suffix(".mkreply"))} == {
        "keyring": "taken",
        "token": "taken",
    }
    assert offline_device("run", model_path, 150) == {"delivered": 150, "code": None}

    stick = tmp_path / "stick.mkbatch"
    assert offline_device("export", stick) == {"batches": 1}
    server.run_cli("exchange", str(stick))
    server.run_cli("exchange", str(stick))  # the stick was put in twice
    parts = {each["part"]: each["state"] for each in offline_device("import", stick.with_suffix(".mkreply"))}
    assert parts == {"receipt": "taken", "token": "taken"}
    assert offline_device("status")["unreceipted_records"] <= 1  # the record of the new token itself
    assert server.ask("GET", f"/usage?license={license_id}")["items"][0]["units"] == 150


def test_a_reply_that_was_edited_changes_nothing(server, offline_device, tmp_path):
    request = tmp_path / "first.mkact"
    offline_device("request", server.code(server.grant()), request)
    server.run_cli("exchange", str(request))
    reply = json.loads(request.with_suffix(".mkreply").read_bytes())
    head, body, tail = reply["token"].split(".")
    reply["token"] = f"{head}.{body[:-4]}{'A' if body[-4] != 'A' else 'B'}{body[-3:]}.{tail}"
    edited = tmp_path / "edited.mkreply"
    edited.write_text(json.dumps(reply, separators=(",", ":")))
    parts = {each["part"]: (each["state"], each["code"]) for each in offline_device("import", edited)}
    assert parts == {"keyring": ("taken", None), "token": ("refused", "signature_bad")}
    assert offline_device("status")["code"] == "not_activated"


def test_late_usage_is_trued_up_at_its_own_periods_tier(server, device, model_path, tmp_path):
    """100 in time at 0.10 each; 50 more of the same month arrive after its invoice: 50 at 0.01, not at 0.10."""
    device("activate", server.code(server.grant(limit=10_000)), server.url)
    assert device("run", model_path, 100)["delivered"] == 100
    device("sync")
    assert device("run", model_path, 50)["delivered"] == 50  # and then it is offline for two months

    server.move_clock(62 * 86_400)
    first = draw_up(server, server.customer)
    before = tmp_path / "before.zip"
    before.write_bytes(server.ask("GET", f"/invoices/{first['id']}/evidence"))
    document = server.ask("GET", f"/invoices/{first['id']}")
    usage = [line for line in document["lines"] if line["charge"] == "calls" and line["quantity"]]
    assert [(line["quantity"], line["amount"]) for line in usage] == [(100, "10.00")]

    device("sync")
    second = draw_up(server, server.customer)
    assert server.ask("GET", f"/invoices/{first['id']}") == document
    assert server.ask("GET", f"/invoices/{first['id']}/evidence") == before.read_bytes()
    lines = server.ask("GET", f"/invoices/{second['id']}")["lines"]
    late = [line for line in lines if line["charge"] == "calls"]
    assert [(line["quantity"], line["amount"], line["late"]) for line in late] == [(150, "0.50", True)]
    assert late[0]["service_start_at"] == usage[0]["service_start_at"]

    after = tmp_path / "after.zip"
    after.write_bytes(server.ask("GET", f"/invoices/{second['id']}/evidence"))
    assert audit(after, "--root", server.fingerprint)[0] == 0
    assert audit(before, "--root", server.fingerprint)[0] == 0
