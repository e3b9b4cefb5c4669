"""The directory is made whole or not at all, is its owner's alone, and is read with suspicion."""

import os
import stat

import pytest
from fleet import Clock, Random

from licensing_server import directory, migrating
from licensing_server.directory import open_server
from licensing_server.settings import DIRECTORY, Settings
from licensing_server.settings import read as read_settings
from meterkit import limits
from meterkit.errors import InputError, MeterkitError, ServiceError
from meterkit.keyrings import follow
from meterkit.keys import SigningKey, Trust


def init(path, **given):
    return directory.init(path, **{"issuer": "Vendor", "clock": Clock(), "random": Random(7), **given})


def refused(call, *args, **kwargs):
    with pytest.raises(MeterkitError) as error:
        call(*args, **kwargs)
    return error.value.code


def test_init_makes_a_server_that_can_sign(tmp_path):
    made = init(tmp_path / "srv")
    server = open_server(Settings(directory=tmp_path / "srv"), clock=Clock())
    migrating.check(server)
    trust = Trust(issuer="Vendor", roots=made.roots)
    keyring = follow(list(server.keyrings[1]), trust=trust, held=None)
    assert keyring.expires == keyring.iat + limits.KEYRING_LIFE_S
    assert made.fingerprint == trust.fingerprint()
    assert {key.kid for key in server.keys.values()} == set(keyring.keys)
    assert {purpose for key in keyring.keys.values() for purpose in key.purposes} == set(directory.PURPOSES)
    root = SigningKey.from_text(made.root_key.read_text())
    assert root.verify_key.text == made.roots[0]
    assert root.kid not in keyring.keys
    server.engine.dispose()


def test_everything_is_its_owners_alone(tmp_path):
    old = os.umask(0)
    try:
        init(tmp_path / "srv")
    finally:
        os.umask(old)
    found = [tmp_path / "srv", *(tmp_path / "srv").rglob("*")]
    assert len(found) > 10
    for path in found:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_init_never_overwrites(tmp_path):
    made = init(tmp_path / "srv")
    before = {path: path.read_bytes() for path in (tmp_path / "srv").rglob("*") if path.is_file()}
    assert refused(init, tmp_path / "srv") == "already_initialized"
    assert {path: path.read_bytes() for path in (tmp_path / "srv").rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("mine")
    assert refused(init, tmp_path / "file") == "already_initialized"
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert refused(init, tmp_path / "link") == "already_initialized"
    assert refused(init, tmp_path / "other", root_key=made.root_key) == "already_initialized"
    assert not (tmp_path / "other").exists()


def test_an_empty_directory_may_be_filled(tmp_path):
    (tmp_path / "srv").mkdir()
    init(tmp_path / "srv")
    assert (tmp_path / "srv" / "server.json").is_file()


def test_the_root_key_can_be_placed_elsewhere(tmp_path):
    made = init(tmp_path / "srv", root_key=tmp_path / "root.key")
    assert made.root_key == tmp_path / "root.key"
    assert stat.S_IMODE(made.root_key.stat().st_mode) == 0o600
    assert not (tmp_path / "srv" / "root").exists()


@pytest.mark.parametrize("step", ["_build", "_first_api_key", "_move"])
def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch, step):
    def broken(*_args, **_kwargs):
        raise ServiceError("database_unavailable")

    monkeypatch.setattr(directory, step, broken)
    assert refused(init, tmp_path / "srv", root_key=tmp_path / "root.key") == "database_unavailable"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("issuer", ["", "x" * 257, "a\x00b"])
def test_an_issuer_is_text(tmp_path, issuer):
    with pytest.raises(InputError):
        init(tmp_path / "srv", issuer=issuer)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_a_server_is_none(tmp_path):
    assert refused(open_server, Settings(directory=tmp_path)) == "not_initialized"


@pytest.mark.parametrize(
    "name", ["token.key", "receipt.key", "revocations.key", "invoice.key", "api-keys.pepper.key", "sealing.key"]
)
def test_a_key_that_is_missing_open_or_damaged_opens_no_server(tmp_path, name):
    init(tmp_path / "srv")
    key = tmp_path / "srv" / "keys" / name
    text = key.read_text()
    key.chmod(0o644)
    assert refused(open_server, Settings(directory=tmp_path / "srv")) == "signing_unavailable"
    key.chmod(0o600)
    key.write_text(text[: len(text) // 2])
    assert refused(open_server, Settings(directory=tmp_path / "srv")) == "signing_unavailable"
    key.unlink()
    assert refused(open_server, Settings(directory=tmp_path / "srv")) == "signing_unavailable"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(text)
    elsewhere.chmod(0o600)
    key.symlink_to(elsewhere)
    assert refused(open_server, Settings(directory=tmp_path / "srv")) == "signing_unavailable"
    key.unlink()
    elsewhere.rename(key)
    open_server(Settings(directory=tmp_path / "srv")).engine.dispose()


def test_a_keyring_that_its_own_roots_have_not_signed_is_refused(tmp_path):
    init(tmp_path / "srv")
    other = init(tmp_path / "other", random=Random(8))
    assert other.issuer == "Vendor"
    mine, theirs = (tmp_path / name / "keyrings" / "1.json" for name in ("srv", "other"))
    mixed = mine.read_text().rsplit(".", 1)[0] + "." + theirs.read_text().rsplit(".", 1)[1]
    mine.write_text(mixed)
    assert refused(open_server, Settings(directory=tmp_path / "srv")) == "signing_unavailable"
    mine.unlink()
    assert refused(open_server, Settings(directory=tmp_path / "srv")) == "signing_unavailable"


def test_a_signing_key_that_the_keyring_does_not_name_signs_nothing(tmp_path):
    init(tmp_path / "srv")
    key = tmp_path / "srv" / "keys" / "token.key"
    key.write_text(SigningKey(b"z" * 32).unsafe_to_text())
    server = open_server(Settings(directory=tmp_path / "srv"), clock=Clock())
    assert refused(server.check_can_sign, "token", server.clock()) == "signing_unavailable"
    server.check_can_sign("receipt", server.clock())
    server.engine.dispose()


def test_a_key_signs_for_its_own_purpose_only(tmp_path):
    init(tmp_path / "srv")
    keys = tmp_path / "srv" / "keys"
    (keys / "token.key").write_text((keys / "receipt.key").read_text())
    server = open_server(Settings(directory=tmp_path / "srv"), clock=Clock())
    assert refused(server.check_can_sign, "token", server.clock()) == "signing_unavailable"
    server.engine.dispose()


def test_secrets_are_in_no_repr(tmp_path):
    made = init(tmp_path / "srv")
    server = open_server(Settings(directory=tmp_path / "srv"), clock=Clock())
    shown = repr(server) + repr(made) + repr(server.keys) + repr(server.sealer)
    files = list((tmp_path / "srv").rglob("*.key"))
    assert len(files) == 7
    for path in files:
        secret = path.read_text().strip().rsplit(".", 1)[-1]
        assert secret not in shown, path
    assert made.api_key not in shown
    server.engine.dispose()


def test_the_directory_is_named_by_option_or_environment():
    assert read_settings({DIRECTORY: "/a"}).directory.as_posix() == "/a"
    assert read_settings({DIRECTORY: "/a"}, "/b").directory.as_posix() == "/b"
    assert refused(read_settings, {}) == "not_initialized"
