"""The same operations as commands, on the same server."""

import json

import click
import pytest
from click.testing import CliRunner
from fleet import DIGEST, MODEL, PLAN, PRODUCT

from licensing_server import shell
from licensing_server.cli import cli
from licensing_server.licenses import service as licenses
from meterkit.canonical import sha256_hex
from meterkit.exchange import read_reply
from meterkit.keys import Trust


@pytest.fixture
def fleet(fleet_of_today):
    """Commands read the system's clock: so does this fleet."""
    return fleet_of_today


@pytest.fixture
def run(fleet):
    def invoke(*arguments, expect=0):
        result = fleet.invoke("--json", *arguments)
        assert result.exit_code == expect, (result.output, result.exception)
        return json.loads(result.stdout) if expect == 0 else result

    return invoke


def walk(command, path=()):
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from walk(each, (*path, name))
    else:
        yield path, command


@pytest.mark.parametrize("path", [" ".join(path) for path, _ in walk(cli)])
def test_every_command_explains_itself(path):
    result = CliRunner().invoke(cli, [*path.split(), "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output
    assert "--directory" in result.output


def test_init_prints_what_is_shown_once_and_refuses_to_do_it_again(tmp_path):
    target = str(tmp_path / "new")
    first = CliRunner().invoke(cli, ["--json", "init", target, "--issuer", "Vendor"])
    made = json.loads(first.stdout)
    assert made["api_key"].startswith("mk_key_")
    assert "offline" in first.stderr
    assert Trust(issuer=made["issuer"], roots=(made["root"],)).fingerprint() == made["fingerprint"]
    again = CliRunner().invoke(cli, ["init", target, "--issuer", "Vendor"])
    assert again.exit_code == 1
    assert again.stdout == ""
    assert again.stderr == (
        f"meterkit-server: This directory already holds a server; nothing was changed. ({target})"
        " [already_initialized]\n"
    )
    public = json.loads(CliRunner().invoke(cli, ["root-key", "--directory", target, "--json"]).stdout)
    assert (public["roots"], public["threshold"]) == ([made["root"]], 1)
    assert public["fingerprint"] == made["fingerprint"]


def test_a_refusal_is_one_line_and_exit_status_one(tmp_path, run):
    result = run("customer", "show", "cus_none", expect=1)
    assert result.stderr == "meterkit-server: There is no such thing here. (customer) [not_found]\n"
    nothing = CliRunner().invoke(cli, ["product", "list"], env={"METERKIT_DIRECTORY": ""})
    assert (nothing.exit_code, "[not_initialized]" in nothing.stderr) == (1, True)
    empty = CliRunner().invoke(cli, ["product", "list"], env={"METERKIT_DIRECTORY": str(tmp_path)})
    assert (empty.exit_code, "[not_initialized]" in empty.stderr) == (1, True)


def test_a_vendor_can_do_everything_by_command(run, tmp_path):
    run("product", "create", "drone")
    assert [item["name"] for item in run("product", "list")["items"]] == [PRODUCT, "drone"]
    model = tmp_path / "model.onnx"
    model.write_bytes(b"\x00" * 3_000_000)
    made = run("model", "create", "drone", "eye", "--file", model, "--unit", "item", "--axis-input", "x")
    assert made["sha256"] == [sha256_hex(model.read_bytes())]
    assert made["axis"] == {"input": "x", "dim": 0}
    assert run("model", "add-digest", "drone", "eye", "--sha256", DIGEST)["sha256"] == [*made["sha256"], DIGEST]
    assert run("model", "show", "drone", "eye")["name"] == "eye"
    assert len(run("model", "list", "drone")["items"]) == 1
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    gold = run("plan", "create", "gold", plan)
    assert run("plan", "add-version", gold["id"], plan)["version"] == 2
    assert run("plan", "show", gold["id"], "--version", 1)["version"] == 1
    assert len(run("plan", "list")["items"]) == 2
    customer = run("customer", "create", "ACME", "--time-zone", "Asia/Tokyo")
    assert run("customer", "show", customer["id"]) == customer
    assert len(run("customer", "list")["items"]) == 2
    granted = run(
        "license", "grant", "--customer", customer["id"], "--plan", gold["id"], "--product", "drone",
        "--model", "eye,token_units_max=500,pool_units=9000,pool_per=period", "--devices-max", 2,
        "--on-limit", "flag", "--feature", "night", "--ends-at", "2099-01-01T00:00:00Z",
    )  # fmt: skip
    assert granted["models"][0]["pool_units"] == 9_000
    assert granted["policy"] == {"expiry": "deny", "limit": "flag", "clock": "deny"}
    assert granted["ends_at"] == 4_070_908_800
    assert run("license", "suspend", granted["id"])["state"] == "suspended"
    assert run("license", "resume", granted["id"])["state"] == "active"
    code = run("code", "create", granted["id"])
    assert code["code"].startswith(f"{code['id']}.")
    assert len(run("code", "list", granted["id"])["items"]) == 1
    assert run("license", "end", granted["id"])["state"] == "ended"
    assert len(run("license", "list", "--customer", customer["id"])["items"]) == 1
    assert run("license", "show", granted["id"])["state"] == "ended"
    key = run("api-key", "create", "reader", "--scope", "usage:read")
    assert run("api-key", "revoke", key["id"])["revoked_at"] is not None
    assert len(run("api-key", "list")["items"]) == 2


def test_devices_and_usage_by_command(run, fleet):
    license_id = fleet.grant()
    device = fleet.device(license_id)
    clone = device.clone()
    device.use(5)
    clone.use(6)
    device.sync()
    clone.sync()
    assert run("device", "show", device.id)["license"] == license_id
    assert len(run("device", "list", "--license", license_id)["items"]) == 1
    assert len(run("device", "tokens", device.id)["items"]) >= 2
    assert run("usage", "--license", license_id, "--model", MODEL)["items"][0]["units"] == 11
    (fork,) = run("exception", "list", "--state", "open")["items"]
    assert run("exception", "resolve", fork["id"], "seen")["resolution"] == "seen"
    assert run("revoke", "device", device.id)["revocations_version"] == 1
    assert len(run("keyring")["keyrings"]) == 1


def test_what_is_decided_about_devices_by_command(run, fleet):
    license_id = fleet.grant(token_units_max=400, pool_units=1_000)
    device = fleet.device(license_id)
    (exposure,) = run("device", "exposures", device.id)["items"]
    assert (exposure["epoch"], exposure["units"]) == (device.epoch, 400)
    assert run("device", "write-off", device.id, device.epoch, "lost at sea")["who"] == "command line"
    assert run("device", "exposures", device.id)["items"][0]["units"] == 0
    assert run("device", "write-offs", device.id)["items"][0]["why"] == "lost at sea"
    assert "[malformed_members]" in run("device", "write-off", device.id, "x", "y", expect=1).stderr
    assert run("device", "declare", device.id, "retired", "sold")["state"] == "retired"
    assert run("device", "declare", device.id, "active", "a mistake")["state"] == "active"
    made = run("device", "replace", device.id, "lost at sea")
    assert run("device", "replacements", license_id)["items"][0]["code"] == made["code"]["id"]
    fleet.device().activate(made["code"]["code"])
    assert run("device", "show", device.id)["state"] == "replaced"


def test_a_stick_is_answered_beside_its_files(run, fleet, tmp_path):
    license_id = fleet.grant()
    device = fleet.device()
    asked = tmp_path / "activate.mkactivation"
    asked.write_text(device.request(fleet.code(license_id)) + "\n")
    run("exchange", asked)
    device.take(read_reply(asked.with_suffix(".mkreply").read_bytes()))
    device.install()
    for _ in range(20):
        device.use(1)
    batches = tmp_path / "usage.mkbatch"
    batches.write_text("\n".join(device.batch(at, at) for at in range(1, 23)) + "\n")
    bad = tmp_path / "bad.mkbatch"
    bad.write_text("x.y.z\n")
    result = run("exchange", batches, bad, expect=1)
    assert [item["result"] for item in json.loads(result.stdout)["items"]] == ["accepted", "malformed_envelope"]
    reply = read_reply(batches.with_suffix(".mkreply").read_bytes())
    assert device.open_receipt(reply.receipts[0]).position == device.position
    problem = json.loads(bad.with_suffix(".mkreply").read_bytes())
    assert (problem["status"], problem["code"]) == (422, "malformed_envelope")
    before = batches.with_suffix(".mkreply").read_bytes()
    run("exchange", batches)
    assert read_reply(batches.with_suffix(".mkreply").read_bytes()).receipts == read_reply(before).receipts
    assert run("usage", "--license", license_id)["items"][0]["units"] == 20
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") and path.suffix != ".mkbatch"]


def test_the_servers_own_trouble_is_not_written_for_a_device(run, fleet, tmp_path):
    device = fleet.device(fleet.grant())
    device.use(1)
    batches = tmp_path / "usage.mkbatch"
    batches.write_text(device.batch())
    licenses_before = licenses.show(fleet.server, device.token.license_id)
    (fleet.server.directory / "keys" / "token.key").write_text("damaged")
    assert "[signing_unavailable]" in run("exchange", batches, expect=1).stderr
    assert not batches.with_suffix(".mkreply").exists()
    assert licenses.show(fleet.server, device.token.license_id) == licenses_before


def test_two_files_never_share_a_reply(run, tmp_path):
    for name in ("a.mkact", "a.mkbatch"):
        (tmp_path / name).write_text("x.y.z")
    run("exchange", tmp_path / "a.mkact", tmp_path / "a.mkbatch", expect=2)
    assert not (tmp_path / "a.mkreply").exists()


def test_people_get_tables_and_lines(fleet):
    def shown(*arguments):
        result = fleet.invoke(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    header, *rows = shown("customer", "list").splitlines()
    assert header.split() == ["id", "name", "time_zone", "created_at"]
    assert rows[0].split()[:3] == [fleet.customer, "ACME", "Europe/Berlin"]
    lines = shown("customer", "show", fleet.customer).splitlines()
    assert lines[0].split() == ["id", fleet.customer]
    assert lines[3].endswith("Z")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1767225600", 1_767_225_600), ("2026-01-01T01:00:00+01:00", 1_767_225_600)],
)
def test_an_instant_is_read(text, seconds):
    assert shell.INSTANT(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "2026-01-01", "2026-01-01T00:00:00", "1" * 30, "1.5"])
def test_what_is_no_instant_is_refused(text):
    with pytest.raises(click.BadParameter):
        shell.INSTANT(text)


@pytest.mark.parametrize("model", ["x,token_units_max=a", "x,other=1", "x,pool_units=1,pool_units=2"])
def test_a_model_option_that_makes_no_sense_is_refused(run, fleet, model):
    run("license", "grant", "--customer", fleet.customer, "--plan", fleet.plan, "--product", PRODUCT,
        "--model", model, expect=2)  # fmt: skip
