"""How the limits stand to each other: what one part may write, the next must be able to read."""

import pytest
from core_world import (
    BOOT,
    DEVICE_KEY,
    EPOCH,
    ISSUER,
    NOW,
    ROOT_NAMES,
    activation_claims,
    batch_head,
    batch_text,
    chained,
    ident,
    key,
    keyring_claims,
    keyring_document,
    keyring_key,
    outcome,
    receipt_claims,
    revocations_claims,
    story,
    token_claims,
    usage_members,
)

from meterkit import activation, envelopes, exchange, ledger, limits, revocations, shapes, signing, tokens, usage
from meterkit.canonical import from_bytes
from meterkit.clocks import NS
from meterkit.keyrings import follow
from meterkit.keys import Trust
from meterkit.positions import Position

WIDE = "x" * limits.NAME_CHARS_MAX
MANY = limits.INTEGER_MAX


def test_every_limit_is_a_whole_number_above_zero():
    values = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert len(values) > 50
    assert [name for name, value in values.items() if type(value) is not int or value <= 0] == []


def test_a_name_says_the_unit_of_its_limit():
    units = {"MAX", "MIN", "S", "NS", "MS", "BYTES", "CHARS", "PERCENT", "SHARE", "COMMITS", "SLOTS"}
    odd = [name for name in vars(limits) if name.isupper() and not units & set(name.split("_"))]
    assert odd == []


def test_lives_and_graces_are_within_their_bounds():
    assert limits.TOKEN_LIFE_MIN_S <= limits.TOKEN_LIFE_S <= limits.TOKEN_LIFE_MAX_S
    assert limits.GRACE_S <= limits.GRACE_MAX_S
    assert 0 < limits.RENEW_PERCENT < 100
    assert (
        limits.TOKEN_LIFE_S * limits.RENEW_PERCENT // 100
        > limits.SYNC_DEFAULT_S * (100 + limits.SYNC_JITTER_PERCENT) // 100
    )
    assert limits.TOKEN_LIFE_S <= limits.SIGNING_KEY_LIFE_S <= limits.KEYRING_LIFE_S


def test_a_sync_ends_before_the_next_and_bears_a_slow_line():
    assert limits.HTTP_TIMEOUT_S * 2 <= limits.HTTP_EXCHANGE_MAX_S
    assert limits.HTTP_EXCHANGE_MAX_S <= limits.SYNC_RETRY_MAX_S < limits.SYNC_DEFAULT_S
    largest_bytes = max(limits.EXCHANGE_WIRE_BYTES_MAX, limits.ACTIVATION_BYTES_MAX)
    assert largest_bytes * 8 <= limits.HTTP_EXCHANGE_MAX_S * 14_400


def test_a_fleet_that_comes_at_once_is_spread_and_tries_often_enough():
    assert limits.SYNC_RETRY_S <= limits.SYNC_SPREAD_S <= limits.SYNC_RETRY_MAX_S
    assert limits.SYNC_RETRY_MAX_S * 2 <= limits.TOKEN_LIFE_S * limits.RENEW_PERCENT // 100


def test_the_clock_is_suspect_before_a_window_can_be_won():
    assert limits.CLOCK_BACK_MAX_S < limits.WINDOW_S
    assert limits.CLOCK_AGREE_S < limits.WINDOW_S
    assert limits.CLOCK_AGREE_S < limits.CLOCK_JUMP_OFF_MAX_S


def test_a_cell_is_one_64_bit_word():
    assert (limits.CELL_COUNT_MAX + 1) * (limits.CELL_WINDOW_MAX + 1) == 2**64
    assert limits.LEASE_UNITS_MAX <= limits.CELL_COUNT_MAX <= limits.INTEGER_MAX
    assert limits.CELL_SLOT_BYTES >= 8


def test_a_cell_s_windows_outlast_every_clock_that_a_kernel_can_show():
    kernel_max_s = (2**63 - 1) // NS
    assert kernel_max_s < limits.CELL_WINDOW_MAX * limits.WINDOW_S
    assert limits.TIME_MAX_S <= limits.INTEGER_MAX


def test_a_cell_can_hold_what_a_window_can_hold():
    assert limits.CELL_COUNT_MAX >= limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S


@pytest.mark.parametrize(
    "members",
    [
        usage_members(
            0,
            MANY,
            model=WIDE,
            unsettled=MANY,
            flags=list(usage.FLAGS),
            window=limits.CELL_WINDOW_MAX,
            unit="item",
        ),
        usage.genesis(
            epoch=EPOCH,
            device=f"dev_{DEVICE_KEY.kid}",
            previous=Position(epoch=EPOCH, seq=MANY, head="ab" * 32),
            lost=(MANY - 1, MANY),
        ),
        usage.token_installed(
            jti=ident("tok"),
            serial=MANY,
            iat=limits.TIME_MAX_S,
            license_id=ident("lic"),
            anchor=Position(epoch=EPOCH, seq=MANY, head="ab" * 32),
        ),
        usage.clock_changed(from_s=limits.TIME_MAX_S, to_s=limits.TIME_MAX_S, reason="forward"),
        usage.recovery(WIDE, ident("cel")),
    ],
    ids=lambda members: members["kind"],
)
def test_the_largest_record_of_each_kind_can_be_read(members):
    at = Position(epoch=EPOCH, seq=MANY - 1, head="ab" * 32)
    entry = ledger.append(at, members, time=limits.TIME_MAX_S, boot=BOOT)
    assert ledger.read(at, entry.body) == entry


def test_the_largest_receipt_can_be_read_and_carried_in_a_batch():
    totals = [
        {"model": f"{n:02}{WIDE[2:]}", "unit": "call", "units": MANY, "unsettled": MANY}
        for n in range(limits.METERS_MAX)
    ]
    position = {"epoch": EPOCH, "seq": MANY, "head": "ab" * 32}
    issuer = "\U0001f600" * limits.TEXT_CHARS_MAX
    claims = receipt_claims(totals=totals, position=position, iss=issuer, aud=WIDE, iat=limits.SIGNED_TIME_MAX_S)
    receipt = signing.sign(envelopes.RECEIPT, claims, key("receipt"))
    entries = chained(story())
    head = batch_head(entries, aud=WIDE, has={**exchange.Has().to_claims(), "receipt": receipt})
    text = batch_text(head, [entry.body for entry in entries])
    assert outcome(exchange.open_batch, text, lambda _: DEVICE_KEY.verify_key) == "ok"


def test_the_largest_keyring_can_be_signed_by_every_root_and_read():
    names = [f"root {n}" for n in range(limits.ROOTS_MAX)]
    roots = tuple(key(name).verify_key.text for name in names)
    entries = [
        keyring_key(f"key {n}", "token", "receipt", "revocations", "invoice", "package", distrusted_after=NOW)
        for n in range(limits.KEYRING_KEYS_MAX)
    ]
    claims = keyring_claims(roots={"threshold": len(roots), "keys": list(roots)}, keys=entries)
    trust = Trust(issuer=ISSUER, roots=roots, threshold=len(roots))
    assert outcome(follow, keyring_document(claims, tuple(names)), trust=trust, held=None) == "ok"


def opens(kind, claims, signer) -> bool:
    """Whether claims fit their kind's envelope, and are its members within their bounds."""
    text = signing.sign(kind, claims, signer)
    _, payload = envelopes.open_payload(kind, text, lambda _: signer.verify_key)
    shape = {envelopes.REVOCATIONS: revocations.SHAPE, envelopes.TOKEN: tokens.shape}.get(kind, activation.SHAPE)
    return bool(shape(from_bytes(payload, bytes_max=kind.bytes_max), kind.name))


def test_a_revocation_list_can_name_as_many_as_it_may_of_any_kind():
    most = limits.REVOCATIONS_ENTRIES_MAX
    for kind, prefix in (("tokens", "tok"), ("licenses", "lic")):
        named = [ident(prefix, str(n)) for n in range(most)]
        assert opens(envelopes.REVOCATIONS, revocations_claims(**{kind: named}), key("revocations"))
    devices = [f"dev_{n:042}A" for n in range(most)]
    assert opens(envelopes.REVOCATIONS, revocations_claims(devices=devices), key("revocations"))


def test_a_token_can_name_as_many_features_or_sealed_models_as_it_may():
    sealed = [
        {"name": f"m{n}", "versions": ">=1", "unit": "call", "axis": None, "limit": None}
        for n in range(limits.TOKEN_MODELS_MAX)
    ]
    features = [f"feature-{n}" for n in range(limits.FEATURES_MAX)]
    assert opens(envelopes.TOKEN, token_claims(models=sealed), key("token"))
    assert opens(envelopes.TOKEN, token_claims(features=features), key("token"))


def test_the_largest_activation_request_can_be_read():
    capabilities = {
        "v": {f"{n:02}{WIDE[2:]}": 1000 for n in range(32)},
        "sdk": "\U0001f600" * 64,
        "runtime": "\U0001f600" * 64,
        "platform": "\U0001f600" * 128,
        "hints": [f"{n:064x}" for n in range(16)],
    }
    claims = activation_claims(capabilities=capabilities, license_hint=ident("lic"), aud=WIDE)
    assert opens(envelopes.ACTIVATION, claims, DEVICE_KEY)


def test_the_largest_batch_fits_its_envelope_and_one_exchange():
    entries = chained(story())
    payload_room = limits.BATCH_BYTES_MAX
    text = signing.sign_payload(envelopes.BATCH, b"x" * payload_room, DEVICE_KEY)
    assert len(text) <= envelopes.BATCH.bytes_max <= limits.EXCHANGE_BYTES_MAX
    assert envelopes.BATCH.bytes_max <= limits.FILE_BYTES_MAX
    assert limits.BATCH_RECORDS_MAX * max(len(entry.body) for entry in entries) <= limits.BATCH_BYTES_MAX


def test_a_reply_has_room_for_one_of_each_and_receipts_for_every_batch():
    rest = 64 * 1024
    one_of_each = (
        limits.REVOCATIONS_BYTES_MAX + limits.TOKEN_BYTES_MAX + limits.KEYRING_BYTES_MAX * len(ROOT_NAMES)
    )
    receipts = limits.EXCHANGE_BATCHES_MAX * limits.RECEIPT_BYTES_MAX
    assert one_of_each + receipts + limits.SEALED_KEY_BYTES_MAX + rest <= limits.REPLY_BYTES_MAX


def test_what_a_body_may_inflate_to_is_above_what_it_may_be():
    assert limits.EXCHANGE_WIRE_BYTES_MAX < limits.EXCHANGE_BYTES_MAX
    assert limits.EVIDENCE_MANIFEST_BYTES_MAX <= limits.EVIDENCE_BYTES_MAX
    assert limits.FILE_BYTES_MAX <= limits.EVIDENCE_BYTES_MAX


def test_a_kid_is_as_long_as_a_thumbprint():
    assert len(key("token").kid) == limits.KID_CHARS
    assert shapes.KID(key("token").kid, "kid")
