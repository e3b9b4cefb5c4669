"""Tokens, revocations and keyrings that a device takes, keeps, and finds in its directory again."""

import itertools
import json
import os
import threading
import time

import pytest
import vendor as vendors
from device_site import MUL, ROWS, START_S, Site, digests, limited, recorded, records, session, unchanged, use
from vendor import call_model

from device_sdk import DenialError, Device, DeviceError, MeterkitError, Trust
from device_sdk.keeper import tick
from device_sdk.vault import Vault
from meterkit import envelopes, limits, signing
from meterkit.canonical import from_base64url
from meterkit.exchange import Batch, Reply, open_batch
from meterkit.keys import SigningKey

WINDOW_S = limits.WINDOW_S


def opened(site: Site, texts: list[str]) -> list[Batch]:
    return [open_batch(text, lambda kid: site.vendor.keys[kid])[1] for text in texts]


def codes(outcome) -> dict[str, list[str | None]]:
    return {
        part: [each.code for each in group]
        for part, group in itertools.groupby(outcome.taken, key=lambda each: each.part)
    }


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


# -- tokens


def test_an_older_token_is_ignored(site, device, running):
    use(running)
    with device.counter.transaction() as tx:
        here = tx.position()
    site.vendor.now = site.time.now_s
    older, newer = (site.vendor.token(device.id, here, [MUL]) for _ in range(2))
    assert not device.take_reply(Reply(token=newer).to_bytes()).refused
    with unchanged(site.path, "sync.json"):
        (taken,) = device.take_reply(Reply(token=older).to_bytes()).taken
    assert (taken.state, taken.code) == ("ignored", "serial_rollback")
    (again,) = device.take_reply(Reply(token=newer).to_bytes()).taken
    assert again.state == "taken"
    assert len(records(device, "token")) == 2


def test_two_tokens_with_one_serial_are_not_both_taken(site, device):
    with device.counter.transaction() as tx:
        here = tx.position()
    serial = site.time.now_s + 1_000
    first, second = (site.vendor.token(device.id, here, [MUL], serial=serial) for _ in range(2))
    device.take_reply(Reply(token=first).to_bytes())
    (taken,) = device.take_reply(Reply(token=second).to_bytes()).taken
    assert taken.code == "serial_rollback"


def test_an_old_token_file_that_is_put_back_is_refused_and_breaks_nothing(site, device, running):
    """It would be named again in the ledger, whose chain does not allow it: all usage after it would be lost."""
    use(running, 2)
    old = (site.path / "token.jws").read_bytes()
    site.sync(device, limited(MUL, 3))
    use(running)
    (site.path / "token.jws").write_bytes(old)
    site.time.run_on(WINDOW_S)
    assert code_of(running) == "serial_rollback"
    assert device.status().code == "serial_rollback"
    again = site.open()
    assert code_of(session(again)) == "serial_rollback"
    site.sync(device, MUL)
    use(running, 4)
    assert recorded(device) == 7
    site.vendor.accept(device.make_batches())
    assert site.vendor.units("mul") == 7


def cut_short(site, device, **changes) -> None:
    """What is left when whoever installs a token is killed once it is stored, before its record is committed."""
    with device.counter.transaction() as tx:
        here = tx.position()
    text = site.vendor.token(device.id, here, [MUL], **changes)
    device.holder.keep_token(device.holder.open_token(text, serial_min=0))


@pytest.mark.parametrize("reopened", [True, False])
def test_an_installation_that_was_cut_short_is_finished_and_no_unit_changes_its_license(
    site, device, running, reopened
):
    use(running, 3)
    first, second = site.vendor.license_id, vendors.new_id("lic")
    cut_short(site, site.open(), license_id=second)
    tick(device.counter)  # it sees that somebody else installs
    use(session(site.open()) if reopened else running, 2)
    recorded(device)
    told = [(each["kind"], each["license"], each.get("units")) for each in records(device)[1:]]
    assert told == [("token", first, None), ("usage", first, 3), ("token", second, None), ("usage", second, 2)]


def test_an_installation_that_was_cut_short_still_sets_the_time(site, device):
    """The wall clock has no battery: what time it is, only the token tells."""
    site.vendor.now += 86_400
    cut_short(site, device)
    site.time.reboot(60)
    site.time.set_wall(-START_S)
    after = site.open()
    assert (after.status().state, after.status().time) == ("ok", site.vendor.now)
    assert code_of(session(after)) is None


def test_an_installation_that_was_cut_short_still_mends_the_time(site, device):
    cut_short(site, device, time_floor=START_S - 3_600, iat=START_S - 3_600, nbf=START_S - 3_600)
    site.time.set_wall(-3_600)
    assert site.open().status().time == START_S - 3_600


def test_what_could_not_be_read_once_is_read_again(site, device, running, monkeypatch):
    use(running)
    site.sync(site.open(), ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(Vault, "read", unreadable)
        with pytest.raises(DeviceError):
            device.holder.refresh()
    tick(device.counter)
    assert code_of(running) == "model_not_licensed"


def unreadable(_vault: Vault, name: str) -> None:
    raise DeviceError("directory_unusable", name)


def test_a_token_of_another_device_product_vendor_or_key_is_refused(site, device):
    with device.counter.transaction() as tx:
        here = tx.position()
    stranger = SigningKey(b"\x05" * 32)
    tokens = {
        "subject_wrong": site.vendor.token("dev_" + "A" * 43, here, [MUL]),
        "audience_wrong": site.vendor.token(device.id, here, [MUL], product="drone"),
        "issuer_wrong": site.vendor.token(device.id, here, [MUL], issuer="other.example"),
        "key_unknown": signing.sign(
            envelopes.TOKEN, claims_of(site.vendor.token(device.id, here, [MUL])), stranger
        ),
    }
    for code, text in tokens.items():
        with unchanged(site.path, "sync.json"):
            assert codes(device.take_reply(Reply(token=text).to_bytes())) == {"token": [code]}


def claims_of(text: str) -> dict:
    return json.loads(from_base64url(text.split(".")[1]))


def test_no_token_is_refused_at_installing_for_what_only_a_clock_says(site, device, running):
    """Installing asks steps 1 to 7: the clock may be wrong, and a later one right."""
    site.sync(device, MUL, nbf=START_S + 1_000)
    assert code_of(running) == "token_not_yet_valid"
    site.time.run_on(1_000)
    assert code_of(running) is None


# -- revocations and keyrings


@pytest.mark.parametrize("what", ["tokens", "licenses", "devices"])
def test_a_revocation_stops_at_the_next_call(site, device, running, what):
    use(running, 3)
    claims = claims_of((site.path / "token.jws").read_text())
    named = {"tokens": claims["jti"], "licenses": claims["license"]["id"], "devices": device.id}[what]
    assert code_of(running) is None
    device.take_reply(Reply(revocations=site.vendor.revocations(1, **{what: [named]})).to_bytes())
    assert code_of(running) == "token_revoked"
    assert device.status().code == "token_revoked"
    with pytest.raises(MeterkitError) as caught:
        session(device)
    assert caught.value.code == "token_revoked"
    assert code_of_open(site) == "token_revoked"
    assert recorded(device) == 4
    assert opened(site, device.make_batches())


def code_of_open(site) -> str:
    with pytest.raises(MeterkitError) as caught:
        session(site.open())
    return caught.value.code


def test_an_older_revocation_list_does_not_replace_a_newer_one(site, device, running):
    device.take_reply(Reply(revocations=site.vendor.revocations(2, devices=[device.id])).to_bytes())
    outcome = device.take_reply(Reply(revocations=site.vendor.revocations(1)).to_bytes())
    assert [(each.state, each.code) for each in outcome.taken] == [("ignored", "version_rollback")]
    other = device.take_reply(Reply(revocations=site.vendor.revocations(2)).to_bytes())
    assert codes(other) == {"revocations": ["version_conflict"]}
    assert code_of(running) == "token_revoked"
    device.take_reply(Reply(revocations=site.vendor.revocations(3)).to_bytes())
    site.time.run_on(2)
    assert code_of(running) is None


def test_a_keyring_that_distrusts_the_key_ends_its_tokens(site, device, running):
    use(running)
    document = site.vendor.keyring(2, distrusted_after=START_S - 1)
    device.take_reply(Reply(keyrings=(tuple(document),)).to_bytes())
    assert code_of(running) == "key_not_valid"


def test_a_keyring_does_not_go_back(site, device, running):
    device.take_reply(Reply(keyrings=(tuple(site.vendor.keyring(3)),)).to_bytes())
    with unchanged(site.path, "sync.json"):
        outcome = device.take_reply(Reply(keyrings=(tuple(site.vendor.keyring(2)),)).to_bytes())
    assert [(each.state, each.code) for each in outcome.taken] == [("ignored", "version_rollback")]
    assert device.holder.keyring.version == 3
    assert site.open().holder.keyring.version == 3
    assert code_of(running) is None


def rotated(site: Site, version: int, root: SigningKey, *signers: SigningKey) -> tuple[str, ...]:
    """A keyring document under another root, signed by those named."""
    claims = claims_of(site.vendor.keyring(version)[0])
    claims["roots"] = {"threshold": 1, "keys": [root.verify_key.text]}
    return tuple(signing.sign(envelopes.KEYRING_DOCUMENT, claims, signer) for signer in signers)


def test_after_the_roots_changed_the_next_keyrings_are_still_reached(site, device, running):
    """What is kept must lead from the roots that the vendor's code trusts to the newest document, at each open."""
    new_root, old_root = SigningKey(b"\x07" * 32), site.vendor.root
    documents = [
        tuple(site.vendor.keyring(2)),
        rotated(site, 3, new_root, old_root, new_root),
        rotated(site, 4, new_root, new_root),
        rotated(site, 5, new_root, new_root),
    ]
    for version, document in enumerate(documents, start=2):
        outcome = device.take_reply(Reply(keyrings=(document,)).to_bytes())
        assert not outcome.refused, (version, outcome)
        again = site.open()
        assert again.holder.keyring.version == device.holder.keyring.version == version
        assert again.holder.fault is None
    assert code_of(running) is None
    assert len(json.loads((site.path / "keyring.json").read_bytes())) <= 3


@pytest.mark.parametrize("signers", ["old", "new", "stranger"])
def test_roots_change_only_with_both_signatures(site, device, signers):
    new_root, stranger = SigningKey(b"\x07" * 32), SigningKey(b"\x08" * 32)
    chosen = {"old": site.vendor.root, "new": new_root, "stranger": stranger}[signers]
    with unchanged(site.path, "sync.json"):
        outcome = device.take_reply(Reply(keyrings=(rotated(site, 2, new_root, chosen),)).to_bytes())
    assert codes(outcome) == {"keyring": ["threshold_unmet"]}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"[1]", b"[[1]]", b'["x"]', b'[["x"]]', b"{", b'{"a":1}', b"\xff", b"[[[]]]", b"[null]"],
)
@pytest.mark.usefixtures("device")
def test_a_damaged_keyring_file_is_as_none(site, running, content):
    use(running)
    (site.path / "keyring.json").write_bytes(content)
    again = site.open()
    assert again.holder.keyring is None
    with pytest.raises(MeterkitError):
        session(again)
    assert recorded(again) == 1
    site.activate(again, MUL)
    use(session(again))


@pytest.mark.parametrize("name", ["token.jws", "receipt.jws", "revocations.jws", "sync.json"])
@pytest.mark.parametrize("content", [b"", b"x", b"\xff\x00" * 50, b"[1]", b'{"next_sync_at":"soon","server":5}'])
def test_a_damaged_small_file_is_a_typed_refusal(site, device, running, name, content):
    use(running)
    site.sync(device, MUL)
    device.take_reply(Reply(revocations=site.vendor.revocations(1)).to_bytes())
    (site.path / name).write_bytes(content)
    again = site.open()
    again.status()
    opened(site, again.make_batches())
    assert recorded(again) == 1
    if name == "token.jws":
        with pytest.raises(MeterkitError):
            session(again)
    assert not site.sync(again, MUL).refused
    use(session(again))


# -- others on the device


def test_replies_that_two_take_at_once_leave_the_newer_of_each_part(site, device, monkeypatch):
    other = site.open()
    replace = Vault.replace

    def slow(vault, name, data) -> None:
        time.sleep(0.002)
        replace(vault, name, data)

    monkeypatch.setattr(Vault, "replace", slow)
    versions = iter(range(2, 1_000))
    faults: list[BaseException] = []

    def take(one) -> None:
        try:
            for _ in range(15):
                version = next(versions)
                document = tuple(site.vendor.keyring(version))
                one.take_reply(
                    Reply(keyrings=(document,), revocations=site.vendor.revocations(version)).to_bytes()
                )
                one.holder.refresh()
                assert one.holder.keyring.version >= version
                assert one.holder.revocations.version >= version
        except BaseException as fault:  # noqa: BLE001 - shown below
            faults.append(fault)

    takers = [threading.Thread(target=take, args=(one,)) for one in (device, other)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert not faults
    assert site.open().holder.keyring.version == 31
    assert site.open().holder.revocations.version == 31


def test_a_token_that_came_within_one_tick_of_the_file_system_is_seen_too(site, running):
    use(running)
    path = site.path / "token.jws"
    before = path.stat()
    site.sync(site.open(), limited(MUL, 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    site.time.run_on(WINDOW_S)
    use(running)
    assert code_of(running) == "limit_reached"


def test_a_revocation_that_another_process_took_is_seen_at_the_next_edge(site, device, running):
    use(running, 3)
    other = site.open()
    other.take_reply(Reply(revocations=site.vendor.revocations(1, devices=[device.id])).to_bytes())
    site.time.run_on(WINDOW_S)
    assert code_of(running) == "token_revoked"


@pytest.mark.usefixtures("device")
def test_a_device_of_another_vendors_roots_trusts_nothing_here(site):
    foreign = Trust(issuer=site.vendor.trust.issuer, roots=(SigningKey(b"\x09" * 32).verify_key.text,))
    stranger = Device.open(site.path, trust=foreign, product=vendors.PRODUCT, clocks=site.time.clocks)
    with pytest.raises(MeterkitError) as caught:
        session(stranger)
    assert caught.value.code == "threshold_unmet"
    stranger.close()


def test_units_of_two_meters_are_told_apart(site):
    device = site.activated(MUL, ROWS, call_model("other", "0" * 64))
    use(session(device), 2)
    site.sync(device)
    assert site.vendor.units("mul") == 2
    assert site.vendor.units("rows") == 0


def test_nothing_is_in_the_directory_that_should_not_be(site, device, running):
    use(running)
    site.sync(device, MUL)
    names = {name for name in digests(site.path) if not name.startswith("cells/")}
    assert names == {
        "device.key",
        "identity.json",
        "keyring.json",
        "ledger.sqlite",
        "ledger.sqlite-journal",
        "receipt.jws",
        "sync.json",
        "token.jws",
    }


def test_without_a_token_a_denial_says_so(site):
    device = site.open()
    assert device.status().code == "not_activated"
    with pytest.raises(DenialError):
        device.token()
