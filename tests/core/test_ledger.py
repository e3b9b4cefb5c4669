"""The hash chain: whoever changes, drops, moves or adds a record is found out by the head that was signed."""

import hashlib
import json
from typing import Any

import pytest
from core_world import (
    BOOT,
    CELL,
    DEVICE,
    EPOCH,
    LICENSE,
    NOW,
    OTHER_DEVICE,
    TOKEN,
    chained,
    empty_chain,
    genesis_members,
    ident,
    outcome,
    story,
    token_members,
    usage_members,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meterkit import ledger, limits, usage
from meterkit.canonical import to_bytes
from meterkit.errors import InputError, LedgerError
from meterkit.ledger import Chain, Total, fork_point, good_prefix, record_hash, verify_chain
from meterkit.positions import ZERO, Position
from meterkit.usage import UsageRecord

ENTRIES = chained(story())
BODIES = [entry.body for entry in ENTRIES]
END = Position(epoch=EPOCH, seq=len(ENTRIES), head=ENTRIES[-1].hash)


@st.composite
def ledgers(draw: Any) -> list[dict[str, Any]]:
    """The members of any sound ledger: tokens of rising serials, usage of the last one's license, events."""
    licenses = [ident("lic", name) for name in "ab"]
    members: list[dict[str, Any]] = [genesis_members()]
    serial, license_id, counts = 0, "", {}
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["token", "usage", "usage", "usage", "clock", "recovery"]))
        if kind == "token" or not license_id:
            serial += draw(st.integers(1, 5))
            license_id = draw(st.sampled_from(licenses))
            members.append(token_members(serial, license_id))
        elif kind == "usage":
            cell = draw(st.sampled_from([ident("cel", name) for name in "xyz"]))
            model, unit = draw(st.sampled_from([("m1", "call"), ("m1", "item"), ("m2", "call")]))
            start = counts.get(cell, 0)
            counts[cell] = start + draw(st.integers(0, 10**6))
            unsettled = draw(st.integers(0, 100))
            changes = {"license": license_id, "model": model, "unit": unit, "cell": cell, "unsettled": unsettled}
            members.append(usage_members(start, counts[cell], **changes))
        elif kind == "clock":
            members.append(usage.clock_changed(from_s=NOW, to_s=draw(st.integers(0, NOW)), reason="back"))
        else:
            members.append(usage.recovery("cell_lost", CELL))
    return members


def ends_at(bodies: list[bytes], end: Position) -> str:
    """`ok` if the records lead from the beginning to a position, or the code for which they do not."""

    def follow() -> None:
        chain, _ = verify_chain(empty_chain(), bodies)
        if chain.position != end:
            raise LedgerError("chain_broken")

    return outcome(follow)


# -- writing and following


def test_a_record_is_hashed_onto_the_one_before_it():
    expected = hashlib.sha256(b"mk-record/1\n" + bytes(32) + BODIES[0]).digest()
    assert ENTRIES[0].hash == expected.hex()
    assert ENTRIES[1].hash == hashlib.sha256(b"mk-record/1\n" + expected + BODIES[1]).hexdigest()


def test_every_kind_of_record_is_written_in_canonical_form_with_its_place():
    for place, entry in enumerate(ENTRIES):
        claims = json.loads(entry.body)
        assert entry.body == to_bytes(claims)
        assert (claims["v"], claims["seq"], claims["boot"]) == (1, place + 1, BOOT)
        assert entry.prev == (ENTRIES[place - 1].hash if place else ZERO)
    assert {entry.claims["kind"] for entry in ENTRIES} == {"genesis", "token", "usage", "clock", "recovery"}


def test_following_a_ledger_gives_its_position_its_token_and_its_totals():
    chain, entries = verify_chain(empty_chain(), BODIES)
    assert entries == ENTRIES
    assert chain.position == END
    assert (chain.token.serial, chain.token.license_id, chain.token.jti) == (7, LICENSE, TOKEN)
    assert chain.totals == {
        ("detector", "call"): Total(units=41, unsettled=64),
        ("segmenter", "item"): Total(units=3000, unsettled=0),
    }


@given(ledgers())
def test_what_is_appended_is_followed_again_with_the_same_totals(members):
    entries = chained(members)
    chain, followed = verify_chain(empty_chain(), [entry.body for entry in entries])
    assert followed == entries
    sums: dict[Any, list[int]] = {}
    for each in members:
        if each["kind"] == "usage":
            total = sums.setdefault((each["model"], each["unit"]), [0, 0])
            total[0] += each["units"]
            total[1] += each["unsettled"]
    assert {meter: [total.units, total.unsettled] for meter, total in chain.totals.items()} == sums


@given(ledgers(), st.data())
def test_a_ledger_followed_in_pieces_is_the_same_ledger(members, data):
    bodies = [entry.body for entry in chained(members)]
    cut = data.draw(st.integers(0, len(bodies)))
    half, _ = verify_chain(empty_chain(), bodies[:cut])
    assert verify_chain(half, bodies[cut:])[0] == verify_chain(empty_chain(), bodies)[0]


def test_following_leaves_the_chain_it_began_with_unchanged():
    start = empty_chain()
    verify_chain(start, BODIES)
    assert start == empty_chain()
    assert start.totals == {}


# -- tampering


@given(ledgers(), st.data())
def test_every_flipped_bit_is_found(members, data):
    entries = chained(members)
    bodies = [entry.body for entry in entries]
    place = data.draw(st.integers(0, len(bodies) - 1))
    bit = data.draw(st.integers(0, len(bodies[place]) * 8 - 1))
    flipped = bytearray(bodies[place])
    flipped[bit // 8] ^= 1 << bit % 8
    bodies[place] = bytes(flipped)
    assert ends_at(bodies, Position(epoch=EPOCH, seq=len(bodies), head=entries[-1].hash)) != "ok"


@given(ledgers(), st.data())
def test_every_record_left_out_repeated_moved_or_added_is_found(members, data):
    entries = chained(members)
    bodies = [entry.body for entry in entries]
    end = Position(epoch=EPOCH, seq=len(bodies), head=entries[-1].hash)
    assert ends_at(bodies, end) == "ok"
    places = st.integers(0, len(bodies) - 1)
    how = data.draw(st.sampled_from(["leave out", "repeat", "swap", "add", "cut"]))
    one, two = data.draw(places), data.draw(places)
    changed = list(bodies)
    if how == "leave out":
        del changed[one]
    elif how == "repeat":
        changed.insert(two, changed[one])
    elif how == "swap":
        assume(bodies[one] != bodies[two])
        changed[one], changed[two] = changed[two], changed[one]
    elif how == "add":
        extra = {"v": 1, "time": NOW, "boot": BOOT, "seq": one + 1, **usage.recovery("cell_lost", CELL)}
        changed.insert(one, to_bytes(extra))
    else:
        del changed[one:]
    assert ends_at(changed, end) != "ok"


@given(ledgers(), st.data())
def test_every_member_changed_is_found_even_where_the_record_stays_sound(members, data):
    """Units, windows, licenses: whatever a forger would like to be other than it was."""
    entries = chained(members)
    bodies = [entry.body for entry in entries]
    place = data.draw(st.integers(0, len(bodies) - 1))
    claims = json.loads(bodies[place])
    member = data.draw(st.sampled_from(sorted(claims)))
    value = claims[member]
    claims[member] = value + 1 if isinstance(value, int) else None if value is not None else EPOCH
    bodies[place] = to_bytes(claims)
    assert ends_at(bodies, Position(epoch=EPOCH, seq=len(bodies), head=entries[-1].hash)) != "ok"


def test_a_forger_who_computes_every_hash_anew_reaches_another_head():
    cheaper = story()
    cheaper[2] = usage_members(0, 1)
    forged = chained(cheaper)
    assert verify_chain(empty_chain(), [entry.body for entry in forged])[0].position.head != END.head


def test_a_record_read_alone_must_be_the_next_one():
    assert ledger.read(Position(epoch=EPOCH), BODIES[0]) == ENTRIES[0]
    for position in (Position(epoch=EPOCH, seq=1, head="ab" * 32), Position(epoch=EPOCH, seq=7, head="ab" * 32)):
        assert outcome(ledger.read, position, BODIES[0]) == "chain_broken"


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b"x" * 5000, b"\xff", b'{"kind":"usage"}'])
def test_what_is_no_record_is_refused(body):
    assert outcome(ledger.read, Position(epoch=EPOCH), body) in {
        "malformed_json",
        "malformed_members",
        "too_large",
        "not_text",
    }


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60) | st.sampled_from(BODIES), max_size=6))
def test_noise_raises_nothing_but_refusals(bodies):
    outcome(verify_chain, empty_chain(), bodies)
    _, entries, fault = good_prefix(empty_chain(), bodies)
    assert len(entries) == len(bodies) or fault is not None


# -- records that contradict the ones before


def test_the_genesis_is_this_devices_and_this_epochs():
    foreign = empty_chain()._replace(device=OTHER_DEVICE)
    assert outcome(verify_chain, foreign, BODIES) == "record_out_of_place"
    elsewhere = Chain(device=DEVICE, position=Position(epoch=ident("ep", "other")))
    assert outcome(verify_chain, elsewhere, BODIES) == "record_out_of_place"


def test_a_later_epoch_names_the_position_before_it():
    epoch = ident("ep", "later")
    members = usage.genesis(epoch=epoch, device=DEVICE, previous=END, lost=(9, 12))
    first = ledger.append(Position(epoch=epoch), members, time=NOW, boot=BOOT)
    chain, _ = verify_chain(Chain(device=DEVICE, position=Position(epoch=epoch)), [first.body])
    assert chain.position.seq == 1
    assert first.claims["previous"] == END.to_claims()
    assert first.claims["lost"] == {"from": 9, "to": 12}


def test_no_more_meters_than_a_receipt_can_name():
    most = [*story()[:2], *(usage_members(0, 1, model=f"m{n}") for n in range(limits.METERS_MAX))]
    chain, _ = verify_chain(empty_chain(), [entry.body for entry in chained(most)])
    assert len(chain.totals) == limits.METERS_MAX
    again = ledger.append(chain.position, usage_members(1, 2, model="m0"), time=NOW, boot=BOOT)
    assert outcome(verify_chain, chain, [again.body]) == "ok"
    beyond = ledger.append(chain.position, usage_members(0, 1, model="one more"[:3]), time=NOW, boot=BOOT)
    assert outcome(verify_chain, chain, [beyond.body]) == "record_out_of_place"


def test_a_record_that_could_not_be_followed_is_not_written():
    position = Position(epoch=EPOCH)
    for members in (
        usage_members(5, 3),
        usage_members(0, 5, units=6),
        {"kind": "refund"},
        usage_members(0, 2**53),
    ):
        with pytest.raises(InputError):
            ledger.append(position, members, time=NOW, boot=BOOT)
    with pytest.raises(InputError):
        ledger.append(position, genesis_members(), time=-1, boot=BOOT)


# -- the good part of a damaged ledger


@given(ledgers(), st.data())
def test_the_good_prefix_ends_where_the_damage_begins(members, data):
    bodies = [entry.body for entry in chained(members)]
    place = data.draw(st.integers(0, len(bodies) - 1))
    damaged = [*bodies[:place], bodies[place][:-1], *bodies[place + 1 :]]
    chain, entries, fault = good_prefix(empty_chain(), damaged)
    assert len(entries) == place
    assert fault.code == "malformed_json"
    assert chain == verify_chain(empty_chain(), bodies[:place])[0]


def test_a_sound_ledger_is_its_own_good_prefix():
    assert good_prefix(empty_chain(), BODIES) == (*verify_chain(empty_chain(), BODIES), None)


# -- forks


@given(ledgers(), st.data())
def test_two_ledgers_that_part_are_told_apart_at_the_first_record_that_differs(members, data):
    common = chained(members)
    place = data.draw(st.integers(1, len(common)))
    at = Position(epoch=EPOCH, seq=place, head=common[place - 1].hash)
    branch = [*common[:place], *chained([usage.recovery("cloned"), usage.recovery("cloned")], at)]
    expected = place + 1 if place < len(common) else None
    assert fork_point(common, branch) == expected
    assert fork_point(branch, common) == expected
    assert fork_point(common[place:], branch) == expected


def test_a_ledger_that_goes_on_is_no_fork():
    assert fork_point(ENTRIES, ENTRIES) is None
    assert fork_point(ENTRIES[:3], ENTRIES) is None
    assert fork_point(ENTRIES[:3], ENTRIES[3:]) is None
    assert fork_point([], ENTRIES) is None


def test_after_a_fork_no_record_can_be_the_same_again():
    """Two branches never meet: each record's hash holds everything before it."""
    other = story()
    other[2] = usage_members(0, 13)
    other[3] = usage_members(13, 40, flags=["grace"])
    branch = chained(other)
    assert branch[4].body == ENTRIES[4].body
    assert [left.hash == right.hash for left, right in zip(ENTRIES, branch, strict=True)] == [True] * 2 + [
        False
    ] * 6


# -- usage records as values


def test_a_usage_record_is_written_as_it_was_read():
    for entry in ENTRIES:
        if entry.claims["kind"] == "usage":
            record = UsageRecord.from_claims(entry.claims)
            assert record.to_claims() == entry.claims
            assert record.meter == (entry.claims["model"], entry.claims["unit"])
            assert record.start_s == record.window * 900
            assert record.start_s <= NOW


def test_the_hash_of_nothing_before_is_zeros():
    assert record_hash(ZERO, b"x") == hashlib.sha256(b"mk-record/1\n" + bytes(32) + b"x").hexdigest()
