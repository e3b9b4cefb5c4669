"""Conformance cases for tokens: good ones, and every way in which one can be bad, by the step that says so."""

import base64
import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

from core_world import (
    DAY_S,
    DIGEST,
    KEYRING,
    LICENSE,
    NOW,
    OTHER_DEVICE,
    TOKEN,
    flat,
    header_of,
    ident,
    jws,
    key,
    model_claims,
    token_claims,
    token_text,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from meterkit import envelopes
from meterkit.canonical import from_base64url, to_base64url

Case = dict[str, Any]
SIGNER = key("token")
GOOD = token_text()
GOOD_HEADER = header_of(envelopes.TOKEN, SIGNER)
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the Ed25519 group
EXP = NOW + 29 * DAY_S
GRACE_S = 7 * DAY_S


def case(name: str, token: str, expect: str, **given: Any) -> Case:
    """One case; what is given here stands in for what the whole file gives."""
    return {"name": name, **given, "token": token, "expect": expect}


def swap_last(text: str) -> str:
    """The same bytes to a careless reader: one of the bits that nobody wrote is set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


def good() -> Iterator[Case]:
    """Tokens that verify, at every edge."""
    everything = token_claims(
        license={"id": LICENSE, "ends": None},
        time_floor=NOW,
        models=[
            model_claims(limit=None),
            model_claims(
                name="segmenter", sha256=["e" * 64], unit="item", axis={"input": "frames", "dim": 0}, limit=0
            ),
            {"name": "sealed", "versions": ">=1.2,<2", "unit": "call", "axis": None, "limit": 2**53 - 1},
        ],
        policy={"expiry": "flag", "limit": "flag", "clock": "flag"},
        features=["night-mode", "beta_2"],
    )
    yield case("plain", GOOD, "ok", state="ok")
    yield case("every member used", token_text(everything), "ok", state="ok")
    longest = token_claims(
        nbf=NOW, exp=NOW + 400 * DAY_S, grace_s=90 * DAY_S, license={"id": LICENSE, "ends": None}, serial=1
    )
    yield case("the longest life and grace, the lowest serial", token_text(longest), "ok")
    yield case("header in another order", jws(dict(reversed(GOOD_HEADER.items())), token_claims(), SIGNER), "ok")
    yield case("payload spaced out", token_text(flat(token_claims()).replace(b",", b" ,\n ")), "ok")
    yield case("the instant it starts", GOOD, "ok", now=NOW - DAY_S, state="ok")
    yield case("the second before renewal is due", GOOD, "ok", now=EXP - 6 * DAY_S - 1, state="ok")
    yield case("the instant renewal is due", GOOD, "ok", now=EXP - 6 * DAY_S, state="renew_due")
    yield case("the last second before its end", GOOD, "ok", now=EXP - 1, state="renew_due")
    yield case("the instant it ends, grace begins", GOOD, "ok", now=EXP, state="grace")
    yield case("the last second of grace", GOOD, "ok", now=EXP + GRACE_S - 1, state="grace")
    yield case(
        "past grace, where expiry is flagged", token_text(everything), "ok", now=EXP + GRACE_S, state="grace"
    )
    yield case("clock set back, where that is flagged", token_text(everything), "ok", clock_suspect=True)
    yield case("the very serial already held", GOOD, "ok", serial_min=7)
    yield case("grace ends with the license", _ending(EXP + GRACE_S), "ok")
    yield case("signed the instant its key began", _iat(NOW - 100 * DAY_S), "ok")
    yield case("signed the last second of a retired key", _iat(NOW - 10 * DAY_S, "retired"), "ok")
    yield case("signed the last second before a compromise", _iat(NOW - 10 * DAY_S, "compromised"), "ok")


def _ending(ends: int) -> str:
    return token_text(token_claims(license={"id": LICENSE, "ends": ends}))


def _iat(iat: int, signer: str = "token") -> str:
    return token_text(token_claims(iat=iat), signer)


def step_1() -> Iterator[Case]:
    """Length and shape, before anything is decoded."""
    head, body, tail = GOOD.split(".")
    yield case("empty", "", "malformed_envelope")
    yield case("one part", head, "malformed_envelope")
    yield case("two parts", f"{head}.{body}", "malformed_envelope")
    yield case("four parts", f"{GOOD}.{tail}", "malformed_envelope")
    yield case("no signature", f"{head}.{body}.", "malformed_envelope")
    yield case("detached payload", f"{head}..{tail}", "malformed_envelope")
    yield case("padded header", f"{head}=.{body}.{tail}", "malformed_envelope")
    yield case("padded payload", f"{head}.{body}==.{tail}", "malformed_envelope")
    yield case("padded signature", f"{GOOD}==", "malformed_envelope")
    yield case("standard base64 alphabet", f"{head}.{body}.+/{tail[2:]}", "malformed_envelope")
    yield case("newline at the end", f"{GOOD}\n", "malformed_envelope")
    yield case("blank at the start", f" {GOOD}", "malformed_envelope")
    yield case("newline inside", f"{head}.{body[:40]}\n{body[40:]}.{tail}", "malformed_envelope")
    yield case("Bearer before it", f"Bearer {GOOD}", "malformed_envelope")
    yield case("JSON serialization", flat({"payload": body, "signature": tail}).decode(), "malformed_envelope")
    yield case("not ASCII", f"{head}.{body}.\u00e4{tail[1:]}", "not_text")
    yield case("confusable full stop", GOOD.replace(".", "\u2024"), "not_text")
    yield case("signature's last character not canonical", swap_last(GOOD), "malformed_envelope")
    odd = token_text(flat(token_claims()) + b" " * (-len(flat(token_claims())) % 3 + 1))
    yield case("payload's last character not canonical", _swap_part(odd, 1), "malformed_envelope")
    spaced = jws(flat(GOOD_HEADER) + b" " * (-len(flat(GOOD_HEADER)) % 3 + 1), token_claims(), SIGNER)
    yield case("header's last character not canonical", _swap_part(spaced, 0), "malformed_envelope")
    yield case(
        "header of impossible length", f"{head}{'A' * ((5 - len(head)) % 4)}.{body}.{tail}", "malformed_envelope"
    )
    yield case("signature a byte short", f"{head}.{body}.{to_base64url(bytes(63))}", "malformed_envelope")
    yield case("signature a byte long", f"{head}.{body}.{to_base64url(bytes(65))}", "malformed_envelope")
    yield case("signature of Ed448's length", f"{head}.{body}.{to_base64url(bytes(114))}", "malformed_envelope")
    yield case("one byte too large", _sized(8193), "too_large")
    yield case("the largest that is read at all", _sized(8192), "malformed_json")


def _swap_part(text: str, place: int) -> str:
    parts = text.split(".")
    parts[place] = swap_last(parts[place])
    return ".".join(parts)


def _sized(size: int) -> str:
    room = size - len(jws(GOOD_HEADER, b"", SIGNER))
    text = token_text(b"x" * (room * 3 // 4))
    if len(text) != size:
        raise ValueError(f"{len(text)} is not {size}")
    return text


def step_2() -> Iterator[Case]:
    """The header: exact members, pinned `alg`, its own `typ`."""
    for value in ("none", "None", "nOnE", "", "eddsa", "Ed25519", "Ed448", "HS256", "ES256", ["EdDSA"], 1, True):
        yield case(f"alg {value!r}", token_text(alg=value), "malformed_header")
    yield case("alg missing", token_text(alg=None), "malformed_header")
    yield case("alg none without a signature", _resigned({"alg": "none"}, bytes(64)), "malformed_header")
    for name, secret in (("raw", _raw_key()), ("base64url", SIGNER.verify_key.text.encode())):
        yield case(f"HS256 keyed by the public key, {name}", _hs256(secret), "malformed_header")
    yield case("ES256, truly signed", _es256(), "malformed_header")
    extra: dict[str, Any] = {
        "jwk": {"kty": "OKP", "crv": "Ed25519", "x": SIGNER.verify_key.text},
        "jku": "https://attacker.example/keys",
        "x5u": "https://attacker.example/cert",
        "x5c": ["MIIB"],
        "zip": "DEF",
        "cty": "JWT",
        "b64": True,
        "crit": [],
        "iss": "vendor.example",
    }
    for name, value in extra.items():
        yield case(f"header with {name}", token_text(**{name: value}), "malformed_header")
    yield case("b64 false and crit", token_text(b64=False, crit=["b64"]), "malformed_header")
    yield case("crit unknown", token_text(crit=["exp"]), "malformed_header")
    yield case("crit no list", token_text(crit="exp"), "malformed_header")
    for typ in (
        "JWT",
        "at+jwt",
        "MK-TOKEN+JWT",
        "application/mk-token+jwt",
        "mk-token+jws",
        "",
        1,
        ["mk-token+jwt"],
    ):
        yield case(f"typ {typ!r}", token_text(typ=typ), "wrong_type")
    for kind in envelopes.KINDS.values():
        if kind is not envelopes.TOKEN:
            yield case(f"typ of a {kind.name}", token_text(typ=kind.typ), "wrong_type")
    yield case("typ missing", token_text(typ=None), "malformed_header")
    yield from _step_2_kid()
    yield from _step_2_json()


def _step_2_kid() -> Iterator[Case]:
    kids: dict[str, Any] = {
        "missing": None,
        "a number": 1,
        "a list": [SIGNER.kid],
        "empty": "",
        "a path": "../../etc/passwd",
        "SQL": "' OR 1=1--",
        "with a NUL": "\x00" + SIGNER.kid[1:],
        "a character short": SIGNER.kid[:-1],
        "a character long": SIGNER.kid + "A",
        "with a newline": SIGNER.kid + "\n",
        "of 4,000 characters": "k" * 4000,
        "in standard base64": "+" + SIGNER.kid[1:],
    }
    for name, kid in kids.items():
        yield case(f"kid {name}", token_text(kid=kid), "malformed_header")


def _step_2_json() -> Iterator[Case]:
    plain = flat(GOOD_HEADER)
    headers = {
        "no JSON": b"nonsense",
        "an empty object": b"{}",
        "a list": b"[1]",
        "null": b"null",
        "not UTF-8": b'{"alg":"\xff"}',
        "with a byte-order mark": b"\xef\xbb\xbf" + plain,
        "UTF-16": plain.decode().encode("utf-16"),
        "with kid twice": plain[:-1] + b',"kid":"' + SIGNER.kid.encode() + b'"}',
        "with alg twice, once escaped": plain[:-1] + b',"\\u0061lg":"none"}',
        "with text after it": plain + b"{}",
        "over 256 bytes": plain + b" " * 256,
        "nested nine deep": b'{"alg":' + b"[" * 8 + b"]" * 8 + b"}",
    }
    for name, header in headers.items():
        yield case(f"header {name}", jws(header, token_claims(), SIGNER), "malformed_header")


def _resigned(changes: dict[str, Any], signature: bytes) -> str:
    signed = f"{to_base64url(flat({**GOOD_HEADER, **changes}))}.{to_base64url(flat(token_claims()))}"
    return f"{signed}.{to_base64url(signature)}"


def _raw_key() -> bytes:
    return from_base64url(SIGNER.verify_key.text)


def _hs256(secret: bytes) -> str:
    signed = _resigned({"alg": "HS256"}, b"").rpartition(".")[0]
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{to_base64url(mac * 2)}"


def _es256() -> str:
    signed = _resigned({"alg": "ES256"}, b"").rpartition(".")[0]
    number = int.from_bytes(hashlib.sha256(b"an ES256 key").digest(), "big")
    private = ec.derive_private_key(number, ec.SECP256R1())
    scheme = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = utils.decode_dss_signature(private.sign(signed.encode(), scheme))
    return f"{signed}.{to_base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def steps_3_and_4() -> Iterator[Case]:
    """The key is known for this purpose, and the signature is its own."""
    head, body, tail = GOOD.split(".")
    yield case("signed by a stranger", token_text(signer="stranger"), "key_unknown")
    yield case("signed by a root", token_text(signer="root 1"), "key_unknown")
    yield case("signed by the device itself", token_text(signer="device"), "key_unknown")
    for purpose in ("receipt", "revocations", "invoice", "package"):
        yield case(f"signed by the {purpose} key", token_text(signer=purpose), "key_unknown")
    yield case(
        "signed by a stranger under the right kid", token_text(signer="stranger", kid=SIGNER.kid), "signature_bad"
    )
    yield case(
        "signed by a retired key under the right kid",
        token_text(signer="retired", kid=SIGNER.kid),
        "signature_bad",
    )
    more = to_base64url(flat(token_claims(models=[model_claims(limit=2000)])))
    yield case("limit raised after signing", f"{head}.{more}.{tail}", "signature_bad")
    yield case(
        "blank added to the payload", f"{head}.{to_base64url(from_base64url(body) + b' ')}.{tail}", "signature_bad"
    )
    other = to_base64url(flat(header_of(envelopes.TOKEN, key("retired"))))
    yield case("kid changed to another good key", f"{other}.{body}.{tail}", "signature_bad")
    yield case("signature all zeros", f"{head}.{body}.{to_base64url(bytes(64))}", "signature_bad")
    raw = from_base64url(tail)
    shifted = int.from_bytes(raw[32:], "little") + ORDER
    forged = raw[:32] + shifted.to_bytes(32, "little")
    yield case("signature malleated, S + order", f"{head}.{body}.{to_base64url(forged)}", "signature_bad")
    yield case(
        "signature of another token", GOOD.rpartition(".")[0] + "." + _iat(NOW).rpartition(".")[2], "signature_bad"
    )


def steps_6_to_9() -> Iterator[Case]:
    """For whom, whether it still counts, and what time it is."""
    for name, iss in (
        ("another", "other.example"),
        ("a prefix", "vendor"),
        ("longer", "vendor.example.attacker.example"),
        ("in capitals", "Vendor.Example"),
        ("with a full stop", "vendor.example."),
        ("in Cyrillic", "v\u0435ndor.example"),
        ("with a blank", "vendor.example "),
    ):
        yield case(f"issuer {name}", token_text(token_claims(iss=iss)), "issuer_wrong")
    for aud in ("camera-pro", "cam", "Camera", "camera."):
        yield case(f"audience {aud}", token_text(token_claims(aud=aud)), "audience_wrong")
    yield case("another device", token_text(token_claims(sub=OTHER_DEVICE)), "subject_wrong")
    yield case("signed before its key began", _iat(NOW - 100 * DAY_S - 1), "key_not_valid")
    yield case("signed after its key was retired", _iat(NOW - 10 * DAY_S + 1, "retired"), "key_not_valid")
    yield case("signed after its key was compromised", _iat(NOW - 10 * DAY_S + 1, "compromised"), "key_not_valid")
    nobody: dict[str, Any] = {"tokens": [], "licenses": [], "devices": []}
    yield case("token revoked", GOOD, "token_revoked", revoked={**nobody, "tokens": [TOKEN]})
    yield case("license revoked", GOOD, "token_revoked", revoked={**nobody, "licenses": [LICENSE]})
    yield case(
        "device revoked", GOOD, "token_revoked", revoked={**nobody, "devices": [f"dev_{key('device').kid}"]}
    )
    yield case("somebody else's token revoked", GOOD, "ok", revoked={**nobody, "tokens": [ident("tok", "stolen")]})
    yield case("a newer serial is held", GOOD, "serial_rollback", serial_min=8)
    yield case("clock set back", GOOD, "clock_rolled_back", clock_suspect=True)
    yield case("a second before it starts", GOOD, "token_not_yet_valid", now=NOW - DAY_S - 1)
    yield case("at the epoch", GOOD, "token_not_yet_valid", now=0)
    yield case("the instant grace ends", GOOD, "token_expired", now=EXP + GRACE_S)
    yield case("in the year 9999", GOOD, "token_expired", now=253402300799)
    yield case("no grace, the instant it ends", token_text(token_claims(grace_s=0)), "token_expired", now=EXP)


def first_failing_step() -> Iterator[Case]:
    """Several faults at once: the first failing step names the code."""
    late = {"now": EXP + GRACE_S, "clock_suspect": True, "serial_min": 8}
    wrong = token_claims(iss="other.example", aud="other", sub=OTHER_DEVICE)
    yield case("clock before expiry", GOOD, "clock_rolled_back", now=EXP + GRACE_S, clock_suspect=True)
    yield case("serial before clock", GOOD, "serial_rollback", **late)
    yield case("revoked before serial", GOOD, "token_revoked", **late, revoked=_revoking())
    yield case("key validity before revocation", _iat(1, "retired"), "key_not_valid", **late, revoked=_revoking())
    yield case(
        "subject before key validity", token_text(token_claims(sub=OTHER_DEVICE, iat=1)), "subject_wrong", **late
    )
    yield case(
        "audience before subject",
        token_text(token_claims(aud="other", sub=OTHER_DEVICE)),
        "audience_wrong",
        **late,
    )
    yield case("issuer before audience", token_text(wrong), "issuer_wrong", **late)
    yield case("members before issuer", token_text({**wrong, "more": 1}), "malformed_members", **late)
    yield case("JSON before members", token_text(flat(wrong)[:-1] + b',"v":1}'), "malformed_json", **late)
    broken = token_text({**wrong, "more": 1}, signer="stranger", kid=SIGNER.kid)
    yield case("signature before members", broken, "signature_bad", **late)
    yield case(
        "kid before signature", token_text(signer="stranger", kid=key("receipt").kid), "key_unknown", **late
    )
    yield case(
        "typ before kid", token_text({**wrong, "more": 1}, signer="stranger", typ="JWT"), "wrong_type", **late
    )
    padded = token_text({**wrong, "more": 1}, signer="stranger", typ="JWT") + "=="
    yield case("shape before header", padded, "malformed_envelope", **late)
    odd = jws({**GOOD_HEADER, "typ": "JWT"}, b"{} ", SIGNER)
    head, _, tail = odd.split(".")
    yield case("a payload that is not canonical base64 before header", f"{head}.e31.{tail}", "malformed_envelope")
    yield case("size before shape", base64.b64encode(bytes(9000)).decode(), "too_large", **late)
    yield case("encoding before size", "\u00e4" * 9000, "not_text", **late)


def _revoking() -> dict[str, Any]:
    return {"tokens": [TOKEN], "licenses": [], "devices": []}


def given() -> dict[str, Any]:
    """What every case starts from."""
    keys = [
        {
            "kid": entry.key.kid,
            "key": entry.key.text,
            "purposes": sorted(entry.purposes),
            "not_before": entry.not_before,
            "not_after": entry.not_after,
            "distrusted_after": entry.distrusted_after,
        }
        for entry in KEYRING.keys.values()
    ]
    return {
        "issuer": "vendor.example",
        "product": "camera",
        "device": f"dev_{key('device').kid}",
        "keys": keys,
        "revoked": {"tokens": [], "licenses": [], "devices": []},
        "serial_min": 0,
        "now": NOW,
        "clock_suspect": False,
        "model_sha256": DIGEST,
    }
