"""Keys: named by their thumbprints, refused where they are weak or out of place, and silent about secrets."""

import pickle
import traceback

import core_cases_text as texts
import pytest
from core_world import ISSUER, NOW, ROOTS, key, keyring_claims, keyring_key, outcome
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from meterkit.canonical import to_base64url
from meterkit.errors import InputError, TrustError
from meterkit.keys import (
    SECRET_PREFIX,
    Keyring,
    KeyringKey,
    SigningKey,
    Trust,
    VerifyKey,
    check_seal_key,
    device_id,
    roots_fingerprint,
)

# RFC 8037, appendix A
RFC_SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
RFC_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_the_thumbprint_is_that_of_rfc_8037_a_3():
    assert SigningKey(RFC_SEED).verify_key.text == RFC_PUBLIC
    assert SigningKey(RFC_SEED).kid == RFC_THUMBPRINT
    assert device_id(VerifyKey(RFC_PUBLIC)) == f"dev_{RFC_THUMBPRINT}"


def test_a_signature_is_that_of_rfc_8037_a_4():
    message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    signature = SigningKey(RFC_SEED).native.sign(message)
    assert to_base64url(signature).startswith("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5B")
    VerifyKey(RFC_PUBLIC).check(signature, message)


def test_all_fourteen_encodings_of_points_of_small_order_are_refused():
    assert len(set(texts.SMALL_ORDER.values())) == 14
    for octets in texts.SMALL_ORDER.values():
        assert outcome(VerifyKey, to_base64url(bytes.fromhex(octets))) == "malformed_key"


def test_a_key_of_small_order_would_have_accepted_a_forgery():
    """Why they are refused: under the neutral point, one signature fits every message."""
    forged = bytes([1]) + bytes(63)
    weak = Ed25519PublicKey.from_public_bytes(bytes([1]) + bytes(31))
    weak.verify(forged, b"grant me everything")
    weak.verify(forged, b"and for ever")


@pytest.mark.parametrize("above_p", range(19))
@pytest.mark.parametrize("sign", [0, 2**255])
def test_every_encoding_that_is_not_canonical_is_refused(above_p, sign):
    octets = (2**255 - 19 + above_p + sign).to_bytes(32, "little")
    assert outcome(VerifyKey, to_base64url(octets)) == "malformed_key"


@pytest.mark.parametrize("value", [None, 0, b"", RFC_PUBLIC.encode(), [RFC_PUBLIC]], ids=repr)
def test_what_is_no_text_is_no_key(value):
    assert outcome(VerifyKey, value) == "malformed_key"
    assert outcome(check_seal_key, value) == "malformed_key"


def test_a_point_that_is_not_on_the_curve_verifies_nothing():
    key_off_curve = VerifyKey(to_base64url((2).to_bytes(32, "little")))
    with pytest.raises(TrustError) as refused:
        key_off_curve.check(bytes(64), b"")
    assert refused.value.code == "signature_bad"


@pytest.mark.parametrize("size", [0, 1, 63, 65, 114, 1000])
def test_a_signature_of_another_length_is_bad_and_nothing_worse(size):
    assert outcome(VerifyKey(RFC_PUBLIC).check, bytes(size), b"x") == "signature_bad"


def test_a_secret_where_a_public_key_belongs_is_refused_and_not_shown():
    secret = key("token").unsafe_to_text()
    pem = "-----BEGIN ED25519 PRIVATE KEY-----\n" + secret.removeprefix(SECRET_PREFIX)
    for text in (secret, pem):
        for read in (VerifyKey, check_seal_key, lambda root: Trust(issuer=ISSUER, roots=(root,))):
            with pytest.raises(InputError) as refused:
                read(text)
            shown = "".join(traceback.format_exception(refused.value))
            assert refused.value.code == "malformed_key"
            assert secret.removeprefix(SECRET_PREFIX) not in shown + str(refused.value) + repr(refused.value)


def test_no_repr_shows_a_secret():
    signing_key = key("token")
    body = signing_key.unsafe_to_text().removeprefix(SECRET_PREFIX)
    for shown in (
        repr(signing_key),
        str(signing_key),
        f"{signing_key}",
        repr([signing_key]),
        repr({"key": signing_key}),
    ):
        assert body not in shown
        assert signing_key.kid in shown


def test_a_signing_key_cannot_be_pickled():
    with pytest.raises(TypeError):
        pickle.dumps(key("token"))


def test_a_secret_key_goes_to_text_and_back():
    signing_key = key("token")
    text = signing_key.unsafe_to_text()
    assert text.startswith(SECRET_PREFIX)
    for spelled in (text, f" {text}\n"):
        assert SigningKey.from_text(spelled).kid == signing_key.kid


def test_a_damaged_secret_key_is_refused_and_not_shown():
    text = key("token").unsafe_to_text()
    body = text.removeprefix(SECRET_PREFIX)
    for damaged in (
        "",
        body,
        text[:-1],
        text + "A",
        text + "=",
        text.upper(),
        SECRET_PREFIX,
        text[:-1] + "\u00e4",
    ):
        with pytest.raises(InputError) as refused:
            SigningKey.from_text(damaged)
        assert refused.value.code == "malformed_key"
        assert body[:-1] not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_secret_key_is_32_bytes(size):
    assert outcome(SigningKey, bytes(size)) == "malformed_key"


def test_verify_keys_are_equal_by_what_they_are():
    assert VerifyKey(RFC_PUBLIC) == VerifyKey(RFC_PUBLIC)
    assert len({VerifyKey(RFC_PUBLIC), VerifyKey(RFC_PUBLIC)}) == 1
    assert VerifyKey(RFC_PUBLIC) != VerifyKey(ROOTS[0])
    assert VerifyKey(RFC_PUBLIC) != RFC_PUBLIC
    assert repr(VerifyKey(RFC_PUBLIC)) == f"VerifyKey({RFC_THUMBPRINT})"


# -- the keys of a keyring


def test_a_key_is_good_from_its_first_to_its_last_second():
    public = VerifyKey(RFC_PUBLIC)

    def good(at_s: int, distrusted_after: int | None) -> bool:
        entry = KeyringKey(
            key=public, purposes=frozenset(), not_before=10, not_after=20, distrusted_after=distrusted_after
        )
        return entry.good_at(at_s)

    assert [at_s for at_s in range(30) if good(at_s, None)] == list(range(10, 21))
    assert [at_s for at_s in range(30) if good(at_s, 15)] == list(range(10, 16))
    assert [at_s for at_s in range(30) if good(at_s, 25)] == list(range(10, 21))
    assert not any(good(at_s, 9) for at_s in range(30))


def test_a_keyring_finds_a_key_only_for_its_purpose():
    keyring = Keyring.from_claims(keyring_claims())
    kid = key("token").kid
    assert keyring.find(kid, "token") == key("token").verify_key
    for wrong_kid, purpose in (
        (kid, "receipt"),
        (kid, "root"),
        (kid, "device"),
        ("", "token"),
        ("A" * 43, "token"),
    ):
        assert outcome(keyring.find, wrong_kid, purpose) == "key_unknown"
    assert outcome(keyring.check_good, kid, NOW) == "ok"
    assert outcome(keyring.check_good, kid, 1) == "key_not_valid"
    assert outcome(keyring.check_good, "A" * 43, NOW) == "key_not_valid"


def test_one_key_may_have_several_purposes_and_no_other():
    keyring = Keyring.from_claims(keyring_claims(keys=[keyring_key("both", "token", "receipt")]))
    kid = key("both").kid
    assert [outcome(keyring.find, kid, purpose) for purpose in ("token", "receipt", "invoice")] == [
        "ok",
        "ok",
        "key_unknown",
    ]


# -- whom the vendor's code trusts


@pytest.mark.parametrize(
    ("roots", "threshold"),
    [((), 1), (ROOTS, 0), (ROOTS, 4), (ROOTS[:1] * 3, 2), (("A" * 43,), 1), ((key("x").unsafe_to_text(),), 1)],
)
def test_trust_that_protects_nothing_cannot_be_made(roots, threshold):
    assert outcome(Trust, issuer=ISSUER, roots=roots, threshold=threshold) == "malformed_key"


def test_trust_takes_no_string_for_its_roots():
    assert outcome(Trust, issuer=ISSUER, roots=ROOTS[0]) == "malformed_key"


@pytest.mark.parametrize("issuer", ["", "a" * 257, "a\x00", None])
def test_trust_names_its_issuer(issuer):
    assert outcome(Trust, issuer=issuer, roots=ROOTS) == "malformed_members"


def test_the_fingerprint_of_roots_is_that_of_a_set_and_a_threshold():
    trust = Trust(issuer=ISSUER, roots=list(ROOTS), threshold=2)
    assert trust.fingerprint() == roots_fingerprint(tuple(reversed(ROOTS)), 2)
    assert trust.fingerprint() != roots_fingerprint(ROOTS, 1)
    assert trust.fingerprint() != roots_fingerprint(ROOTS[:2], 2)
    assert roots_fingerprint([ROOTS[0], ROOTS[0]], 1) == roots_fingerprint(ROOTS[:1], 1)
