"""A server put back from a backup, and a device that knows more than it does: real processes, nothing lost."""

import shutil
import subprocess

from real_server import BIN

from licensing_server.settings import DATABASE_FILE


def test_a_device_hands_over_again_what_its_server_forgot(server, device, model_path, tmp_path):
    license_id = server.grant(limit=1_000)
    device("activate", server.code(license_id), server.url)
    device("run", model_path, 50)
    device("sync")
    server.stop()
    shutil.copyfile(server.directory / DATABASE_FILE, tmp_path / "backup")
    server.start()
    device("run", model_path, 60)
    device("sync")
    server.stop()
    shutil.copyfile(tmp_path / "backup", server.directory / DATABASE_FILE)
    server.move_clock(5)
    server.start()
    assert units(server, license_id) == 50

    device("sync")  # the answer asks for the records since
    device("sync")
    assert units(server, license_id) == 110
    device("run", model_path, 40)
    device("sync")
    assert units(server, license_id) == 150
    kinds = [each["kind"] for each in server.ask("GET", "/exceptions")["items"]]
    assert kinds == ["server_rollback"]
    assert device("status")["code"] is None

    server.move_clock(1)
    server.ask("POST", "/billing-runs", {"customer": server.customer})
    (draft,) = server.ask("GET", "/invoices")["items"]
    invoice = server.ask("POST", f"/invoices/{draft['id']}/finalize")
    evidence = tmp_path / "evidence.zip"
    evidence.write_bytes(server.ask("GET", f"/invoices/{invoice['id']}/evidence"))
    subprocess.run([BIN / "meterkit", "audit", evidence, "--root", server.fingerprint], check=True)


def units(server, license_id: str) -> int:
    (item,) = server.ask("GET", f"/usage?license={license_id}")["items"]
    assert item["quarantined"] == 0
    return item["units"]
