"""Every conformance vector, through the product; and every sound signature through PyJWT, as a second opinion."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from core_world import outcome
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from meterkit import activation, canonical, envelopes, exchange, keyrings, ledger, receipts, tokens
from meterkit.clocks import NS, Instant
from meterkit.envelopes import Addressee
from meterkit.errors import CODES, LedgerError, TrustError
from meterkit.keys import Keyring, Trust, VerifyKey, check_seal_key
from meterkit.ledger import Chain
from meterkit.positions import Position
from meterkit.revocations import Revocations, open_revocations

Case = dict[str, Any]
VECTORS = Path(__file__).parents[1] / "vectors"
WIRE_FORMAT = VECTORS.parents[1] / "docs" / "wire-format.md"
MADE = [
    *("activations", "batches", "canonical", "chains", "codes", "envelopes", "keyrings", "keys"),
    *("receipts", "replies", "revocations", "tokens"),
]


def load(name: str) -> list[Case]:
    """The cases of one file, each with what the file gives and what the case puts in its stead."""
    read = json.loads((VECTORS / f"{name}.json").read_text(encoding="ascii"))
    return [{**read["given"], **case} for case in read["cases"]]


def each_of(name: str) -> pytest.MarkDecorator:
    cases = load(name)
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def keyring_of(case: Case) -> Keyring:
    trust = Trust(issuer=case["issuer"], roots=tuple(case["roots"]), threshold=case["threshold"])
    return keyrings.follow(case["keyring"], trust=trust, held=None)


def finder(case: Case) -> Callable[[str], VerifyKey]:
    """Find a device's key by its kid, as a server does."""

    def find(kid: str) -> VerifyKey:
        text = case["devices"].get(f"dev_{kid}")
        if text is None:
            raise TrustError("key_unknown")
        return VerifyKey(text)

    return find


def addressee_of(case: Case) -> Addressee:
    return Addressee(issuer=case["issuer"], product=case["product"], device=case["device"])


def token_arguments(case: Case) -> dict[str, Any]:
    claims = {
        "v": 1,
        "iss": case["issuer"],
        "iat": 0,
        "version": 1,
        "expires": 0,
        "roots": {"threshold": 1, "keys": [case["keys"][0]["key"]]},
        "keys": case["keys"],
    }
    return {
        "keyring": Keyring.from_claims(claims),
        "addressee": addressee_of(case),
        "revocations": Revocations(**{kind: frozenset(named) for kind, named in case["revoked"].items()}),
        "serial_min": case["serial_min"],
        "now": Instant(effective_ns=case["now"] * NS, boot_ns=0, boot="", suspect=case["clock_suspect"]),
    }


@each_of("tokens")
def test_token(case):
    given = token_arguments(case)
    assert outcome(tokens.verify, case["token"], **given) == case["expect"]
    if case["expect"] == "ok" and "state" in case:
        token = tokens.verify(case["token"], **given)
        assert tokens.standing(token, given["now"]).state == case["state"]


OPENERS: dict[str, Callable[[Case, Keyring], Any]] = {
    "token": lambda case, keyring: tokens.open_genuine(
        case["envelope"],
        keyring=keyring,
        addressee=addressee_of(case),
        revocations=Revocations(),
        serial_min=0,
    ),
    "receipt": lambda case, keyring: receipts.open_receipt(
        case["envelope"], keyring=keyring, addressee=addressee_of(case)
    ),
    "revocations": lambda case, keyring: open_revocations(
        case["envelope"], issuer=case["issuer"], keyring=keyring, held=Revocations()
    ),
    "evidence": lambda case, keyring: open_for_purpose(envelopes.EVIDENCE, case["envelope"], keyring),
    "package": lambda case, keyring: open_for_purpose(envelopes.PACKAGE, case["envelope"], keyring),
    "keyring": lambda case, _: envelopes.open_keyring(
        [case["envelope"]], issuer=case["issuer"], roots=tuple(case["roots"]), threshold=1
    ),
    "activation": lambda case, _: activation.open_activation(case["envelope"]),
    "batch": lambda case, _: exchange.open_batch(case["envelope"], finder(case)),
}


def open_for_purpose(kind: envelopes.Kind, text: str, keyring: Keyring) -> tuple[str, bytes]:
    return envelopes.open_payload(kind, text, lambda kid: keyring.find(kid, kind.purpose))


@each_of("envelopes")
def test_envelope(case):
    assert outcome(OPENERS[case["read_as"]], case, keyring_of(case)) == case["expect"]


def test_envelopes_of_every_kind_were_read_as_every_kind():
    cases = [case for case in load("envelopes") if case["expect"] in ("ok", "wrong_type")]
    assert len(cases) == len(envelopes.KINDS) ** 2
    assert {case["read_as"] for case in cases} == {kind.name for kind in envelopes.KINDS.values()}


@each_of("keyrings")
def test_keyring(case):
    trust = Trust(issuer=case["issuer"], roots=tuple(case["roots"]), threshold=case["threshold"])
    held = None
    for document in case["held"]:
        held = keyrings.follow(document, trust=trust, held=held)
    assert outcome(keyrings.follow, case["document"], trust=trust, held=held) == case["expect"]


@each_of("revocations")
def test_revocations(case):
    given = {"issuer": case["issuer"], "keyring": keyring_of(case)}
    held = open_revocations(case["held"], held=Revocations(), **given) if case["held"] else Revocations()
    assert outcome(open_revocations, case["revocations"], held=held, **given) == case["expect"]


@each_of("receipts")
def test_receipt(case):
    given = {"keyring": keyring_of(case), "addressee": addressee_of(case)}
    assert outcome(receipts.open_receipt, case["receipt"], **given) == case["expect"]
    if case["expect"] == "ok":
        receipt = receipts.open_receipt(case["receipt"], **given)
        payload = canonical.from_base64url(case["receipt"].split(".")[1])
        assert receipt.to_claims() == json.loads(payload)


def reach(chain: Chain, bodies: list[bytes], end: Position) -> None:
    """Follow records to the position that they must reach, as whoever accepts a ledger does."""
    chain, _ = ledger.verify_chain(chain, bodies)
    if chain.position != end:
        raise LedgerError("chain_broken")


@each_of("chains")
def test_chain(case):
    bodies = [record.encode("utf-8") for record in case["records"]]
    chain = Chain(device=case["device"], position=Position(epoch=case["epoch"]))
    end = Position(epoch=case["epoch"], seq=len(bodies), head=case["head"])
    assert outcome(reach, chain, bodies, end) == case["expect"]


@each_of("batches")
def test_batch(case):
    assert outcome(exchange.open_batch, case["batch"], finder(case)) == case["expect"]
    if case["expect"] != "ok":
        return
    kid, batch = exchange.open_batch(case["batch"], finder(case))
    assert batch.to_payload() == canonical.from_base64url(case["batch"].split(".")[1])
    chain = Chain(device=f"dev_{kid}", position=Position(epoch=case["epoch"]))
    if batch.start != chain.position:
        assert case["follow"] == "batch_gap"
    else:
        assert outcome(reach, chain, list(batch.bodies), batch.end) == case["follow"]


@each_of("canonical")
def test_canonical(case):
    data = bytes.fromhex(case["json_hex"]) if "json_hex" in case else case["json"].encode("utf-8")
    assert outcome(canonical.from_bytes, data, bytes_max=10_000) == case["expect"]
    if case["expect"] == "ok":
        written = canonical.to_bytes(canonical.from_bytes(data, bytes_max=10_000))
        assert written == case["canonical"].encode("utf-8")
        assert canonical.from_canonical(written, bytes_max=10_000) == json.loads(data)
        verdict = "ok" if written == data else "not_canonical"
        assert outcome(canonical.from_canonical, data, bytes_max=10_000) == verdict


@each_of("keys")
def test_key(case):
    read: Callable[[str], Any] = VerifyKey if case["use"] == "sign" else check_seal_key
    assert outcome(read, case["key"]) == case["expect"]
    if "kid" in case:
        assert VerifyKey(case["key"]).kid == case["kid"]


@each_of("codes")
def test_code(case):
    assert outcome(activation.read_code, case["code"]) == case["expect"]
    if case["expect"] == "ok":
        code = activation.read_code(case["code"])
        assert (code.id, code.secret.hex()) == (case["id"], case["secret_hex"])


@each_of("activations")
def test_activation(case):
    assert outcome(activation.open_activation, case["request"]) == case["expect"]
    if case["expect"] == "ok":
        request = activation.open_activation(case["request"])
        secret = bytes.fromhex(case["secret_hex"])
        assert outcome(activation.check_proof, secret, request) == case["proof"]
        assert request.to_claims() == json.loads(canonical.from_base64url(case["request"].split(".")[1]))


@each_of("replies")
def test_reply(case):
    data = case["reply"].encode("utf-8")
    assert outcome(exchange.read_reply, data) == case["expect"]
    if case["expect"] == "ok":
        assert json.loads(exchange.read_reply(data).to_bytes()) == json.loads(data)


# -- a second opinion


def signed_by(text: str, known: dict[str, str]) -> Ed25519PublicKey:
    """The key that the header names, from the keys as text that are known by kid."""
    kid = jwt.get_unverified_header(text)["kid"]
    return Ed25519PublicKey.from_public_bytes(canonical.from_base64url(known[kid]))


def known_keys(case: Case) -> dict[str, str]:
    known = {entry["kid"]: entry["key"] for entry in case.get("keys", [])}
    known |= {device.removeprefix("dev_"): key for device, key in case.get("devices", {}).items()}
    known |= {VerifyKey(root).kid: root for root in case.get("roots", [])}
    if "keyring" in case:
        known |= {kid: entry.key.text for kid, entry in keyring_of(case).keys.items()}
    return known


def second_opinion(text: str, case: Case) -> Any:
    return jwt.PyJWS().decode(text, signed_by(text, known_keys(case)), algorithms=["EdDSA"])


@pytest.mark.parametrize(
    ("name", "member"),
    [("tokens", "token"), ("envelopes", "envelope"), ("receipts", "receipt"), ("revocations", "revocations"),
     ("batches", "batch")],
)  # fmt: skip
def test_what_is_sound_here_is_sound_to_pyjwt_and_forged_signatures_are_not(name, member):
    opinions = {"ok": 0, "signature_bad": 0}
    for case in load(name):
        if case["expect"] == "ok":
            assert second_opinion(case[member], case), case["name"]
        elif case["expect"] == "signature_bad":
            with pytest.raises(jwt.InvalidSignatureError):
                second_opinion(case[member], case)
        opinions[case["expect"]] = opinions.get(case["expect"], 0) + 1
    assert opinions["ok"]


def test_pyjwt_reads_the_claims_of_every_good_token_as_we_do():
    for case in load("tokens"):
        if case["expect"] == "ok":
            theirs = jwt.decode(
                case["token"],
                signed_by(case["token"], known_keys(case)),
                algorithms=["EdDSA"],
                issuer=case["issuer"],
                audience=case["product"],
                subject=case["device"],
                options={"verify_exp": False, "verify_nbf": False, "verify_iat": False, "strict_aud": True},
            )
            assert tokens.verify(case["token"], **token_arguments(case)).to_claims() == theirs


def test_every_signature_on_a_keyring_that_is_taken_is_sound_to_pyjwt():
    seen = 0
    for case in load("keyrings"):
        roots = known_keys(case)
        for text in case["document"] if case["expect"] == "ok" else []:
            if jwt.get_unverified_header(text)["kid"] in roots:
                assert second_opinion(text, case)
                seen += 1
    assert seen > len(roots)


def test_activation_requests_verify_with_the_key_they_bring():
    for case in load("activations"):
        if case["expect"] == "ok":
            claims = jwt.decode(case["request"], options={"verify_signature": False})
            brought = {VerifyKey(claims["sign_key"]).kid: claims["sign_key"]}
            key = signed_by(case["request"], brought)
            assert jwt.PyJWS().decode(case["request"], key, algorithms=["EdDSA"])


# -- the files themselves


def test_making_the_vectors_again_gives_the_same_bytes():
    made = runpy.run_path(str(VECTORS / "make.py"))["documents"]()
    assert sorted(made) == [f"{name}.json" for name in MADE]
    for name, data in made.items():
        assert (VECTORS / name).read_bytes() == data, f"{name} is stale: run python tests/vectors/make.py"


@pytest.mark.parametrize("name", MADE)
def test_every_case_has_a_name_of_its_own_and_a_known_verdict(name):
    cases = load(name)
    assert len({case["name"] for case in cases}) == len(cases)
    assert {case["expect"] for case in cases} <= {"ok", *CODES}
    assert "ok" in {case["expect"] for case in cases}


def test_every_code_that_a_token_can_be_refused_with_has_a_vector():
    steps = {
        *("not_text", "too_large", "malformed_envelope", "malformed_header", "wrong_type", "key_unknown"),
        *("signature_bad", "malformed_json", "malformed_members", "issuer_wrong", "audience_wrong"),
        *("subject_wrong", "key_not_valid", "token_revoked", "serial_rollback", "clock_rolled_back"),
        *("token_not_yet_valid", "token_expired"),
    }
    assert {case["expect"] for case in load("tokens")} == {"ok", *steps}


ENVELOPE = re.compile(r"[A-Za-z0-9_-]{60,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86}")


def everything_sound_in_the_vectors() -> tuple[str, set[bytes]]:
    """The text of all sound cases, and the canonical form of every header, payload, line and record in them."""
    cases = [case for name in MADE for case in load(name) if case["expect"] == "ok"]
    text = "\n".join(json.dumps(case) for case in cases)
    lines = [record.encode() for case in cases for record in case.get("records", [])]
    for envelope in set(ENVELOPE.findall(text)):
        header, payload = map(canonical.from_base64url, envelope.split(".")[:2])
        lines += [header, *(payload.split(b"\n") if b"mk-batch+jws" in header else [payload])]
    return text, {canonical.to_bytes(json.loads(line)) for line in lines}


def test_the_examples_in_the_wire_format_are_vectors():
    page = WIRE_FORMAT.read_text(encoding="utf-8")
    text, values = everything_sound_in_the_vectors()
    envelopes_shown = ENVELOPE.findall(page.replace("\n", ""))
    assert envelopes_shown
    assert [envelope for envelope in envelopes_shown if envelope not in text] == []
    shown = re.findall(r"^```json\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    shown += re.findall(r"^\{.+\}$", page, re.MULTILINE)
    assert len(shown) > 8
    for example in shown:
        assert canonical.to_bytes(json.loads(example)) in values, example


def test_the_hashes_in_the_wire_format_are_those_of_the_records_above_them():
    page = WIRE_FORMAT.read_text(encoding="utf-8")
    head = "0" * 64
    shown = re.findall(r"^(\{.+\})\n([0-9a-f]{64})$", page, re.MULTILINE)
    assert len(shown) == 3
    for record, hashed in shown:
        head = ledger.record_hash(head, record.encode())
        assert head == hashed
