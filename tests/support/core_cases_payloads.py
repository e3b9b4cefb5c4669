"""Conformance cases for a token's payload: strict JSON, exact members, and how its instants lie."""

from collections.abc import Iterator
from typing import Any

from core_cases_tokens import Case, case
from core_world import DAY_S, EPOCH, LICENSE, NOW, flat, model_claims, token_claims, token_text

PLAIN = flat(token_claims())
NOT_JSON = {
    "no JSON": b"nonsense",
    "cut short": PLAIN[:-1],
    "text after it": PLAIN + b"x",
    "two values": PLAIN + PLAIN,
    "a member twice": PLAIN[:-1] + b',"exp":99}',
    "a member twice, once escaped": PLAIN[:-1] + b',"\\u0065xp":99}',
    "an inner member twice": PLAIN.replace(b'"ends":', b'"ends":1,"ends":'),
    "a float": PLAIN.replace(b'"serial":7', b'"serial":7.0'),
    "an exponent": PLAIN.replace(b'"serial":7', b'"serial":7e0'),
    "NaN": PLAIN.replace(b'"serial":7', b'"serial":NaN'),
    "Infinity": PLAIN.replace(b'"serial":7', b'"serial":Infinity'),
    "minus Infinity": PLAIN.replace(b'"serial":7', b'"serial":-Infinity'),
    "minus zero": PLAIN.replace(b'"serial":7', b'"serial":-0'),
    "1e400": PLAIN.replace(b'"serial":7', b'"serial":1e400'),
    "2^53": PLAIN.replace(b'"serial":7', b'"serial":9007199254740992'),
    "2^63": PLAIN.replace(b'"serial":7', b'"serial":9223372036854775808'),
    "a number of 4,000 digits": PLAIN.replace(b'"serial":7', b'"serial":' + b"7" * 4000),
    "a leading zero": PLAIN.replace(b'"serial":7', b'"serial":07'),
    "a plus sign": PLAIN.replace(b'"serial":7', b'"serial":+7'),
    "a hexadecimal number": PLAIN.replace(b'"serial":7', b'"serial":0x7'),
    "a lone surrogate": PLAIN.replace(b'"features":[]', b'"features":["\\ud800"]'),
    "surrogates the wrong way round": PLAIN.replace(b'"features":[]', b'"features":["\\udc00\\ud800"]'),
    "a control character in text": PLAIN.replace(b'"features":[]', b'"features":["\x01"]'),
    "a byte-order mark": b"\xef\xbb\xbf" + PLAIN,
    "UTF-32": PLAIN.decode().encode("utf-32-be"),
    "a comment": PLAIN + b"/* */",
    "a trailing comma": PLAIN[:-1] + b",}",
    "single quotes": PLAIN.replace(b'"', b"'"),
    "nine levels": PLAIN.replace(b'"features":[]', b'"features":[[[[[[[[]]]]]]]]'),
    "2,000 levels": b"[" * 2000 + b"]" * 2000,
    "a string without an end": b'[[[[[[[["' + b'\\"' * 2500 + b"[",
}
NOT_UTF8 = {
    "a lone 0xff": PLAIN.replace(b"camera", b"camer\xff"),
    "an overlong slash": PLAIN.replace(b"camera", b"camer\xc0\xaf"),
    "a surrogate in UTF-8": PLAIN.replace(b"camera", b"camer\xed\xa0\x80"),
}


def step_5() -> Iterator[Case]:
    """The payload: strict JSON with exactly its members."""
    for name, payload in NOT_JSON.items():
        yield case(f"payload with {name}", token_text(payload), "malformed_json")
    for name, payload in NOT_UTF8.items():
        yield case(f"payload with {name}", token_text(payload), "not_text")
    for name, payload in (("a list", b"[]"), ("null", b"null"), ("text", b'"x"'), ("a number", b"17")):
        yield case(f"payload is {name}", token_text(payload), "malformed_members")
    for member in token_claims():
        yield case(f"{member} missing", token_text(token_claims(**{member: ...})), "malformed_members")
        yield case(
            f"{member} an object of its own", token_text(token_claims(**{member: {"x": 1}})), "malformed_members"
        )
    yield case("an unknown member", token_text(token_claims(ext={})), "malformed_members")
    for name, changes in wrong_members().items():
        yield case(name, token_text(token_claims(**changes)), "malformed_members")


def wrong_members() -> dict[str, dict[str, Any]]:
    """Payloads that are sound JSON and no token."""
    return {**_wrong_scalars(), **_wrong_instants(), **_wrong_models(), **_wrong_objects()}


def _wrong_scalars() -> dict[str, dict[str, Any]]:
    values: dict[str, list[Any]] = {
        "v": [0, 2, "1", True],
        "iss": ["", "a" * 257, "vendor\x00.example", 1, ["vendor.example"]],
        "aud": ["", ["camera"], ["camera", "other"], "a b", "-camera", "camera\n", "a" * 65],
        "sub": ["", "camera", "dev_", "dev_" + "A" * 42 + "B"],
        "jti": ["", "tok_", "TOK_" + "a" * 26, "tok_" + "a" * 25, "tok_" + "1" * 26],
        "serial": [0, -1, "7", True],
        "grace_s": [-1, 90 * DAY_S + 1],
        "time_floor": [-1, "now", 7500000001],
        "features": ["night", ["a", "a"], [""], ["a"] * 65, [1]],
    }
    return {
        f"{member} is {str(value)[:40]!a} ({type(value).__name__})": {member: value}
        for member, wrong in values.items()
        for value in wrong
    }


def _wrong_instants() -> dict[str, dict[str, Any]]:
    return {
        "iat negative": {"iat": -1},
        "iat beyond what a clock can show": {
            "iat": 7500000001,
            "nbf": 7500000001,
            "exp": 7500100000,
            "license": {"id": LICENSE, "ends": None},
        },
        "exp a date in text": {"exp": "2027-02-13T08:00:00Z"},
        "exp after the year 9999": {"exp": 253402300800, "nbf": 253402300000},
        "exp before nbf": {"nbf": NOW + DAY_S, "exp": NOW + DAY_S - 1},
        "exp at iat": {"iat": NOW, "exp": NOW},
        "lasts 400 days and a second": {
            "exp": NOW - DAY_S + 400 * DAY_S + 1,
            "license": {"id": LICENSE, "ends": None},
        },
        "grace outlasts the license": {"license": {"id": LICENSE, "ends": NOW + 36 * DAY_S - 1}},
    }


def _wrong_models() -> dict[str, dict[str, Any]]:
    axis = {"input": "frames", "dim": 0}
    sealed = {"name": "m", "versions": ">=1", "unit": "call", "axis": None, "limit": None}
    wrong = {
        "no model": [],
        "a digest under two models": [model_claims(), model_claims(name="other")],
        "65 models": [{**sealed, "name": f"m{n}"} for n in range(65)],
        "a model twice": [model_claims(), model_claims(limit=5)],
        "a limit below zero": [model_claims(limit=-1)],
        "a limit of 2^53 as text": [model_claims(limit="9007199254740992")],
        "a limit of infinity": [model_claims(limit="\u221e")],
        "an unknown unit": [model_claims(unit="frame")],
        "items without an axis": [model_claims(unit="item")],
        "calls with an axis": [model_claims(axis=axis)],
        "an axis below zero": [model_claims(unit="item", axis={**axis, "dim": -1})],
        "an axis beyond 31": [model_claims(unit="item", axis={**axis, "dim": 32})],
        "an axis of no input": [model_claims(unit="item", axis={**axis, "input": ""})],
        "a digest in capitals": [model_claims(sha256=["AB" * 32])],
        "a digest too short": [model_claims(sha256=["ab" * 31])],
        "no digest": [model_claims(sha256=[])],
        "one digest twice": [model_claims(sha256=["ab" * 32, "ab" * 32])],
        "33 digests": [model_claims(sha256=[f"{n:064x}" for n in range(33)])],
        "both digests and versions": [{**sealed, "sha256": ["ab" * 32]}],
        "neither digests nor versions": [{name: value for name, value in sealed.items() if name != "versions"}],
        "versions that are no specifier": [{**sealed, "versions": "latest; rm"}],
        "a model name with a slash": [model_claims(name="../detector")],
        "a price in the token": [model_claims(price="0.01")],
    }
    return {name: {"models": models} for name, models in wrong.items()}


def _wrong_objects() -> dict[str, dict[str, Any]]:
    anchor = {"epoch": EPOCH, "seq": 0, "head": "0" * 64}
    policy = {"expiry": "deny", "limit": "deny", "clock": "deny"}
    return {
        "license without an end": {"license": {"id": LICENSE}},
        "license with a name": {"license": {"id": LICENSE, "ends": None, "name": "x"}},
        "license of another prefix": {"license": {"id": "lix" + LICENSE[3:], "ends": None}},
        "anchor at 0 with a head": {"anchor": {**anchor, "head": "ab" * 32}},
        "anchor at 5 without a head": {"anchor": {**anchor, "seq": 5}},
        "anchor below zero": {"anchor": {**anchor, "seq": -1}},
        "anchor without an epoch": {"anchor": {"seq": 0, "head": "0" * 64}},
        "anchor's head in capitals": {"anchor": {**anchor, "seq": 1, "head": "AB" * 32}},
        "policy allow": {"policy": {**policy, "expiry": "allow"}},
        "policy missing its clock": {"policy": {"expiry": "deny", "limit": "deny"}},
        "policy null": {"policy": None},
    }
