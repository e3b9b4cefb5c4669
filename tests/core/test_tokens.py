"""Verifying a token, step by step, at its boundaries, and against noise."""

import random
from itertools import combinations
from typing import Any

import pytest
from core_world import (
    ADDRESSEE,
    DAY_S,
    KEYRING,
    LICENSE,
    NOT_REVOKED,
    NOW,
    OTHER_DEVICE,
    TOKEN,
    flat,
    header_of,
    instant,
    jws,
    key,
    keyring_claims,
    keyring_key,
    outcome,
    token_claims,
    token_text,
)

from meterkit import envelopes, limits, signing, tokens
from meterkit.canonical import from_base64url, to_base64url
from meterkit.clocks import Instant
from meterkit.envelopes import Addressee
from meterkit.errors import DenialError, InputError, MeterkitError, TrustError
from meterkit.keys import Keyring
from meterkit.revocations import Revocations

GOOD = token_text()
EXP = NOW + 29 * DAY_S
GRACE_S = 7 * DAY_S


def verify(text: Any, **changes: Any) -> tokens.Token:
    given: dict[str, Any] = {
        "keyring": KEYRING,
        "addressee": ADDRESSEE,
        "revocations": NOT_REVOKED,
        "serial_min": 0,
        "now": instant(),
        **changes,
    }
    return tokens.verify(text, **given)


def code(text: Any, **changes: Any) -> str:
    return outcome(verify, text, **changes)


# -- the nine steps


@pytest.mark.parametrize("size", [limits.TOKEN_BYTES_MAX + 1, 1_000_000, 20_000_000])
def test_step_1_size_is_judged_before_anything_is_decoded(size, monkeypatch):
    def never(*_: Any, **__: Any) -> Any:
        pytest.fail("decoded")

    monkeypatch.setattr(envelopes, "from_base64url", never)
    monkeypatch.setattr(envelopes, "from_bytes", never)
    assert code("A" * size) == "too_large"
    assert code(GOOD + "A" * size) == "too_large"


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", f"{GOOD}=", f"{GOOD}\n", GOOD.replace(".", ":")])
def test_step_1_shape(text):
    assert code(text) == "malformed_envelope"


def test_step_2_header():
    assert code(token_text(alg="none")) == "malformed_header"
    assert code(token_text(crit=["exp"])) == "malformed_header"
    assert code(token_text(typ="JWT")) == "wrong_type"


def test_step_3_the_kid_is_known_for_this_purpose():
    assert code(token_text(signer="stranger")) == "key_unknown"
    assert code(token_text(signer="receipt")) == "key_unknown"


def test_step_4_signature():
    assert code(token_text(signer="stranger", kid=key("token").kid)) == "signature_bad"


def test_step_5_payload():
    assert code(token_text(b"{")) == "malformed_json"
    assert code(token_text(b'{"a":"\xff"}')) == "not_text"
    assert code(token_text(token_claims(more=1))) == "malformed_members"


def test_step_6_for_whom_and_a_key_that_was_good():
    assert code(token_text(token_claims(iss="other.example"))) == "issuer_wrong"
    assert code(token_text(token_claims(aud="other"))) == "audience_wrong"
    assert code(token_text(token_claims(sub=OTHER_DEVICE))) == "subject_wrong"
    assert code(token_text(token_claims(iat=1))) == "key_not_valid"


def test_step_6_is_judged_by_iat_and_never_by_now():
    long_after = NOW + 20 * 365 * DAY_S
    late = token_text(token_claims(exp=EXP, grace_s=0), signer="retired")
    assert code(late, now=instant(NOW)) == "key_not_valid"
    early = token_text(token_claims(iat=NOW - 20 * DAY_S), signer="retired")
    assert code(early, now=instant(EXP - 1)) == "ok"
    assert code(early, now=instant(long_after)) == "token_expired"


def test_step_7_revocation_and_serial():
    for revoked in (
        Revocations(tokens=frozenset({TOKEN})),
        Revocations(licenses=frozenset({LICENSE})),
        Revocations(devices=frozenset({ADDRESSEE.device})),
    ):
        assert code(GOOD, revocations=revoked) == "token_revoked"
    assert code(GOOD, serial_min=7) == "ok"
    assert code(GOOD, serial_min=8) == "serial_rollback"


def test_step_8_clock():
    assert code(GOOD, now=instant(suspect=True)) == "clock_rolled_back"
    lenient = token_text(token_claims(policy={"expiry": "deny", "limit": "deny", "clock": "flag"}))
    assert code(lenient, now=instant(suspect=True)) == "ok"
    standing = tokens.standing(verify(lenient, now=instant()), instant(suspect=True))
    assert standing == tokens.Standing(state="ok", flags=("clock",), denial=None)


def test_step_9_window():
    assert code(GOOD, now=instant(NOW - DAY_S - 1)) == "token_not_yet_valid"
    assert code(GOOD, now=instant(EXP + GRACE_S)) == "token_expired"


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [("A" * 9000, InputError), (token_text(signer="stranger"), TrustError), (None, InputError)],
)
def test_refusals_are_of_their_family(kind, refusal):
    with pytest.raises(refusal):
        verify(kind)
    with pytest.raises(DenialError):
        verify(GOOD, now=instant(0))


# -- several faults at once

STEPS = {
    1: "malformed_envelope",
    2: "wrong_type",
    3: "key_unknown",
    4: "signature_bad",
    5: "malformed_members",
    6: "issuer_wrong",
    7: "token_revoked",
    8: "clock_rolled_back",
    9: "token_expired",
}


def faulty(steps: set[int]) -> tuple[str, dict[str, Any]]:
    """A token that fails just these steps, and what it is judged by."""
    claims = token_claims(
        **({"iss": "other.example"} if 6 in steps else {}), **({"more": 1} if 5 in steps else {})
    )
    signer = key("receipt") if 3 in steps else key("token")
    header = header_of(envelopes.TOKEN, signer, **({"typ": "JWT"} if 2 in steps else {}))
    text = jws(header, claims, key("stranger") if 4 in steps else signer)
    given = {
        "revocations": Revocations(tokens=frozenset({TOKEN})) if 7 in steps else NOT_REVOKED,
        "now": instant(EXP + GRACE_S if 9 in steps else NOW, suspect=8 in steps),
    }
    return (text + "=" if 1 in steps else text), given


@pytest.mark.parametrize("count", range(10))
def test_the_first_failing_step_names_the_code(count):
    for steps in combinations(STEPS, count):
        text, given = faulty(set(steps))
        assert code(text, **given) == (STEPS[min(steps)] if steps else "ok"), steps


def test_the_whole_of_step_1_comes_before_step_2():
    """A payload or signature that is not canonical base64url is named before a header that is wrong."""
    wrong_header = to_base64url(flat({"alg": "none"}))
    _, body, tail = GOOD.split(".")
    assert code(f"{wrong_header}.e31.{tail}") == "malformed_envelope"
    assert code(f"{wrong_header}.AAAAA.{tail}") == "malformed_envelope"
    assert code(f"{wrong_header}.{body}.{tail}") == "malformed_header"


def test_within_step_6_the_vendor_comes_before_the_product_the_device_and_the_key():
    changes = {"iss": "other.example", "aud": "other", "sub": OTHER_DEVICE, "iat": 1}
    for expect in ("issuer_wrong", "audience_wrong", "subject_wrong", "key_not_valid"):
        assert code(token_text(token_claims(**changes)), serial_min=99) == expect
        changes.pop(next(iter(changes)))


# -- boundaries in time


@pytest.mark.parametrize(
    ("at_s", "state"),
    [
        (NOW - DAY_S, "ok"),
        (EXP - 6 * DAY_S - 1, "ok"),
        (EXP - 6 * DAY_S, "renew_due"),
        (EXP - 1, "renew_due"),
        (EXP, "grace"),
        (EXP + GRACE_S - 1, "grace"),
    ],
)
def test_its_states_begin_with_their_first_second(at_s, state):
    token = verify(GOOD)
    assert tokens.standing(token, instant(at_s)).state == state
    assert (
        tokens.standing(token, Instant(effective_ns=at_s * 10**9 + 999_999_999, boot_ns=0, boot="")).state == state
    )


def test_a_nanosecond_before_an_edge_is_before_it():
    token = verify(GOOD)
    for edge, before in zip(token.edges(), ("token_not_yet_valid", None, None), strict=True):
        at = Instant(effective_ns=edge * 10**9 - 1, boot_ns=0, boot="")
        assert tokens.standing(token, at).denial == before
    end = Instant(effective_ns=(EXP + GRACE_S) * 10**9, boot_ns=0, boot="")
    assert tokens.standing(token, end).denial == "token_expired"


def test_edges_are_exactly_where_what_is_allowed_changes():
    token = verify(GOOD)
    verdicts = {}
    for edge in token.edges():
        for at_s in (edge - 1, edge, edge + 1):
            judged = tokens.standing(token, instant(at_s))
            verdicts[at_s] = (judged.denial, judged.flags)
    changes = [at_s for at_s in verdicts if at_s - 1 in verdicts and verdicts[at_s] != verdicts[at_s - 1]]
    assert changes == sorted(token.edges())


def test_grace_and_past_it_are_flagged_where_expiry_is():
    token = verify(token_text(token_claims(policy={"expiry": "flag", "limit": "deny", "clock": "flag"})))
    assert tokens.standing(token, instant(EXP)).flags == ("grace",)
    assert tokens.standing(token, instant(EXP + GRACE_S)).flags == ("expired",)
    assert tokens.standing(token, instant(EXP + GRACE_S, suspect=True)).flags == ("expired", "clock")


# -- noise


def test_ten_thousand_bit_flips_are_all_refused():
    drawn = random.Random(20270115)  # noqa: S311 - the same flips every time
    data = GOOD.encode("ascii")
    for _ in range(10_000):
        place, bit = drawn.randrange(len(data)), drawn.randrange(8)
        flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        with pytest.raises(MeterkitError):
            verify(flipped.decode("latin-1"))


def test_every_bit_of_the_decoded_parts_counts():
    parts = [from_base64url(part) for part in GOOD.split(".")]
    for index, part in enumerate(parts):
        for bit in range(len(part) * 8):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            changed = [*parts[:index], bytes(flipped), *parts[index + 1 :]]
            with pytest.raises(MeterkitError):
                verify(".".join(map(to_base64url, changed)))


def test_cutting_or_repeating_any_character_is_refused():
    for place in range(len(GOOD)):
        for text in (GOOD[:place] + GOOD[place + 1 :], GOOD[:place] + GOOD[place] + GOOD[place:]):
            with pytest.raises(MeterkitError):
                verify(text)


@pytest.mark.parametrize(
    "value",
    [None, 0, 1.5, True, b"", GOOD.encode(), bytearray(GOOD.encode()), [GOOD], {"token": GOOD}, object],
    ids=repr,
)
def test_what_is_no_text_is_refused_as_such(value):
    assert code(value) == "not_text"


@pytest.mark.parametrize("text", ["\ud800", GOOD[:-1] + "\udfff", "\u00e4" * 9000, "\x00\x80"], ids=len)
def test_text_that_is_not_ascii_is_refused_as_such(text):
    assert code(text) == "not_text"


def test_a_refused_token_leaves_what_it_was_judged_by_unchanged():
    keys = dict(KEYRING.keys)
    for text in (GOOD + "=", token_text(signer="stranger"), token_text(token_claims(more=1))):
        code(text)
    assert KEYRING.keys == keys
    assert Revocations() == NOT_REVOKED


# -- installing, and asking again


def test_installing_asks_no_clock():
    """Steps 1 to 7 alone: an expired token, or one that starts later, can be installed."""
    for changes in ({"nbf": EXP - 1}, {"exp": NOW - 1, "grace_s": 0}):
        genuine = tokens.open_genuine(
            token_text(token_claims(**changes)),
            keyring=KEYRING,
            addressee=ADDRESSEE,
            revocations=NOT_REVOKED,
            serial_min=7,
        )
        assert genuine.kid == key("token").kid


@pytest.fixture
def genuine():
    return tokens.open_genuine(GOOD, keyring=KEYRING, addressee=ADDRESSEE, revocations=NOT_REVOKED, serial_min=0)


def recheck(genuine: tokens.Genuine, **changes: Any) -> str:
    """Open the token again, as a device does whenever a keyring or a revocation list was installed."""
    given = {"keyring": KEYRING, "addressee": ADDRESSEE, "revocations": NOT_REVOKED, "serial_min": 0, **changes}
    return outcome(tokens.open_genuine, genuine.text, **given)


def test_asking_again_with_the_same_answers_ok(genuine):
    assert recheck(genuine) == "ok"


def test_a_newer_keyring_can_end_a_token(genuine):
    def with_key(**changes: Any) -> Keyring:
        return Keyring.from_claims(keyring_claims(version=2, keys=[keyring_key("token", "token", **changes)]))

    assert recheck(genuine, keyring=with_key()) == "ok"
    assert recheck(genuine, keyring=with_key(distrusted_after=NOW - DAY_S)) == "ok"
    assert recheck(genuine, keyring=with_key(distrusted_after=NOW - DAY_S - 1)) == "key_not_valid"
    assert recheck(genuine, keyring=with_key(purposes=["receipt"])) == "key_unknown"
    assert recheck(genuine, keyring=Keyring.from_claims(keyring_claims(version=2, keys=[]))) == "key_unknown"


def test_a_newer_revocation_list_can_end_a_token(genuine):
    assert recheck(genuine, revocations=Revocations(tokens=frozenset({TOKEN}))) == "token_revoked"


def test_a_token_does_not_move_to_another_device_product_or_vendor(genuine):
    for changes, expect in (
        ({"issuer": "other.example"}, "issuer_wrong"),
        ({"product": "other"}, "audience_wrong"),
        ({"device": OTHER_DEVICE}, "subject_wrong"),
    ):
        addressee = Addressee(
            **{"issuer": "vendor.example", "product": "camera", "device": ADDRESSEE.device, **changes}
        )
        assert recheck(genuine, addressee=addressee) == expect


# -- writing


def test_a_token_is_written_as_it_was_read():
    token = verify(GOOD)
    assert token.to_claims() == token_claims()
    again = signing.sign(envelopes.TOKEN, token.to_claims(), key("token"))
    assert verify(again) == token


def test_a_token_that_no_device_would_take_is_not_written():
    token = verify(GOOD)
    for changes in ({"exp": token.nbf - 1}, {"serial": 0}, {"models": ()}, {"grace_s": limits.GRACE_MAX_S + 1}):
        with pytest.raises(InputError) as refused:
            token._replace(**changes).to_claims()
        assert refused.value.code == "malformed_members"


def test_a_token_too_large_for_any_device_is_not_signed():
    with pytest.raises(InputError) as refused:
        signing.sign(envelopes.TOKEN, token_claims(features=["x" * 64] * 200), key("token"))
    assert refused.value.code == "too_large"


def test_renewal_is_due_when_a_fifth_of_its_life_is_left():
    assert verify(GOOD).renew_s == EXP - 6 * DAY_S
    short = verify(token_text(token_claims(nbf=NOW - 1, exp=NOW + 2, iat=NOW - 1)))
    assert short.renew_s == NOW + 2
    assert short.terms("detector") is not None
    assert short.terms("segmenter") is None
