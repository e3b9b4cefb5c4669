"""What crosses, there and back again; and noise of every kind, to which there is one answer: a refusal."""

import gzip
import json
import random
from dataclasses import replace
from typing import Any

import pytest
from core_world import (
    ADDRESSEE,
    CODE,
    DEVICE,
    DEVICE_KEY,
    EPOCH,
    ISSUER,
    KEYRING,
    LICENSE,
    NOW,
    OTHER_DEVICE_KEY,
    PRODUCT,
    SEAL_KEY,
    activation_claims,
    batch_head,
    batch_text,
    chained,
    ident,
    keyring_document,
    outcome,
    receipt_claims,
    revocations_claims,
    signed,
    story,
    token_text,
)
from hypothesis import given
from hypothesis import strategies as st

from meterkit import activation, envelopes, exchange, limits, receipts, signing
from meterkit.activation import ActivationRequest
from meterkit.errors import InputError, MeterkitError, TrustError
from meterkit.exchange import Batch, Has, Reply
from meterkit.keys import VerifyKey
from meterkit.ledger import Total
from meterkit.positions import ZERO, Position
from meterkit.receipts import Receipt

ENTRIES = chained(story())
BODIES = tuple(entry.body for entry in ENTRIES)


def find(kid: str) -> VerifyKey:
    if kid != DEVICE_KEY.kid:
        raise TrustError("key_unknown")
    return DEVICE_KEY.verify_key


def batch(**changes: Any) -> Batch:
    values: dict[str, Any] = {
        "product": PRODUCT,
        "license_id": LICENSE,
        "epoch": EPOCH,
        "seq_from": 1,
        "prev": ZERO,
        "seq_to": len(BODIES),
        "head": ENTRIES[-1].hash,
        "through": NOW,
        "made_at": NOW + 1,
        "has": Has(serial=3, keyring=2, revocations=1),
        "bodies": BODIES,
        **changes,
    }
    return Batch(**values)


# -- batches


@pytest.mark.parametrize(("start", "end"), [(0, 8), (0, 1), (3, 5), (7, 8), (0, 0), (8, 8)])
def test_a_batch_is_opened_as_it_was_made(start, end):
    prev = ENTRIES[start - 1].hash if start else ZERO
    head = ENTRIES[end - 1].hash if end > start else prev
    made = batch(seq_from=start + 1, seq_to=end, prev=prev, head=head, bodies=BODIES[start:end])
    text = signing.sign_payload(envelopes.BATCH, made.to_payload(), DEVICE_KEY)
    kid, opened = exchange.open_batch(text, find)
    assert (kid, opened) == (DEVICE_KEY.kid, made)
    assert opened.start == Position(epoch=EPOCH, seq=start, head=prev)
    assert opened.end == Position(epoch=EPOCH, seq=end, head=head)


def test_a_batch_of_another_device_is_not_opened_with_this_ones_key():
    text = signing.sign_payload(envelopes.BATCH, batch().to_payload(), OTHER_DEVICE_KEY)
    assert outcome(exchange.open_batch, text, find) == "key_unknown"


def test_a_batch_that_nobody_would_take_is_not_made():
    for changes, code in (
        ({"product": "a b"}, "malformed_members"),
        ({"license_id": "x"}, "malformed_members"),
        ({"bodies": (b"",) * (limits.BATCH_RECORDS_MAX + 1)}, "too_many"),
        ({"bodies": (b"x" * limits.BATCH_BYTES_MAX,)}, "too_large"),
    ):
        assert outcome(batch(**changes).to_payload) == code


def test_a_full_batch_is_made_signed_and_opened():
    bodies = (b"x" * 800,) * limits.BATCH_RECORDS_MAX
    full = batch(seq_to=limits.BATCH_RECORDS_MAX, bodies=bodies)
    text = signing.sign_payload(envelopes.BATCH, full.to_payload(), DEVICE_KEY)
    assert exchange.open_batch(text, find)[1] == full
    assert outcome(exchange.read_batch, full.to_payload() + b"\nx") == "too_many"


def test_a_payload_over_eight_megabytes_is_refused_before_it_is_split():
    assert outcome(exchange.read_batch, b"\n" * (limits.BATCH_BYTES_MAX + 1)) == "too_large"
    assert outcome(exchange.read_batch, b"\n" * limits.BATCH_BYTES_MAX) == "too_many"


def test_a_batch_says_whom_it_is_for_and_of_which_license_it_is():
    check = exchange.check_batch_for
    assert outcome(check, batch(), product=PRODUCT, licenses=[LICENSE]) == "ok"
    assert outcome(check, batch(), product=PRODUCT, licenses=[]) == "ok"
    assert outcome(check, batch(), product="other", licenses=[LICENSE]) == "audience_wrong"
    other = ident("lic", "other")
    for licenses in ([other], [LICENSE, other], [None]):
        assert outcome(check, batch(), product=PRODUCT, licenses=licenses) == "record_out_of_place"


@pytest.mark.parametrize(
    ("data", "count"),
    [(b"a.b.c", 1), (b"a.b.c\n", 1), (b"a\nb\nc", 3), (b"a\nb\nc\n", 3), (b"\n".join([b"x"] * 16), 16)],
)
def test_a_body_is_one_batch_a_line(data, count):
    assert len(exchange.split_batches(data, batches_max=limits.EXCHANGE_BATCHES_MAX)) == count


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed_envelope"),
        (b"\n".join([b"x"] * 17), "too_many"),
        (b"\xff", "not_text"),
        ("\u00e4".encode(), "not_text"),
    ],
)
def test_a_body_that_is_none_is_refused(data, code):
    assert outcome(exchange.split_batches, data, batches_max=limits.EXCHANGE_BATCHES_MAX) == code


def test_a_file_may_hold_many_batches_and_an_empty_line_is_none():
    most = limits.FILE_BATCHES_MAX
    assert len(exchange.split_batches(b"\n".join([b"x"] * most), batches_max=most)) == most
    assert outcome(exchange.split_batches, b"\n" * (most + 2), batches_max=most) == "too_many"
    for line in exchange.split_batches(b"\n\nx\n\n", batches_max=most):
        assert outcome(exchange.open_batch, line, find) == "malformed_envelope"


def test_what_a_device_has_says_what_it_reads():
    assert Has().to_claims()["v"] == exchange.READS
    claims = batch_head(ENTRIES, has={**Has().to_claims(), "v": {"token": 2, "later": 1}})
    assert outcome(exchange.open_batch, batch_text(claims, list(BODIES)), find) == "ok"


# -- receipts


def receipt() -> Receipt:
    return receipts.open_receipt(
        signed(envelopes.RECEIPT, receipt_claims(), "receipt"), keyring=KEYRING, addressee=ADDRESSEE
    )


def test_a_receipt_is_written_as_it_was_read_with_its_totals_in_order():
    assert receipt().to_claims() == receipt_claims()
    turned = receipt()._replace(totals=dict(reversed(receipt().totals.items())))
    assert turned.to_claims() == receipt_claims()
    assert receipts.totals_from_claims(receipts.totals_to_claims(receipt().totals)) == receipt().totals


def test_a_receipt_that_no_device_would_take_is_not_written():
    for totals in ({("m", "frame"): Total()}, {("m", "call"): Total(units=-1)}, {("a b", "call"): Total()}):
        with pytest.raises(InputError):
            receipt()._replace(totals=totals).to_claims()


def test_a_receipt_covers_a_ledger_only_with_that_ledgers_hash():
    position = receipt().position
    check = receipts.check_covers
    assert outcome(check, position, EPOCH, position.head) == "ok"
    assert outcome(check, position, ident("ep", "other"), position.head) == "receipt_foreign"
    assert outcome(check, position, EPOCH, "ab" * 32) == "receipt_foreign"
    assert outcome(check, position, EPOCH, None) == "receipt_foreign"


# -- replies

FULL = Reply(
    keyrings=(tuple(keyring_document()),),
    revocations=signed(envelopes.REVOCATIONS, revocations_claims(), "revocations"),
    receipts=(signed(envelopes.RECEIPT, receipt_claims(), "receipt"),),
    token=token_text(),
    next_sync_s=3600,
    models=("detector",),
)


@pytest.mark.parametrize("reply", [FULL, Reply(), replace(FULL, token=None), replace(FULL, keyrings=())])
def test_a_reply_is_read_as_it_was_written(reply):
    assert exchange.read_reply(reply.to_bytes()) == reply


def test_a_reply_that_no_device_would_read_is_not_written():
    for changes in ({"token": "x"}, {"receipts": FULL.receipts * 17}, {"next_sync_s": -1}, {"keyrings": ((),)}):
        assert outcome(replace(FULL, **changes).to_bytes) == "malformed_members"


def test_a_reply_beyond_its_size_is_refused_unread():
    assert outcome(exchange.read_reply, b" " * (limits.REPLY_BYTES_MAX + 1)) == "too_large"


# -- activation


def test_an_activation_request_is_opened_as_it_was_made():
    made = ActivationRequest(
        product=PRODUCT,
        code_id=CODE.id,
        proof=activation.proof(CODE.secret, DEVICE),
        sign_key=DEVICE_KEY.verify_key,
        seal_key=SEAL_KEY,
        position=Position(epoch=EPOCH, seq=3, head="ab" * 32),
        license_hint=LICENSE,
        capabilities=activation_claims()["capabilities"],
        made_at=NOW,
        nonce="A" * 22,
    )
    text = signing.sign(envelopes.ACTIVATION, made.to_claims(), DEVICE_KEY)
    opened = activation.open_activation(text)
    assert opened == made
    assert opened.device == DEVICE
    assert outcome(activation.check_proof, CODE.secret, opened) == "ok"
    assert outcome(activation.check_proof, bytes(16), opened) == "proof_wrong"
    assert outcome(activation.check_proof, CODE.secret, replace(opened, proof="ab" * 32)) == "proof_wrong"


def test_a_proof_is_bound_to_its_device():
    """Whoever copies a request cannot make it his own: with his key, the proof is wrong."""
    stolen = activation_claims(sign_key=OTHER_DEVICE_KEY.verify_key.text)
    opened = activation.open_activation(signed(envelopes.ACTIVATION, stolen, OTHER_DEVICE_KEY))
    assert outcome(activation.check_proof, CODE.secret, opened) == "proof_wrong"


def test_a_request_that_no_server_would_open_is_not_made():
    opened = activation.open_activation(signed(envelopes.ACTIVATION, activation_claims(), DEVICE_KEY))
    for changes in ({"code_id": "x"}, {"nonce": ""}, {"license_hint": "x"}, {"capabilities": {}}):
        assert outcome(replace(opened, **changes).to_claims) == "malformed_members"


def test_the_secret_of_a_code_neither_crosses_nor_shows():
    request = signed(envelopes.ACTIVATION, activation_claims(), DEVICE_KEY)
    secret = CODE.unsafe_to_text().split(".")[1]
    shown = [repr(CODE), str(CODE), f"{[CODE]}", json.dumps(activation_claims()), request]
    assert not any(secret in each or CODE.secret.hex() in each for each in shown)
    assert CODE.id in repr(CODE)


# -- noise

READERS = {
    "read_reply": (
        FULL.to_bytes().decode(),
        lambda text: exchange.read_reply(text.encode("utf-8", "surrogatepass")),
    ),
    "open_batch": (
        batch_text(batch_head(ENTRIES), list(BODIES)),
        lambda text: exchange.open_batch(text, find),
    ),
    "open_activation": (signed(envelopes.ACTIVATION, activation_claims(), DEVICE_KEY), activation.open_activation),
    "read_code": (CODE.unsafe_to_text(), activation.read_code),
    "open_receipt": (
        FULL.receipts[0],
        lambda text: receipts.open_receipt(text, keyring=KEYRING, addressee=ADDRESSEE),
    ),
    "read_batch": (
        batch().to_payload().decode(),
        lambda text: exchange.read_batch(text.encode("utf-8", "surrogatepass")),
    ),
}
PIECES = [
    *("", ".", "\n", "=", '"', "\\", "[", "{", "}", "0", "-0", "1e9", "null", '"v":1,'),
    *("\x00", "\u00e4", "\ud800", "A" * 50),
]


def mutated(drawn: random.Random, text: str) -> str:
    """Cut, repeat, swap, flip or insert, once or a few times."""
    for _ in range(drawn.randint(1, 3)):
        one, two = sorted((drawn.randint(0, len(text)), drawn.randint(0, len(text))))
        match drawn.randrange(5):
            case 0:
                text = text[:one] + text[two:]
            case 1:
                text = text[:two] + text[one:]
            case 2:
                text = text[:one] + drawn.choice(PIECES) + text[one:]
            case 3:
                text = text[:one] + drawn.choice(PIECES) + text[one + 1 :]
            case _ if one < len(text):
                text = text[:one] + chr(ord(text[one]) ^ 1 << drawn.randrange(7)) + text[one + 1 :]
    return text


@pytest.mark.parametrize("name", READERS)
def test_two_thousand_mutations_raise_nothing_but_refusals(name):
    text, read = READERS[name]
    drawn = random.Random(name)  # noqa: S311 - the same mutations every time
    assert outcome(read, text) == "ok"
    verdicts = {outcome(read, mutated(drawn, text)) for _ in range(2000)}
    assert len(verdicts) > 1


@pytest.mark.parametrize("name", ["open_batch", "open_activation", "open_receipt"])
def test_no_mutation_of_what_is_signed_is_taken(name):
    text, read = READERS[name]
    drawn = random.Random(name)  # noqa: S311
    for _ in range(2000):
        changed = mutated(drawn, text)
        if changed != text:
            with pytest.raises(MeterkitError):
                read(changed)


@given(st.text(max_size=80), st.binary(max_size=80))
def test_noise_raises_nothing_but_refusals(text, data):
    for read in (activation.read_code, activation.open_activation, lambda text: exchange.open_batch(text, find)):
        assert outcome(read, text) != "ok"
    assert outcome(exchange.read_reply, data) != "ok"
    assert outcome(exchange.read_batch, data) != "ok"
    outcome(exchange.split_batches, data, batches_max=16)


@pytest.mark.parametrize("value", [None, 1, b"x", [], object()], ids=lambda value: type(value).__name__)
def test_what_is_no_text_is_refused_as_such(value):
    assert outcome(activation.open_activation, value) == "not_text"
    assert outcome(exchange.open_batch, value, find) == "not_text"
    assert outcome(activation.read_code, value) == "malformed_code"


def test_parts_of_a_reply_are_judged_alone():
    """The frame is read whatever its parts are worth; each of them then has its own verdict."""
    reply = exchange.read_reply(replace(FULL, receipts=(token_text(),), token=FULL.receipts[0]).to_bytes())
    verdict = outcome(receipts.open_receipt, reply.receipts[0], keyring=KEYRING, addressee=ADDRESSEE)
    assert verdict == "wrong_type"
    assert (
        outcome(envelopes.open_keyring, list(reply.keyrings[0]), issuer=ISSUER, roots=KEYRING.roots, threshold=2)
        == "ok"
    )


def test_a_largest_realistic_batch_is_within_the_wire_once_compressed():
    """Measured with distinct cells and windows, as a busy device writes them."""
    members = story()[:2]
    count = 0
    for n in range(limits.BATCH_RECORDS_MAX - 2):
        units = random.Random(n).randrange(10**6)  # noqa: S311
        members.append(
            {**story()[2], "from": count, "to": count + units, "units": units, "cell": ident("cel", str(n))}
        )
        count += units
    entries = chained(members)
    text = batch_text(batch_head(entries), [entry.body for entry in entries])
    assert len(text) <= limits.EXCHANGE_BYTES_MAX
    assert len(gzip.compress(text.encode(), mtime=0)) <= limits.EXCHANGE_WIRE_BYTES_MAX
