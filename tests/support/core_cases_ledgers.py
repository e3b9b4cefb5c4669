"""Conformance cases for ledgers and for the batches that carry them."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from core_world import (
    BOOT,
    CELL,
    DEVICE,
    DEVICE_KEY,
    EPOCH,
    NOW,
    OTHER_DEVICE,
    OTHER_DEVICE_KEY,
    batch_head,
    batch_text,
    chained,
    flat,
    genesis_members,
    header_of,
    ident,
    jws,
    key,
    receipt_claims,
    signed,
    story,
    token_members,
    usage_members,
)

from meterkit import envelopes, usage
from meterkit.canonical import to_bytes
from meterkit.ledger import record_hash

Case = dict[str, Any]
ENTRIES = chained(story())
BODIES = [entry.body for entry in ENTRIES]
HEAD = ENTRIES[-1].hash


def hashed(bodies: list[bytes]) -> str:
    """The head that a forger computes over whatever records he likes."""
    head = "0" * 64
    for body in bodies:
        head = record_hash(head, body)
    return head


def numbered(members: list[dict[str, Any]]) -> list[bytes]:
    """Records in canonical form and numbered in order, whatever they say."""
    records = ({"v": 1, "seq": place + 1, "time": NOW, "boot": BOOT, **each} for place, each in enumerate(members))
    return [to_bytes(record) for record in records]


def chain(name: str, bodies: list[bytes], expect: str, head: str | None = None) -> Case:
    """One case: a ledger's records, one text each, and the head that they are said to reach."""
    records = [body.decode("utf-8") for body in bodies]
    return {"name": name, "records": records, "head": head or hashed(bodies), "expect": expect}


def chains() -> Iterator[Case]:
    """Ledgers from their genesis on."""
    yield chain("a short ledger with every kind of record", BODIES, "ok", HEAD)
    yield chain("no record", [], "ok", "0" * 64)
    yield chain("the genesis alone", BODIES[:1], "ok")
    usage_first = numbered([genesis_members(), token_members(), usage_members(0, 5, units=9, flags=["cell_lost"])])
    yield chain("more units than its counts, where a cell was lost", usage_first, "ok")
    lost_one = genesis_members() | {"lost": {"from": 1, "to": 1}}
    most = usage_members(0, 2**53 - 1, unsettled=2**53 - 1, window=0)
    yield chain(
        "a record lost, and the largest totals, in the first window",
        numbered([lost_one, token_members(), most]),
        "ok",
    )
    yield from _tampered()
    yield from _out_of_place()
    yield from _wrong_records()


def _tampered() -> Iterator[Case]:
    """Somebody changes a ledger, and leaves the head that was signed, or computes his own."""
    cheaper = _changed(BODIES[3], units=8, to=20)
    wrong: dict[str, list[bytes]] = {
        "a record's units lowered": [*BODIES[:3], cheaper, *BODIES[4:]],
        "a record's time changed": [*BODIES[:3], _changed(BODIES[3], time=NOW), *BODIES[4:]],
        "the last record left out": BODIES[:-1],
        "a record of another ledger at the end": [*BODIES[:-1], numbered([*story()[:7], usage_members(0, 1)])[-1]],
        "nothing handed over": [],
    }
    for name, bodies in wrong.items():
        yield chain(name, bodies, "chain_broken", HEAD)
    forged: dict[str, list[bytes]] = {
        "a record left out": BODIES[:3] + BODIES[4:],
        "two records swapped": [*BODIES[:2], BODIES[3], BODIES[2], *BODIES[4:]],
        "a record inserted": [*BODIES[:4], BODIES[3], *BODIES[4:]],
        "the last record twice": [*BODIES, BODIES[-1]],
        "the genesis left out": BODIES[1:],
        "the genesis twice": [BODIES[0], *BODIES],
        "a hole in the numbers": [*BODIES[:-1], _changed(BODIES[-1], seq=9)],
    }
    for name, bodies in forged.items():
        yield chain(f"{name}, head computed anew", bodies, "chain_broken")
    yield chain(
        "a bit flipped in a digest",
        [*BODIES[:2], _flip(BODIES[2], b'"digest":"'), *BODIES[3:]],
        "chain_broken",
        HEAD,
    )


def _changed(body: bytes, **changes: Any) -> bytes:
    return to_bytes({**json.loads(body), **changes})


def _flip(body: bytes, after: bytes) -> bytes:
    place = body.index(after) + len(after)
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def _out_of_place() -> Iterator[Case]:
    """Records that are sound, numbered and hashed, and contradict the ones before them."""
    other = ident("lic", "other")
    start = [genesis_members(), token_members()]
    wrong = {
        "no genesis first": [token_members()],
        "a second genesis": [*start, genesis_members()],
        "the genesis of another device": [genesis_members(device=OTHER_DEVICE)],
        "the genesis of another epoch": [genesis_members(epoch=ident("ep", "other"))],
        "usage before any token": [genesis_members(), usage_members(0, 1)],
        "usage of another license": [*start, usage_members(0, 1, license=other)],
        "usage of the license before": [*start, token_members(8, other), usage_members(0, 1)],
        "the same token again": [*start, token_members()],
        "an older token": [*start, token_members(6)],
        "totals beyond 2^53 - 1": [*start, usage_members(0, 2**53 - 1), usage_members(0, 1)],
        "unsettled totals beyond 2^53 - 1": [*start, *[usage_members(0, 0, unsettled=2**53 - 1)] * 2],
        "257 meters": [*start, *(usage_members(0, 1, model=f"m{n}") for n in range(257))],
    }
    for name, members in wrong.items():
        yield chain(name, numbered(members), "record_out_of_place")
    most = [*start, *(usage_members(0, 1, model=f"m{n}") for n in range(64))]
    yield chain("64 meters", numbered(most), "ok")
    resumed = [*start, token_members(8, other), token_members(9), usage_members(0, 1)]
    yield chain("the first license again under a newer token", numbered(resumed), "ok")


def _wrong_records() -> Iterator[Case]:
    """The third record is no record."""
    sound = json.loads(BODIES[2])
    members: dict[str, dict[str, Any]] = {
        "counting backward": {"from": 12, "to": 0, "units": 0},
        "with units that its counts do not prove": {"units": 13},
        "of units below zero": {"units": -1, "flags": ["cell_lost"]},
        "of an unknown kind": {"kind": "refund"},
        "of version 2": {"v": 2},
        "with an unknown flag": {"flags": ["free"]},
        "with one flag twice": {"flags": ["grace", "grace"]},
        "with a price": {"price": "0"},
        "provisional 0": {"provisional": 0},
        "in a window beyond 24 bits": {"window": 2**24},
        "of a boot that is none": {"boot": "x"},
        "of a time before 1970": {"time": -1},
        "naming its cell by a path": {"cell": "../cel"},
    }
    for name, changes in members.items():
        record = {**sound, **changes}
        yield chain(f"a record {name}", [*BODIES[:2], flat(dict(sorted(record.items())))], "malformed_members")
    recovery = {**usage.recovery("cell_lost", CELL), "code": "rm -rf"}
    yield chain("a recovery of no code", numbered([*story()[:2], recovery]), "malformed_members")
    lost = genesis_members() | {"lost": {"from": 5, "to": 4}}
    yield chain("a genesis that lost nothing, backward", numbered([lost]), "malformed_members")
    form: dict[str, tuple[Callable[[bytes], bytes], str]] = {
        "spaced out": (lambda body: body.replace(b",", b", "), "not_canonical"),
        "in another order": (lambda body: flat(dict(reversed(json.loads(body).items()))), "not_canonical"),
        "with a needless escape": (lambda body: body.replace(b"detector", b"\\u0064etector"), "not_canonical"),
        "with a member twice": (lambda body: body[:-1] + b',"units":0}', "malformed_json"),
        "with a float": (lambda body: body.replace(b'"units":12', b'"units":12.0'), "malformed_json"),
        "cut short": (lambda body: body[:-1], "malformed_json"),
        "of no bytes": (lambda _: b"", "malformed_json"),
        "of 4,097 bytes": (lambda body: body + b" " * (4097 - len(body)), "too_large"),
    }
    for name, (spoil, expect) in form.items():
        yield chain(f"a record {name}", [*BODIES[:2], spoil(BODIES[2])], expect)


def batch(name: str, text: str, expect: str, follow: str | None = None) -> Case:
    """One case: `expect` on opening it, `follow` on following its records from the ledger's beginning."""
    return {"name": name, "batch": text, "expect": expect, "follow": follow}


def batches() -> Iterator[Case]:
    """Batches: signed by the device, announcing what is in them."""
    head = batch_head(ENTRIES)
    yield batch("a short ledger", batch_text(head, BODIES), "ok", "ok")
    yield batch("its first three records", batch_text(batch_head(ENTRIES[:3]), BODIES[:3]), "ok", "ok")
    yield batch("its last three records", batch_text(batch_head(ENTRIES[5:]), BODIES[5:]), "ok", "batch_gap")
    yield batch("no record, nothing before it", batch_text(_empty(1, "0" * 64), []), "ok", "ok")
    yield batch("no record, after the last", batch_text(_empty(9, HEAD), []), "ok", "batch_gap")
    receipt = signed(envelopes.RECEIPT, receipt_claims(), "receipt")
    carrying = batch_head(ENTRIES, has={**head["has"], "receipt": receipt})
    yield batch("carrying a receipt", batch_text(carrying, BODIES), "ok", "ok")
    unlicensed = batch_head(ENTRIES[:1], license=None)
    yield batch("of no license yet", batch_text(unlicensed, BODIES[:1]), "ok", "ok")
    lied = batch_head(ENTRIES, head="ab" * 32)
    yield batch("another head than its records have", batch_text(lied, BODIES), "ok", "chain_broken")
    swapped = [*BODIES[:2], BODIES[3], BODIES[2], *BODIES[4:]]
    yield batch("two records swapped", batch_text(head, swapped), "ok", "chain_broken")
    cheaper = [*BODIES[:3], _changed(BODIES[3], units=8, to=20), *BODIES[4:]]
    yield batch("units lowered, the head kept", batch_text(head, cheaper), "ok", "chain_broken")
    yield from _wrong_heads(head)
    yield from _wrong_signers(head)


def _empty(seq: int, at: str) -> dict[str, Any]:
    return batch_head(ENTRIES, **{"from": seq, "prev": at, "to": seq - 1, "head": at})


def _wrong_heads(head: dict[str, Any]) -> Iterator[Case]:
    wrong: dict[str, dict[str, Any]] = {
        "announcing a record more": {"to": 9},
        "announcing a record less": {"to": 7},
        "from record 0": {"from": 0, "to": 7},
        "the first record after another": {"prev": "ab" * 32},
        "a later record after none": {"from": 2, "to": 9},
        "of version 2": {"v": 2},
        "with an unknown member": {"amount": "0"},
        "without an epoch": {"epoch": None},
        "through a date": {"through": "2027-01-15"},
        "reading version 0": {"has": {**head["has"], "v": {"token": 0}}},
        "with a receipt that is none": {"has": {**head["has"], "receipt": "x"}},
    }
    for name, changes in wrong.items():
        yield batch(name, batch_text({**head, **changes}, BODIES), "malformed_members")
    grown = _empty(9, HEAD) | {"head": "ab" * 32}
    yield batch("no record, and yet a new head", batch_text(grown, []), "malformed_members")
    yield batch("a newline at the end", batch_text(head, [*BODIES, b""]), "malformed_members")
    yield batch("a head that is no JSON", batch_text(b"batch", BODIES), "malformed_json")
    yield batch(
        "a head with a member twice", batch_text(to_bytes(head)[:-1] + b',"v":1}', BODIES), "malformed_json"
    )
    yield batch("no head", batch_text(b"", BODIES), "malformed_json")
    yield batch("a blank line before the records", batch_text(head, [b"", *BODIES]), "malformed_members")
    yield batch("10,001 empty records", batch_text(head, [b""] * 10_001), "too_many")


def _wrong_signers(head: dict[str, Any]) -> Iterator[Case]:
    text = batch_text(head, BODIES)
    yield batch("signed by a device that nobody knows", batch_text(head, BODIES, key("stranger")), "key_unknown")
    stolen = jws(header_of(envelopes.BATCH, DEVICE_KEY), b"\n".join((to_bytes(head), *BODIES)), OTHER_DEVICE_KEY)
    yield batch("signed by another device under this one's kid", stolen, "signature_bad")
    other = batch_text(head, BODIES, OTHER_DEVICE_KEY)
    yield batch("another device's signature over this one's ledger", other, "ok", "record_out_of_place")
    start, _, tail = text.partition(".")
    payload, _, signature = tail.partition(".")
    yield batch("a bit flipped in its payload", f"{start}.{'f' + payload[1:]}.{signature}", "signature_bad")
    yield batch("cut short", text[: len(text) // 2], "malformed_envelope")
    yield batch("a token", signed(envelopes.TOKEN, {"v": 1}, DEVICE_KEY), "wrong_type")


def given() -> dict[str, Any]:
    """What every case of these files starts from."""
    devices = {f"dev_{each.kid}": each.verify_key.text for each in (DEVICE_KEY, OTHER_DEVICE_KEY)}
    return {"device": DEVICE, "devices": devices, "epoch": EPOCH, "product": "camera"}
