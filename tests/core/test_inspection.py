"""The command `meterkit`: what it says of a file, and that it never says more than it checked."""

import json
import time
import zipfile
from io import BytesIO

import evidence_world
import pytest
from click.testing import CliRunner
from vendor import PRODUCT, Vendor, call_model, code, new_id

from device_sdk import Device
from meterkit import envelopes, signing
from meterkit.cli import meterkit
from meterkit.evidence import write_zip
from meterkit.positions import Position


@pytest.fixture(scope="module")
def vendor():
    return Vendor(now=int(time.time()))


@pytest.fixture(scope="module")
def files(vendor, tmp_path_factory):
    """One of each file, made by a real device and a vendor's real keys."""
    path = tmp_path_factory.mktemp("files")
    with Device.open(path / "device", trust=vendor.trust, product=PRODUCT) as device:
        request = device.request_activation(code())
        reply = vendor.answer_activation(request, [call_model("m", "0" * 64, 5)])
        device.take_reply(reply)
        batches = device.make_batches()
    answer = vendor.accept(batches)
    made = {
        "request.mkact": request.encode(),
        "first.mkreply": reply,
        "usage.mkbatch": "\n".join(batches).encode() + b"\n",
        "second.mkreply": answer,
        "token.jws": json.loads(reply)["token"].encode(),
        "keyring.json": json.dumps(vendor.keyring()).encode(),
        "evidence.zip": write_zip(evidence_world.story()[0]),
    }
    for name, data in made.items():
        (path / name).write_bytes(data)
    return path


def run(*arguments: object):
    return CliRunner().invoke(meterkit, [str(argument) for argument in arguments])


def states(*arguments: object) -> list[tuple[str, str, str | None]]:
    done = run("inspect", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return [(each["kind"], each["state"], each["code"]) for each in json.loads(done.stdout)]


def root(vendor) -> str:
    return f"--root={vendor.root.verify_key.text}"


def test_a_token_holds_only_from_a_root_that_was_named(vendor, files):
    token, keyring = files / "token.jws", files / "keyring.json"
    assert states(token) == [("token", "unproven", None)]
    assert states(token, "--with", keyring) == [("token", "unproven", None)]
    assert states(token, "--with", keyring, root(vendor)) == [("token", "holds", None)]
    assert run("verify", token, "--with", keyring, root(vendor)).exit_code == 0
    for unproven in ([], ["--with", keyring]):
        assert run("verify", token, *unproven).exit_code != 0


def test_another_vendors_root_proves_nothing(vendor, files):
    other = Vendor(now=vendor.now)
    assert states(files / "keyring.json", root(other)) == [("keyring", "fails", "threshold_unmet")]
    assert states(files / "token.jws", "--with", files / "keyring.json", root(other))[0][1] != "holds"


def test_a_reply_is_judged_part_by_part(vendor, files):
    assert states(files / "first.mkreply", root(vendor)) == [("keyring", "holds", None), ("token", "holds", None)]
    with_keys = ["--with", files / "keyring.json", root(vendor)]
    assert states(files / "second.mkreply", *with_keys) == [("receipt", "holds", None)]


def test_a_batch_is_proven_by_the_devices_own_request(files):
    assert states(files / "request.mkact") == [("activation", "holds", None)]
    assert states(files / "usage.mkbatch") == [("batch", "unproven", None)]
    assert states(files / "usage.mkbatch", "--with", files / "request.mkact") == [("batch", "holds", None)]


@pytest.mark.parametrize("name", ["token.jws", "usage.mkbatch", "request.mkact"])
def test_a_changed_payload_fails_or_is_nothing_that_is_signed(vendor, files, name, tmp_path):
    head, body, tail = (files / name).read_text().strip().split(".")
    changed = tmp_path / name
    changed.write_text(f"{head}.{body[:30]}{'A' if body[30] != 'A' else 'B'}{body[31:]}.{tail}")
    done = run(
        "verify", changed, "--with", files / "first.mkreply", "--with", files / "request.mkact", root(vendor)
    )
    assert done.exit_code != 0


def test_a_token_of_another_kind_of_claims_does_not_hold(vendor, files, tmp_path):
    """A receipt's envelope with a token's claims, signed with the right key for receipts."""
    token = vendor.token(f"dev_{vendor.root.kid}", Position(epoch=new_id("ep")), [call_model("m", "0" * 64)])
    claims = json.loads(envelopes.unverified_parts(envelopes.TOKEN, token).payload)
    posing = tmp_path / "posing.jws"
    posing.write_text(signing.sign(envelopes.RECEIPT, claims, vendor.online))
    with_keys = ["--with", files / "keyring.json", root(vendor)]
    assert states(posing, *with_keys) == [("receipt", "fails", "malformed_members")]


def test_evidence_is_recomputed_not_merely_read(files, tmp_path):
    assert states(files / "evidence.zip") == [("evidence", "unproven", None)]
    source = zipfile.ZipFile(files / "evidence.zip")
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(
                name, data.replace(b'"quantity":120', b'"quantity":121') if name == "invoice.json" else data
            )
    forged = tmp_path / "forged.zip"
    forged.write_bytes(made.getvalue())
    assert states(forged) == [("evidence", "fails", "audit_differs")]
    assert run("audit", files / "evidence.zip").exit_code == 0
    assert run("audit", forged).exit_code != 0


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xfe", b"{}", b"[]", b"[1]", b"[[]]", b"[[", b"PK\x03\x04", b"a.b.c", b"{" * 99]
)
def test_what_is_nothing_of_ours_is_refused_as_such(data, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    done = run("inspect", path)
    assert done.exit_code != 0 or "fails" in done.output
    assert done.exception is None or hasattr(done.exception, "code"), repr(done.exception)


def test_inspecting_tells_a_person_what_it_says(files):
    done = run("inspect", files / "token.jws")
    assert "token: unproven" in done.output
    assert "models[0].limit: 5" in done.output
    assert "Z)" in done.output  # instants as dates
