"""A reply's parts stand alone; what is none of ours changes nothing, over the wire or from a stick."""

import json

import pytest
import vendor as vendors
from device_site import MUL, START_S, Site, records, session, unchanged, use
from vendor import Vendor

from device_sdk import MeterkitError
from meterkit import limits
from meterkit.errors import InputError
from meterkit.exchange import Reply
from meterkit.positions import Position

WINDOW_S = limits.WINDOW_S


def code_of(running) -> str | None:
    try:
        use(running)
    except MeterkitError as fault:
        return fault.code
    return None


@pytest.fixture
def device(site):
    return site.activated(MUL)


@pytest.fixture
def running(device):
    return session(device)


# -- parts stand alone


def test_each_part_of_a_reply_stands_alone(site, device, running):
    use(running, 2)
    site.vendor.now = site.time.now_s
    good = Reply(**reply_parts(site, device))
    forger = Vendor(now=site.time.now_s)
    forged = {
        "keyrings": ((*forger.keyring(2),),),
        "revocations": forger.revocations(5),
        "receipts": (forger.token(device.id, Position(epoch="ep_" + "a" * 26), [MUL]),),
        "token": forger.token(device.id, Position(epoch="ep_" + "a" * 26), [MUL]),
    }
    for name, value in forged.items():
        other = Site(site.path.with_name(f"device-{name}"), vendor=Vendor(now=START_S))
        fresh = other.activated(MUL)
        use(session(fresh), 2)
        parts = {**reply_parts(other, fresh), name: value}
        outcome = fresh.take_reply(Reply(**parts).to_bytes())
        assert len(outcome.refused) == 1, (name, outcome)
        assert name.startswith(outcome.refused[0].part)
        assert [each.state for each in outcome.taken].count("taken") == 3
        other.close()
    assert not device.take_reply(good.to_bytes()).refused


def reply_parts(site: Site, device) -> dict:
    accepted = json.loads(site.vendor.accept(device.make_batches(), [MUL]))
    return {
        "keyrings": ((*site.vendor.keyring(2),),),
        "revocations": site.vendor.revocations(1),
        "receipts": tuple(accepted["receipts"]),
        "token": accepted["token"],
    }


GARBAGE = {
    "nothing": b"",
    "html": b"<!doctype html><title>Sign in to the hotel</title>",
    "null": b"null",
    "a list": b"[]",
    "text": b'"reply"',
    "not utf-8": b"\xff\xfe{}",
    "too deep": b"[" * 100_000,
    "too large": b'"' + b"a" * limits.REPLY_BYTES_MAX + b'"',
    "a member too few": b'{"v":1}',
    "a float": Reply().to_bytes().replace(b'"next_sync_s":86400', b'"next_sync_s":86400.0'),
    "a huge number": Reply().to_bytes().replace(b"86400", b"9" * 5000),
    "negative": Reply().to_bytes().replace(b"86400", b"-1"),
    "another version": Reply().to_bytes().replace(b'"v":1', b'"v":2'),
    "a member too many": Reply().to_bytes().replace(b'"v":1', b'"v":1,"w":1'),
    "a member twice": Reply().to_bytes().replace(b'"v":1', b'"v":1,"v":1'),
    "a token that is a number": Reply().to_bytes().replace(b'"token":null', b'"token":5'),
    "receipts that are text": Reply().to_bytes().replace(b'"receipts":[]', b'"receipts":"x"'),
    "a keyring of numbers": Reply().to_bytes().replace(b'"keyrings":[]', b'"keyrings":[[1]]'),
    "cut": Reply().to_bytes()[:-1],
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_changes_nothing_on_disk(site, device, running, kind):
    use(running, 2)
    device.status()
    with unchanged(site.path), pytest.raises(InputError):
        device.take_reply(GARBAGE[kind])
    assert code_of(running) is None


BROKEN_PARTS = ["", "x", ".", "..", "a.b.c", "a" * 8_000, "é.é.é", "=.=.=", "eyJ9.eyJ9.AA"]


@pytest.mark.parametrize("text", BROKEN_PARTS)
def test_a_reply_of_broken_parts_changes_nothing_but_the_plan(site, device, running, text):
    use(running)
    device.status()
    before = device.status()
    for parts in ({"token": text}, {"revocations": text}, {"receipts": [text]}, {"keyrings": [[text]]}):
        body = json.dumps({**json.loads(Reply().to_bytes()), **parts}, ensure_ascii=False).encode()
        with unchanged(site.path, "sync.json"):
            try:
                outcome = device.take_reply(body)
            except InputError:
                continue
            assert len(outcome.refused) == 1
    assert device.status().license == before.license
    assert code_of(running) is None


# -- as files


def test_a_stick_carries_batches_out_and_the_reply_back(site, device, running, tmp_path):
    use(running, 3)
    stick = tmp_path / "out.mkbatch"
    assert device.export_batch(stick) == 1
    assert device.export_batch(stick) == 1
    reply = tmp_path / "in.mkreply"
    reply.write_bytes(site.vendor.accept(stick.read_text().split(), [MUL]))
    for _ in range(3):
        assert not device.import_reply(reply).refused
    assert device.status().unreceipted_records == 1  # the new token's
    assert len(records(device, "token")) == 2


def test_an_activation_goes_by_stick_too(site, tmp_path):
    device = site.open()
    request = tmp_path / "ask.mkact"
    code = vendors.code()
    device.export_activation(code, request)
    secret = code.partition(".")[2]
    assert secret not in request.read_text()
    reply = tmp_path / "in.mkreply"
    reply.write_bytes(site.vendor.answer_activation(request.read_text().strip(), [MUL]))
    assert not device.import_reply(reply).refused
    use(session(device))


def test_a_refusal_in_a_file_is_raised_as_what_it_is(site, device, tmp_path):
    reply = tmp_path / "in.mkreply"
    reply.write_text(json.dumps({"type": "about:blank", "status": 403, "code": "license_inactive", "detail": "x"}))
    with unchanged(site.path), pytest.raises(MeterkitError) as caught:
        device.import_reply(reply)
    assert caught.value.code == "license_inactive"


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_in_a_file_changes_nothing(site, device, tmp_path, kind):
    path = tmp_path / "in.mkreply"
    path.write_bytes(GARBAGE[kind])
    with unchanged(site.path), pytest.raises(InputError):
        device.import_reply(path)
    with unchanged(site.path), pytest.raises(InputError):
        device.import_reply(tmp_path / "no-such.mkreply")


def test_an_export_to_nowhere_is_a_typed_error(device, tmp_path):
    with pytest.raises(MeterkitError) as caught:
        device.export_batch(tmp_path / "no" / "such" / "folder.mkbatch")
    assert caught.value.code == "directory_unusable"


def test_an_export_is_whole_or_not_at_all(device, tmp_path):
    device.export_batch(tmp_path / "out.mkbatch")
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.mkbatch"]
