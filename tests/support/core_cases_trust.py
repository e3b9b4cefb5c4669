"""Conformance cases for what the vendor signs besides tokens: kinds told apart, keyrings, lists, receipts."""

from collections.abc import Iterator
from typing import Any

from core_world import (
    DAY_S,
    DEVICE_KEY,
    EPOCH,
    ISSUER,
    NEW_ROOT_NAMES,
    NEW_ROOTS,
    NOW,
    OTHER_DEVICE,
    OTHER_DEVICE_KEY,
    ROOT_NAMES,
    ROOTS,
    activation_claims,
    batch_head,
    batch_text,
    chained,
    flat,
    header_of,
    ident,
    jws,
    key,
    keyring_claims,
    keyring_document,
    keyring_key,
    receipt_claims,
    revocations_claims,
    signed,
    story,
    token_claims,
)

from meterkit import envelopes
from meterkit.canonical import to_bytes

Case = dict[str, Any]


def one_of_each() -> dict[str, str]:
    """One sound envelope of each kind."""
    entries = chained(story())
    return {
        "token": signed(envelopes.TOKEN, token_claims(), "token"),
        "receipt": signed(envelopes.RECEIPT, receipt_claims(), "receipt"),
        "revocations": signed(envelopes.REVOCATIONS, revocations_claims(), "revocations"),
        "evidence": signed(envelopes.EVIDENCE, {"v": 1, "parts": {}}, "invoice"),
        "keyring": signed(envelopes.KEYRING_DOCUMENT, keyring_claims(), "root 1"),
        "package": signed(envelopes.PACKAGE, {"v": 1, "name": "detector"}, "package"),
        "activation": signed(envelopes.ACTIVATION, activation_claims(), DEVICE_KEY),
        "batch": batch_text(batch_head(entries), [entry.body for entry in entries]),
    }


def passed_off() -> Iterator[Case]:
    """Every kind, handed to the reader of every other; and every kind's form, signed by the wrong key."""
    sound = one_of_each()
    for kind, envelope in sound.items():
        for read_as in sound:
            expect = "ok" if kind == read_as else "wrong_type"
            yield {
                "name": f"a {kind} read as a {read_as}",
                "read_as": read_as,
                "envelope": envelope,
                "expect": expect,
            }
    claims: dict[str, Any] = {
        "token": token_claims(),
        "receipt": receipt_claims(),
        "revocations": revocations_claims(),
        "evidence": {"v": 1, "parts": {}},
        "package": {"v": 1, "name": "detector"},
    }
    kinds = {kind.name: kind for kind in envelopes.KINDS.values()}
    for name, payload in claims.items():
        for signer in ("token", "receipt", "revocations", "invoice", "package", "root 1", "device"):
            if signer != kinds[name].purpose:
                yield {
                    "name": f"a {name} signed by the key: {signer}",
                    "read_as": name,
                    "envelope": signed(kinds[name], payload, signer),
                    "expect": "key_unknown",
                }


def keyring(name: str, document: list[str], expect: str, held: list[list[str]] | None = None) -> Case:
    """One case: the documents taken before it, and what becomes of this one."""
    return {"name": name, "held": held or [], "document": document, "expect": expect}


def keyrings() -> Iterator[Case]:
    """Keyrings: who must have signed, what may stand in one, and which may follow which."""
    yield from _first_keyrings()
    yield from _wrong_keyrings()
    yield from _following_keyrings()
    yield from _changing_roots()


def _first_keyrings() -> Iterator[Case]:
    two = keyring_document()
    yield keyring("signed by two of three", two, "ok")
    yield keyring("signed by all three", keyring_document(signers=ROOT_NAMES), "ok")
    yield keyring("two trusted, one stranger", keyring_document(signers=(*ROOT_NAMES[:2], "stranger")), "ok")
    one = keyring_claims(keys=[keyring_key("token", "token")])
    yield keyring("a single key in it", keyring_document(one), "ok")
    yield keyring("no key in it", keyring_document(keyring_claims(keys=[])), "ok")
    yield keyring("sixteen signatures", two * 8, "ok")
    yield keyring("signed by none", [], "malformed_members")
    yield keyring("seventeen signatures", two * 8 + two[:1], "malformed_members")
    yield keyring("signed by one of three", two[:1], "threshold_unmet")
    yield keyring("signed by one of three, twice", two[:1] * 2, "threshold_unmet")
    yield keyring("one trusted, one stranger", keyring_document(signers=("root 1", "stranger")), "threshold_unmet")
    yield keyring("signed by an online key", keyring_document(signers=("token", "receipt")), "threshold_unmet")
    later = keyring_document(keyring_claims(version=2))
    yield keyring("two signatures over different payloads", [two[0], later[1]], "threshold_unmet")
    spaced = keyring_document(to_bytes(keyring_claims()) + b" ", ("root 2",))
    yield keyring("payloads that differ by a blank", [two[0], *spaced], "threshold_unmet")
    lied = jws(header_of(envelopes.KEYRING_DOCUMENT, key("root 2")), keyring_claims(), key("stranger"))
    yield keyring("a root's name, a stranger's signature", [two[0], lied], "signature_bad")
    yield keyring("a token among the signatures", [two[0], one_of_each()["token"]], "wrong_type")
    yield keyring("another vendor's", keyring_document(keyring_claims(iss="other.example")), "issuer_wrong")
    foreign = keyring_claims(roots={"threshold": 2, "keys": list(NEW_ROOTS)})
    yield keyring("a first keyring that names other roots", keyring_document(foreign), "threshold_unmet")
    fewer = keyring_claims(roots={"threshold": 1, "keys": list(ROOTS)})
    yield keyring("a first keyring that lowers the threshold", keyring_document(fewer), "threshold_unmet")


def _wrong_keyrings() -> Iterator[Case]:
    zero, one = "A" * 43, "AQ" + "A" * 41
    entry = keyring_key("token", "token")
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "two keys with one kid": (
            {"keys": [entry, {**keyring_key("other", "token"), "kid": entry["kid"]}]},
            "malformed_key",
        ),
        "one key under two kids": (
            {"keys": [entry, {**entry, "kid": keyring_key("other")["kid"]}]},
            "malformed_key",
        ),
        "one key twice": ({"keys": [entry, {**entry, "purposes": ["receipt"]}]}, "malformed_key"),
        "a kid of another key": ({"keys": [{**entry, "kid": keyring_key("other")["kid"]}]}, "malformed_key"),
        "the neutral point as a key": ({"keys": [{**entry, "key": one}]}, "malformed_key"),
        "a point of order 4 as a key": ({"keys": [{**entry, "key": zero}]}, "malformed_key"),
        "a secret key as a key": ({"keys": [{**entry, "key": "mk-secret-ed25519." + zero}]}, "malformed_members"),
        "a root of small order": ({"roots": {"threshold": 2, "keys": [*ROOTS, zero]}}, "malformed_key"),
        "one root twice": ({"roots": {"threshold": 2, "keys": [ROOTS[0], ROOTS[0]]}}, "malformed_members"),
        "a threshold of none": ({"roots": {"threshold": 0, "keys": list(ROOTS)}}, "malformed_members"),
        "a threshold above its roots": ({"roots": {"threshold": 4, "keys": list(ROOTS)}}, "malformed_key"),
        "no roots": ({"roots": {"threshold": 1, "keys": []}}, "malformed_members"),
        "a purpose of root": ({"keys": [{**entry, "purposes": ["root"]}]}, "malformed_members"),
        "a purpose twice": ({"keys": [{**entry, "purposes": ["token", "token"]}]}, "malformed_members"),
        "a key for nothing": ({"keys": [{**entry, "purposes": []}]}, "malformed_members"),
        "65 keys": ({"keys": [keyring_key(f"key {n}", "token") for n in range(65)]}, "malformed_members"),
        "version 0": ({"version": 0}, "malformed_members"),
        "version 2^63 - 1": ({"version": 2**63 - 1}, "malformed_json"),
        "an unknown member": ({"note": "x"}, "malformed_members"),
    }
    for name, (changes, expect) in wrong.items():
        yield keyring(f"keyring with {name}", keyring_document(flat(keyring_claims(**changes))), expect)


def _following_keyrings() -> Iterator[Case]:
    first = keyring_document()
    second = keyring_document(keyring_claims(version=2, keys=[]))
    ninth = keyring_document(keyring_claims(version=9))
    yield keyring("the next version", second, "ok", [first])
    yield keyring("a much later version, same roots", ninth, "ok", [first])
    yield keyring("the same again", first, "ok", [first])
    others = keyring_document(signers=("root 2", "root 3"))
    yield keyring("the same, signed by other roots", others, "ok", [first])
    yield keyring("an older version", first, "version_rollback", [second])
    yield keyring("an older version, two steps back", second, "version_rollback", [first, ninth])
    other = keyring_document(keyring_claims(expires=NOW))
    yield keyring("the same version with other content", other, "version_conflict", [first])
    yield keyring("the next version, signed by one root", second[:1], "threshold_unmet", [first])


def _changing_roots() -> Iterator[Case]:
    first = keyring_document()
    roots = {"threshold": 2, "keys": list(NEW_ROOTS)}
    claims = keyring_claims(version=2, roots=roots)
    both = keyring_document(claims, ("root 1", "root 3", "root 4"))
    yield keyring("roots change, signed by two old and two new", both, "ok", [first])
    old_only = keyring_document(claims, ("root 1", "root 2"))
    yield keyring("roots change, signed by the old alone", old_only, "threshold_unmet", [first])
    new_only = keyring_document(claims, ("root 4", "root 5"))
    yield keyring("roots change, signed by the new alone", new_only, "threshold_unmet", [first])
    one_old = keyring_document(claims, NEW_ROOT_NAMES)
    yield keyring("roots change, one old short", one_old, "threshold_unmet", [first])
    one_new = keyring_document(claims, ROOT_NAMES)
    yield keyring("roots change, one new short", one_new, "threshold_unmet", [first])
    skipping = keyring_document(keyring_claims(version=3, roots=roots), ("root 1", "root 3", "root 4"))
    yield keyring("roots change, a version skipped", skipping, "version_rollback", [first])
    after = keyring_document(keyring_claims(version=3, roots=roots), ("root 4", "root 5"))
    yield keyring("after a change, signed by the new", after, "ok", [first, both])
    back = keyring_document(keyring_claims(version=3, roots=roots), ("root 1", "root 2"))
    yield keyring("after a change, signed by the old", back, "threshold_unmet", [first, both])
    lower = keyring_claims(version=2, roots={"threshold": 1, "keys": list(ROOTS)})
    yield keyring("the threshold lowered by two", keyring_document(lower), "ok", [first])
    higher = keyring_claims(version=2, roots={"threshold": 3, "keys": list(ROOTS)})
    yield keyring("the threshold raised to three, by two", keyring_document(higher), "threshold_unmet", [first])
    yield keyring("the threshold raised to three, by three", keyring_document(higher, ROOT_NAMES), "ok", [first])
    weak = keyring_claims(version=2, roots={"threshold": 2, "keys": [*ROOTS, "A" * 43]})
    yield keyring("a new root of small order", keyring_document(weak), "malformed_key", [first])


def revocations() -> Iterator[Case]:
    """Revocation lists, and which may follow which."""

    def listed(signer: str = "revocations", **changes: Any) -> str:
        return jws(header_of(envelopes.REVOCATIONS, key(signer)), revocations_claims(**changes), key(signer))

    def revoked(name: str, text: str, expect: str, held: str | None = None) -> Case:
        return {"name": name, "held": held, "revocations": text, "expect": expect}

    third = listed()
    yield revoked("a first list", third, "ok")
    yield revoked("an empty list", listed(tokens=[], licenses=[], devices=[]), "ok")
    yield revoked("with a package", listed(packages=[{"name": "detector", "versions": "<2"}]), "ok")
    yield revoked("a later version", listed(version=4), "ok", third)
    yield revoked("the same again", third, "ok", third)
    yield revoked("an older version", listed(version=2), "version_rollback", third)
    yield revoked("the same version with an entry less", listed(tokens=[]), "version_conflict", third)
    yield revoked("another vendor's", listed(iss="other.example"), "issuer_wrong")
    yield revoked("signed after its key's end", listed(iat=NOW + 266 * DAY_S), "key_not_valid")
    yield revoked("signed by the token key", listed("token"), "key_unknown")
    yield revoked("version 0", listed(version=0), "malformed_members")
    yield revoked("a token twice", listed(tokens=[ident("tok")] * 2), "malformed_members")
    yield revoked("a license among the tokens", listed(tokens=[ident("lic")]), "malformed_members")
    short = {name: value for name, value in revocations_claims().items() if name != "packages"}
    yield revoked("without its packages", signed(envelopes.REVOCATIONS, short, "revocations"), "malformed_members")


def receipts() -> Iterator[Case]:
    """Receipts: for this vendor, product and device, and with totals that make sense."""

    def receipt(name: str, expect: str, signer: str = "receipt", **changes: Any) -> Case:
        return {
            "name": name,
            "receipt": signed(envelopes.RECEIPT, receipt_claims(**changes), signer),
            "expect": expect,
        }

    totals = receipt_claims()["totals"]
    yield receipt("for a short ledger", "ok")
    yield receipt(
        "before the first record", "ok", position={"epoch": EPOCH, "seq": 0, "head": "0" * 64}, totals=[]
    )
    yield receipt("another vendor's", "issuer_wrong", iss="other.example")
    yield receipt("another product's", "audience_wrong", aud="other")
    yield receipt("another device's", "subject_wrong", sub=OTHER_DEVICE)
    yield receipt("signed before its key began", "key_not_valid", iat=NOW - 100 * DAY_S - 1)
    yield receipt("signed by the token key", "key_unknown", "token")
    yield receipt("seq 0 with a head", "malformed_members", position={"epoch": EPOCH, "seq": 0, "head": "ab" * 32})
    yield receipt("units below zero", "malformed_members", totals=[{**totals[0], "units": -1}])
    yield receipt("units as text", "malformed_members", totals=[{**totals[0], "units": "41"}])
    yield receipt("an unknown unit", "malformed_members", totals=[{**totals[0], "unit": "frame"}])
    yield receipt("an amount of money", "malformed_members", totals=[{**totals[0], "amount": "1.00"}])
    yield receipt("one meter twice", "malformed_members", totals=[totals[0], totals[0]])
    yield receipt("no totals", "malformed_members", totals=None)
    yield receipt("257 meters", "malformed_members", totals=[{**totals[0], "model": f"m{n}"} for n in range(257)])


def given() -> dict[str, Any]:
    """What every case of these files starts from."""
    devices = {f"dev_{each.kid}": each.verify_key.text for each in (DEVICE_KEY, OTHER_DEVICE_KEY)}
    return {
        "issuer": ISSUER,
        "product": "camera",
        "device": f"dev_{DEVICE_KEY.kid}",
        "devices": devices,
        "roots": list(ROOTS),
        "threshold": 2,
        "keyring": keyring_document(),
    }
