"""libsodium beside `cryptography`: what the one refuses no other side has to take, and what it takes they take."""

import hashlib

import core_cases_text as texts
import pytest
from core_world import NOW, outcome
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fleet import Fleet
from hypothesis import given
from hypothesis import strategies as st

from licensing_server.directory import PURPOSES
from licensing_server.sodium import SodiumVerifyKey
from meterkit.canonical import to_base64url
from meterkit.errors import InputError
from meterkit.keys import SigningKey, VerifyKey

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493
SEED = bytes(range(32))
KEY = SigningKey(SEED)
MESSAGE = b"a batch"
GOOD, BAD = ["ok", "ok"], ["signature_bad", "signature_bad"]


def both(text, signature, message):
    """What each says of it."""
    return [outcome(kind(text).check, signature, message) for kind in (VerifyKey, SodiumVerifyKey)]


def signed_with(point, nonce=0, public=None, message=MESSAGE):
    """A signature by the key's secret scalar whose R is any point: of which the nonce's is the right one."""
    scalar = scalar_of(SEED)
    public = public or Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
    challenge = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little")
    return point + ((nonce + challenge * scalar) % ORDER).to_bytes(32, "little")


def scalar_of(seed):
    digest = hashlib.sha512(seed).digest()
    return (int.from_bytes(digest[:32], "little") & (2**254 - 8)) | 2**254


# -- the curve, slowly: RFC 8032 §5.1


def decode(octets):
    y = int.from_bytes(octets, "little") & (2**255 - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (P - x if x & 1 != octets[31] >> 7 else x) % P, y % P


def encode(point):
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def add(one, other):
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2
    x, y = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P), (y1 * y2 + x1 * x2) * pow(1 - product, -1, P)
    return x % P, y % P


TORSION = sorted({decode(bytes.fromhex(octets)) for octets in texts.SMALL_ORDER.values()})


@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=300), place=st.integers(0, 511))
def test_both_take_what_is_signed_and_neither_what_was_changed_after(seed, message, place):
    key = SigningKey(seed)
    signature = bytearray(key.native.sign(message))
    assert both(key.verify_key.text, bytes(signature), message) == GOOD
    signature[place // 8] ^= 1 << place % 8
    assert both(key.verify_key.text, bytes(signature), message) == BAD
    assert both(key.verify_key.text, key.native.sign(message), message + b"!") == BAD


@pytest.mark.parametrize("size", [0, 1, 63, 65, 114, 1000])
def test_a_signature_of_another_length_is_bad(size):
    assert both(KEY.verify_key.text, bytes(size), b"x") == BAD


@pytest.mark.parametrize("kept", [0, 1, 63])
def test_a_short_signature_does_not_take_its_rest_from_the_message(kept):
    whole = KEY.native.sign(MESSAGE)
    assert both(KEY.verify_key.text, whole[:kept], whole[kept:] + MESSAGE) == BAD
    assert both(KEY.verify_key.text, whole + MESSAGE[:1], MESSAGE[1:]) == BAD


def test_a_second_form_of_the_same_signature_is_bad():
    signature = KEY.native.sign(MESSAGE)
    again = int.from_bytes(signature[32:], "little") + ORDER
    assert both(KEY.verify_key.text, signature[:32] + again.to_bytes(32, "little"), MESSAGE) == BAD


@pytest.mark.parametrize("octets", sorted(set(texts.SMALL_ORDER.values())))
def test_a_point_of_small_order_in_a_signature_is_refused_whatever_the_other_says(octets):
    other, ours = both(KEY.verify_key.text, signed_with(bytes.fromhex(octets)), MESSAGE)
    assert ours == "signature_bad"
    assert other in ("ok", "signature_bad")


def test_the_neutral_point_is_where_they_differ():
    assert both(KEY.verify_key.text, signed_with(bytes([1]) + bytes(31)), MESSAGE) == ["ok", "signature_bad"]


def test_the_curve_of_these_tests_is_that_of_the_libraries():
    own = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
    assert encode(decode(own)) == own
    assert len(TORSION) == 8
    assert {add(one, other) for one in TORSION for other in TORSION} == set(TORSION)
    nonce = bytes(reversed(range(32)))
    point = Ed25519PrivateKey.from_private_bytes(nonce).public_key().public_bytes_raw()
    assert both(KEY.verify_key.text, signed_with(point, scalar_of(nonce)), MESSAGE) == GOOD


@pytest.mark.parametrize("place", range(8))
def test_a_point_off_the_main_group_is_taken_by_libsodium_only_where_the_other_takes_it(place):
    """Whoever checks with the cofactor takes what others refuse: they would have to agree on what was signed."""
    torsion = TORSION[place]
    for number in range(16):
        nonce, message = bytes([number]) * 32, b"batch %d" % number
        point = Ed25519PrivateKey.from_private_bytes(nonce).public_key().public_bytes_raw()
        beside = encode(add(decode(point), torsion))
        with_point = signed_with(beside, scalar_of(nonce), message=message)
        weak = encode(
            add(decode(Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()), torsion)
        )
        with_key = signed_with(point, scalar_of(nonce), public=weak, message=message)
        assert both(KEY.verify_key.text, with_point, message) == (GOOD if torsion == (0, 1) else BAD)
        other, ours = both(to_base64url(weak), with_key, message)
        assert other in (ours, "ok")


def test_weak_keys_are_refused_when_they_are_made():
    for octets in texts.SMALL_ORDER.values():
        with pytest.raises(InputError, match="malformed_key"):
            SodiumVerifyKey(to_base64url(bytes.fromhex(octets)))
    off_curve = to_base64url((2).to_bytes(32, "little"))
    assert both(off_curve, bytes(64), b"") == BAD


def test_it_is_the_same_key_as_any_other_of_its_text():
    assert SodiumVerifyKey(KEY.verify_key.text) == KEY.verify_key
    assert len({SodiumVerifyKey(KEY.verify_key.text), KEY.verify_key}) == 1


def test_what_the_server_signs_and_what_devices_send_it_is_checked_by_libsodium(tmp_path):
    fleet = Fleet.start(tmp_path, now=NOW)
    device = fleet.device(fleet.grant())
    device.use(3)
    device.sync()
    kinds = {type(fleet.server.keys[purpose].verify_key) for purpose in PURPOSES if purpose in fleet.server.keys}
    assert kinds | set(map(type, fleet.server.device_keys.values())) == {SodiumVerifyKey}
    fleet.close()
