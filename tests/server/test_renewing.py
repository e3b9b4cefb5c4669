"""New online keys each year, signed by the root: nothing that was signed before is lost, and wherever it is cut
off the server can sign.
"""

import json
from pathlib import Path

import pytest
from fleet import START_S, FakeDevice, Fleet

from licensing_server import directory, renewing
from licensing_server.audit_log import service as audit_log
from licensing_server.directory import PURPOSES, open_server
from licensing_server.pages import Page
from meterkit import envelopes, limits, tokens
from meterkit.clocks import NS, Instant
from meterkit.envelopes import Addressee
from meterkit.errors import MeterkitError
from meterkit.keyrings import follow
from meterkit.keys import Keyring, SigningKey, Trust
from meterkit.revocations import Revocations

YEAR_S = limits.KEYRING_LIFE_S


def root_of(fleet: Fleet) -> SigningKey:
    return SigningKey.from_text(fleet.made.root_key.read_text())


def reopen(fleet: Fleet) -> None:
    """Start the server again, as an operator does."""
    fleet.close()
    fleet.server = open_server(fleet.settings, clock=fleet.clock, random=fleet.random)


def renew(fleet: Fleet, **given) -> dict:
    made = renewing.renew(fleet.server, [root_of(fleet)], **given)
    reopen(fleet)
    return made


def refused(call, *args, **kwargs) -> MeterkitError:
    with pytest.raises(MeterkitError) as error:
        call(*args, **kwargs)
    return error.value


def files(folder: Path) -> dict[Path, bytes]:
    held = (folder / "keys", folder / "keyrings")
    return {path: path.read_bytes() for each in held for path in each.iterdir()}


def followed(fleet: Fleet) -> Keyring:
    """What a device holds that takes each version, one after the other."""
    trust = Trust(issuer=fleet.made.issuer, roots=fleet.made.roots)
    held = None
    for _, document in sorted(fleet.server.keyrings.items()):
        held = follow(list(document), trust=trust, held=held)
    assert held is not None
    return held


def verified(fleet: Fleet, device: FakeDevice, text: str, keyring: Keyring) -> tokens.Token:
    return tokens.verify(
        text,
        keyring=keyring,
        addressee=Addressee(issuer=fleet.made.issuer, product="camera", device=device.id),
        revocations=Revocations(),
        serial_min=0,
        now=Instant(effective_ns=(fleet.clock.now + 60) * NS, boot_ns=0, boot=""),
    )


def test_a_server_signs_for_another_year(fleet):
    device = fleet.device(fleet.grant())
    device.use(3)
    before = device.sync()
    fleet.clock.advance(YEAR_S + 1)
    assert refused(device.sync).code == "signing_unavailable"
    made = renew(fleet)
    assert made["version"] == 2
    assert made["expires"] == fleet.clock.now + YEAR_S
    device.use(4)
    reply = device.sync()
    assert [list(document) for document in reply.keyrings][-1] == list(fleet.server.keyrings[2])
    keyring = followed(fleet)
    assert verified(fleet, device, reply.token, keyring).device == device.id
    kid, _ = envelopes.open_payload(
        envelopes.RECEIPT, before.receipts[0], lambda kid: keyring.find(kid, "receipt")
    )
    assert kid != fleet.server.keys["receipt"].kid, "the old key signed it, and it is good still"


def test_before_the_year_is_over_old_tokens_stay_good(fleet):
    device = fleet.device(fleet.grant())
    old = device.sync().token
    fleet.clock.advance(86_400)
    renew(fleet)
    new = device.sync().token
    keyring = followed(fleet)
    assert {verified(fleet, device, text, keyring).serial for text in (old, new)} == {
        verified(fleet, device, old, keyring).serial,
        verified(fleet, device, new, keyring).serial,
    }
    assert {key.kid for key in fleet.server.keys.values()}.isdisjoint(Keyring.from_claims(first(fleet)).keys)


def first(fleet: Fleet) -> dict:
    (text, *_) = fleet.server.keyrings[1]
    return json.loads(envelopes.unverified_parts(envelopes.KEYRING_DOCUMENT, text).payload)


def test_a_stolen_key_is_believed_up_to_the_theft_alone(fleet):
    """Signed a day after the key was stolen: refused. Signed before: good."""
    device = fleet.device(fleet.grant())
    early = device.sync().token
    stolen = fleet.server.keys["token"].kid
    fleet.clock.advance(2 * 86_400)
    late = device.sync().token
    renew(fleet, distrusted={stolen: fleet.clock.now - 86_400})
    keyring = followed(fleet)
    assert verified(fleet, device, early, keyring)
    assert refused(verified, fleet, device, late, keyring).code == "key_not_valid"
    renew(fleet, distrusted={stolen: fleet.clock.now})
    again = followed(fleet).keys[stolen].distrusted_after
    assert again == fleet.clock.now - 86_400, "it is not believed again for longer"


@pytest.mark.parametrize("who", ["nobody", "another"])
def test_only_the_roots_can(fleet, who):
    before = files(fleet.server.directory)
    roots = [] if who == "nobody" else [SigningKey(b"\7" * 32)]
    assert refused(renewing.renew, fleet.server, roots).code == "threshold_unmet"
    assert files(fleet.server.directory) == before


def test_what_is_distrusted_must_be_a_key_and_past(fleet):
    before = files(fleet.server.directory)
    kid = fleet.server.keys["token"].kid
    for distrusted in ({root_of(fleet).kid: 1}, {kid: fleet.clock.now + 1}):
        error = refused(renewing.renew, fleet.server, [root_of(fleet)], distrusted=distrusted)
        assert error.code == "malformed_members"
    assert files(fleet.server.directory) == before


def test_a_clock_before_the_keyrings_own_is_not_believed(fleet):
    fleet.clock.now = START_S - 1
    assert refused(renewing.renew, fleet.server, [root_of(fleet)]).code == "signing_unavailable"


def test_two_at_once_leave_one(fleet):
    """The second has not seen the first one's keyring: it changes nothing, not even the log."""
    other = open_server(fleet.settings, clock=fleet.clock, random=fleet.random)
    try:
        renewing.renew(fleet.server, [root_of(fleet)])
        before = files(fleet.server.directory)
        assert refused(renewing.renew, other, [root_of(fleet)]).code == "state_conflict"
    finally:
        other.engine.dispose()
    assert files(fleet.server.directory) == before
    assert len(logged(fleet)) == 1


def logged(fleet: Fleet) -> list[dict]:
    return audit_log.page(fleet.server, Page(limit=50), action="keyring.renew")["items"]


@pytest.mark.parametrize("placed", range(len(PURPOSES) + 1))
def test_wherever_it_is_cut_off_the_server_can_sign(fleet, monkeypatch, placed):
    """After so many files it ends: the keyring, or it and some of the keys, are new."""
    device = fleet.device(fleet.grant())
    put, done = renewing._put, []

    def put_some(path, text, *, replace):
        if len(done) == placed:
            raise KeyboardInterrupt
        put(path, text, replace=replace)
        done.append(path)

    with monkeypatch.context() as cut:
        cut.setattr(renewing, "_put", put_some)
        with pytest.raises(KeyboardInterrupt):
            renewing.renew(fleet.server, [root_of(fleet)])
    reopen(fleet)
    for purpose in PURPOSES:
        fleet.server.check_can_sign(purpose, fleet.clock.now)
    device.use(2)
    assert verified(fleet, device, device.sync().token, followed(fleet))
    renew(fleet)
    assert fleet.server.keyring.version == (2 if placed == 0 else 3)


def test_a_keyring_has_room_for_new_keys_however_often_it_is_renewed(fleet):
    for _ in range(limits.KEYRING_KEYS_MAX // len(PURPOSES) + 1):
        fleet.clock.advance(60)
        renew(fleet)
    keyring = followed(fleet)
    assert len(keyring.keys) == limits.KEYRING_KEYS_MAX
    assert {key.kid for key in fleet.server.keys.values()} <= keyring.keys.keys()


def test_files_are_the_owners_alone_and_nothing_is_left_beside(fleet):
    made = renew(fleet)
    found = files(fleet.server.directory)
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}
    assert {path.name for path in found} >= {"1.json", "2.json"}
    assert not [path for path in found if path.name.startswith(".")]
    assert "mk-secret" not in repr(made)


def test_by_the_command_line(fleet, tmp_path):
    stolen = fleet.server.keys["receipt"].kid
    flags = (
        "--root-key",
        fleet.made.root_key,
        "--distrust",
        stolen,
        START_S,
    )
    done = fleet.invoke("--json", "renew-keys", *flags)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["version"] == 2
    assert told["distrusted"].keys() == {stolen}
    assert "Start the servers again" in done.stderr
    listed = {each["kid"]: each for each in json.loads(fleet.invoke("--json", "keys").stdout)["items"]}
    assert listed[stolen]["distrusted_after"] == START_S
    assert listed.keys() > set(told["keys"].values())
    assert stolen in fleet.invoke("keys").stdout
    assert listed[told["keys"]["token"]]["not_after"] == told["expires"]
    fleet.made.root_key.chmod(0o644)
    assert fleet.invoke("renew-keys", "--root-key", fleet.made.root_key).exit_code != 0
    copied = tmp_path / "copy.key"
    copied.write_text("no key")
    copied.chmod(0o600)
    assert "copy.key is damaged" in fleet.invoke("renew-keys", "--root-key", copied).output
    assert (directory.open_server(fleet.settings).keyring.version) == 2
