"""Conformance cases for what is read as plain text: canonical JSON, keys, codes, activations and replies."""

import json
from collections.abc import Iterator
from typing import Any

from core_world import (
    CODE,
    DEVICE,
    DEVICE_KEY,
    OTHER_DEVICE_KEY,
    activation_claims,
    flat,
    header_of,
    jws,
    key,
    keyring_document,
    receipt_claims,
    revocations_claims,
    signed,
    token_text,
)

from meterkit import activation, envelopes
from meterkit.canonical import to_base64url

Case = dict[str, Any]
WEIRD = (
    r'{"\u20ac":"Euro Sign","\r":"Carriage Return","\u000a":"Newline","1":"One","\u0080":"Control\u007f",'
    r'"\ud83d\ude02":"Smiley","\u00f6":"Latin Small Letter O With Diaeresis",'
    r'"\ufb33":"Hebrew Letter Dalet With Dagesh","</script>":"Browser Challenge"}'
)
WEIRD_OUT = (
    '{"\\n":"Newline","\\r":"Carriage Return","1":"One","</script>":"Browser Challenge","\u0080":"Control\u007f",'
    '"\u00f6":"Latin Small Letter O With Diaeresis","\u20ac":"Euro Sign","\U0001f602":"Smiley",'
    '"\ufb33":"Hebrew Letter Dalet With Dagesh"}'
)
CONTROLS_OUT = (
    r'"\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f'
    r'\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f"'
)
CANONICAL = [  # name, JSON in, canonical JSON out: worked by hand or taken from RFC 8785 and its test data
    ("sorted by UTF-16 code units, RFC 8785 3.2.3", WEIRD, WEIRD_OUT),
    (
        "literals and escapes, RFC 8785 3.2.2",
        r"""{"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}""",
        '{"literals":[null,true,false],"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
    ),
    ("arrays keep their order", '[56,{"d":true,"10":null,"1":[ ]}]', '[56,{"1":[],"10":null,"d":true}]'),
    (
        "no locale sorts",
        '{"peach":"1","p\u00e9ch\u00e9":"2","p\u00eache":"3","sin":"4"}',
        '{"peach":"1","p\u00e9ch\u00e9":"2","p\u00eache":"3","sin":"4"}',
    ),
    (
        "structures",
        '{"1":{"f":{"f":"hi","F":5},"\\n":56},"10":{},"":"empty","a":{},"111":[{"e":"yes","E":"no"}],"A":{}}',
        '{"":"empty","1":{"\\n":56,"f":{"F":5,"f":"hi"}},"10":{},"111":[{"E":"no","e":"yes"}],"A":{},"a":{}}',
    ),
    ("text is not normalized", r'{"Unnormalized Unicode":"A\u030a"}', '{"Unnormalized Unicode":"A\u030a"}'),
    (
        "every control character",
        json.dumps("".join(map(chr, range(32)))),
        CONTROLS_OUT,
    ),
    ("what needs no escape", r'"\u007f\u0085\u2028\u2029\uffff\/"', '"\u007f\u0085\u2028\u2029\uffff/"'),
    ("a pair of surrogates", r'"\uD83D\uDE00"', '"\U0001f600"'),
    ("the largest numbers", "[9007199254740991, -9007199254740991, 0]", "[9007199254740991,-9007199254740991,0]"),
    ("blanks of every kind", ' \t\r\n{ "b" : [ 1 , 2 ] , "a" : { } } ', '{"a":{},"b":[1,2]}'),
    ("eight levels", "[[[[[[[[]]]]]]]]", "[[[[[[[[]]]]]]]]"),
    ("eight levels, twice", "[[[[[[[[]]]]]]],[[[[[[[]]]]]]]]", "[[[[[[[[]]]]]]],[[[[[[[]]]]]]]]"),
    ("brackets in text count for nothing", '["[[[[[[[[[[","{\\"{{{{{{{{{"]', '["[[[[[[[[[[","{\\"{{{{{{{{{"]'),
    ("text alone", '"x"', '"x"'),
]
REFUSED = {
    "RFC 8785's numbers": '{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001]}',
    "a float that is whole": "1.0",
    "an exponent": "1e3",
    "minus zero": "-0",
    "NaN": "[NaN]",
    "Infinity": "[Infinity]",
    "minus Infinity": "[-Infinity]",
    "2^53": "9007199254740992",
    "minus 2^53": "-9007199254740992",
    "a number of 5,000 digits": "9" * 5000,
    "a leading zero": "01",
    "digits of another script": "[\u0661]",
    "a member twice": '{"a":1,"a":1}',
    "a member twice, once escaped": '{"a":1,"\\u0061":1}',
    "an inner member twice": '[{"a":{"b":1,"b":2}}]',
    "a lone high surrogate": '"\\ud800"',
    "a lone low surrogate": '"\\udc00"',
    "a lone surrogate as a name": '{"\\ud800":1}',
    "surrogates the wrong way round": '"\\ude00\\ud83d"',
    "a byte-order mark": "\ufeff{}",
    "nine levels": "[[[[[[[[[]]]]]]]]]",
    "nine levels, mixed": '[{"a":[{"a":[{"a":[{"a":[]}]}]}]}]',
    "100,000 levels": "[" * 100_000,
    "a string without an end, full of escaped quotes": "[[" + '"' + '\\"' * 100_000 + "[[[[[[[",
    "nothing": "",
    "blanks alone": "  ",
    "two values": "1 2",
    "a raw newline in text": '"a\nb"',
    "a raw NUL in text": '"a\x00b"',
    "a tab escaped by hand": '"\\x09"',
    "single quotes": "{'a':1}",
    "a trailing comma": "[1,]",
    "a comment": "[1/**/]",
    "a bare word": "nul",
    "a bare name": "{a:1}",
    "a no-break space": "[1,\u00a02]",
}
NOT_UTF8 = {
    "a lone byte 0xff": "22ff22",
    "an overlong slash": "22c0af22",
    "a surrogate in UTF-8": "22eda08022",
    "beyond the last character": "22f490808022",
    "cut in the middle of a character": "22e282",
    "UTF-16 with its mark": "fffe22002200",
}


def canonical() -> Iterator[Case]:
    """Strict JSON in, canonical JSON out."""
    for name, json_in, out in CANONICAL:
        yield {"name": name, "json": json_in, "canonical": out, "expect": "ok"}
    for name, json_in in REFUSED.items():
        if len(json_in) < 6000:  # the larger ones are for the machine to make: tests/core/test_canonical.py
            yield {"name": name, "json": json_in, "expect": "malformed_json"}
    for name, octets in NOT_UTF8.items():
        yield {"name": name, "json_hex": octets, "expect": "not_text"}


# Points of small order, canonical and not, each with both signs: no signature by such a key means anything.
SMALL_ORDER = {
    "order 4": "0000000000000000000000000000000000000000000000000000000000000000",
    "order 4, signed": "0000000000000000000000000000000000000000000000000000000000000080",
    "order 1": "0100000000000000000000000000000000000000000000000000000000000000",
    "order 1, signed": "0100000000000000000000000000000000000000000000000000000000000080",
    "order 2": "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "order 2, signed": "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "order 4, not canonical": "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "order 4, not canonical, signed": "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "order 1, not canonical": "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "order 1, not canonical, signed": "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "order 8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "order 8, signed": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "order 8, the other": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "order 8, the other, signed": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
}
SMALL_ORDER_X25519 = {
    "0": "0000000000000000000000000000000000000000000000000000000000000000",
    "1": "0100000000000000000000000000000000000000000000000000000000000000",
    "order 8": "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "order 8, the other": "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "p - 1": "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "p": "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "p + 1": "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0, top bit set": "0000000000000000000000000000000000000000000000000000000000000080",
    "1, top bit set": "0100000000000000000000000000000000000000000000000000000000000080",
}


def keys() -> Iterator[Case]:
    """Public keys as text, with the thumbprint that names each."""
    rfc8037 = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    known = {"name": "RFC 8037 A.1, thumbprint A.3", "use": "sign", "key": rfc8037}
    yield {**known, "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k", "expect": "ok"}
    for name, octets in SMALL_ORDER.items():
        text = to_base64url(bytes.fromhex(octets))
        yield {"name": f"small order: {name}", "use": "sign", "key": text, "expect": "malformed_key"}
    for n in (2, 18):
        octets_n = (2**255 - 19 + n).to_bytes(32, "little")
        yield {
            "name": f"not canonical: p + {n}",
            "use": "sign",
            "key": to_base64url(octets_n),
            "expect": "malformed_key",
        }
    for name, octets in SMALL_ORDER_X25519.items():
        text = to_base64url(bytes.fromhex(octets))
        yield {"name": f"X25519, small order: {name}", "use": "seal", "key": text, "expect": "malformed_key"}
    base = to_base64url(bytes([9]) + bytes(31))
    yield {"name": "X25519, the base point", "use": "seal", "key": base, "expect": "ok"}
    wrong = {
        "empty": "",
        "31 bytes": to_base64url(bytes([9]) + bytes(30)),
        "33 bytes": to_base64url(bytes([9]) + bytes(32)),
        "padded": rfc8037 + "=",
        "standard base64 alphabet": rfc8037.replace("_", "/"),
        "last character not canonical": rfc8037[:-1] + "p",
        "hex": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "blank at the end": rfc8037 + " ",
        "not ASCII": rfc8037[:-1] + "\u03bf",
        "a secret key as text": "mk-secret-ed25519." + rfc8037,
        "a secret key as PEM": "-----BEGIN ED25519 PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END",
        "a JWK": '{"kty":"OKP","crv":"Ed25519","x":"' + rfc8037 + '"}',
    }
    for use in ("sign", "seal"):
        for name, text in wrong.items():
            yield {"name": f"{use}: {name}", "use": use, "key": text, "expect": "malformed_key"}


def codes() -> Iterator[Case]:
    """Activation codes as a person types them."""
    text = CODE.unsafe_to_text()
    name, secret = text.split(".")
    last = "abcdefghijklmnopqrstuvwxyz234567"
    ok = {"plain": text, "in capitals": text.upper(), "blanks around it": f"  {text}\n"}
    for each, typed in ok.items():
        yield {"name": each, "code": typed, "id": CODE.id, "secret_hex": CODE.secret.hex(), "expect": "ok"}
    wrong = {
        "empty": "",
        "its id alone": name,
        "its secret alone": secret,
        "without the full stop": name + secret,
        "a character short": text[:-1],
        "a character long": text + "a",
        "a digit that is none of base32": text[:-2] + "1" + text[-1],
        "of another prefix": "lic" + text[4:],
        "last character not canonical": text[:-1] + last[last.index(text[-1]) ^ 1],
        "a blank inside": f"{name}. {secret}",
        "a NUL": text[:-1] + "\x00",
        "in Cyrillic": text.replace("c", "\u0441", 1),
        "of 205 characters": "code_" + "a" * 200,
    }
    for each, typed in wrong.items():
        yield {"name": each, "code": typed, "expect": "malformed_code"}


def activations() -> Iterator[Case]:
    """Activation requests: each brings the key that must have signed it."""

    def request(name: str, text: str, expect: str, proof: str | None = None) -> Case:
        return {"name": name, "request": text, "expect": expect, "proof": proof}

    def device_signed(**changes: Any) -> str:
        return signed(envelopes.ACTIVATION, activation_claims(**changes), DEVICE_KEY)

    yield request("plain", device_signed(), "ok", "ok")
    wrong_secret = activation.proof(bytes(16), DEVICE)
    yield request("a proof by another secret", device_signed(proof=wrong_secret), "ok", "proof_wrong")
    others = activation.proof(CODE.secret, f"dev_{OTHER_DEVICE_KEY.kid}")
    yield request("a proof for another device", device_signed(proof=others), "ok", "proof_wrong")
    stolen = signed(envelopes.ACTIVATION, activation_claims(), OTHER_DEVICE_KEY)
    yield request("another device's signature and kid", stolen, "key_unknown")
    header = header_of(envelopes.ACTIVATION, DEVICE_KEY)
    forged = jws(header, activation_claims(), OTHER_DEVICE_KEY)
    yield request("another device's signature, this one's kid", forged, "signature_bad")
    for name, octets in SMALL_ORDER.items():
        text = to_base64url(bytes.fromhex(octets))
        yield request(f"a signing key of small order: {name}", device_signed(sign_key=text), "malformed_key")
    seal_key = to_base64url(bytes(32))
    yield request("a sealing key of small order", device_signed(seal_key=seal_key), "malformed_key")
    yield from _wrong_requests(device_signed, request)


def _wrong_requests(device_signed: Any, request: Any) -> Iterator[Case]:
    capabilities = activation_claims()["capabilities"]
    wrong: dict[str, dict[str, Any]] = {
        "version 2": {"v": 2},
        "an unknown member": {"secret": "x"},
        "the code itself": {"code_id": CODE.unsafe_to_text()},
        "a proof in capitals": {"proof": "AB" * 32},
        "a nonce too short": {"nonce": "AA"},
        "a position at 0 with a head": {"position": {**activation_claims()["position"], "head": "ab" * 32}},
        "33 kinds that it reads": {"capabilities": {**capabilities, "v": {f"k{n}": 1 for n in range(33)}}},
        "a kind named by a path": {"capabilities": {**capabilities, "v": {"../token": 1}}},
        "17 hints": {"capabilities": {**capabilities, "hints": [f"{n:064x}" for n in range(17)]}},
        "a NUL in its platform": {"capabilities": {**capabilities, "platform": "linux\x00"}},
    }
    for name, changes in wrong.items():
        yield request(name, device_signed(**changes), "malformed_members")
    twice = jws(
        header_of(envelopes.ACTIVATION, DEVICE_KEY), flat(activation_claims())[:-1] + b',"v":1}', DEVICE_KEY
    )
    yield request("a member twice", twice, "malformed_json")
    yield request("a token", token_text(), "wrong_type")
    hostile = jws(header_of(envelopes.ACTIVATION, DEVICE_KEY), b'[["' + b'\\"' * 5000 + b"[[[[[[[[", DEVICE_KEY)
    yield request("a string without an end, full of escaped quotes", hostile, "malformed_json")
    big = jws(header_of(envelopes.ACTIVATION, DEVICE_KEY), b" " * 13_000, DEVICE_KEY)
    yield request("over 16 KiB", big, "too_large")


def replies() -> Iterator[Case]:
    """Replies: a strict frame around parts that are judged one by one."""
    token = token_text()
    plain: dict[str, Any] = {
        "v": 1,
        "keyrings": [keyring_document()],
        "revocations": signed(envelopes.REVOCATIONS, revocations_claims(), "revocations"),
        "receipts": [signed(envelopes.RECEIPT, receipt_claims(), "receipt")],
        "token": token,
        "keys": [],
        "advice": {"next_sync_s": 86400, "models": ["detector"]},
    }
    least = {**plain, "keyrings": [], "revocations": None, "receipts": [], "token": None}

    def reply(name: str, value: Any, expect: str) -> Case:
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        return {"name": name, "reply": text, "expect": expect}

    yield reply("everything", plain, "ok")
    yield reply("nothing new", least, "ok")
    yield reply("spaced out", json.dumps(plain, indent=1), "ok")
    stranger = key("stranger")
    part = jws(header_of(envelopes.TOKEN, stranger), {}, stranger)
    yield reply("a token that will be refused: the frame still stands", {**plain, "token": part}, "ok")
    yield reply("a captive portal's page", "<!doctype html><title>Log in</title>", "malformed_json")
    yield reply("empty", "", "malformed_json")
    yield reply("a member twice", json.dumps(plain)[:-1] + ',"token":null}', "malformed_json")
    yield reply("a problem document", {"type": "about:blank", "status": 503}, "malformed_members")
    yield reply("a list", [plain], "malformed_members")
    wrong: dict[str, dict[str, Any]] = {
        "version 2": {"v": 2},
        "an unknown member": {"script": "x"},
        "a token that is no envelope": {"token": "trust me"},
        "a padded token": {"token": token + "=="},
        "receipts no list": {"receipts": plain["receipts"][0]},
        "17 receipts": {"receipts": plain["receipts"] * 17},
        "17 keyrings": {"keyrings": plain["keyrings"] * 17},
        "a keyring without signatures": {"keyrings": [[]]},
        "a sync in the past": {"advice": {"next_sync_s": -1, "models": []}},
        "a sync in two years": {"advice": {"next_sync_s": 2 * 366 * 86_400, "models": []}},
        "advice of a path": {"advice": {"next_sync_s": 1, "models": ["../x"]}},
    }
    for name, changes in wrong.items():
        yield reply(name, {**plain, **changes}, "malformed_members")
    missing = {name: value for name, value in plain.items() if name != "keys"}
    yield reply("a member missing", missing, "malformed_members")
