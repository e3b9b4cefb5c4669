"""Usual batches are judged as a whole: to the same end as record by record, whatever bytes a device sends."""

import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from licensing_server.usage import records, store, usual
from licensing_server.usage.branches import Taken
from licensing_server.usage.records import IssuedToken
from meterkit import ledger, limits
from meterkit.canonical import to_bytes
from meterkit.errors import InputError, LedgerError, MeterkitError
from meterkit.exchange import Batch, Has
from meterkit.ledger import Chain, TokenRef, Total
from meterkit.positions import Position
from meterkit.usage import FLAGS

EPOCH, DEVICE = "ep_" + "e" * 26, "dev_" + "A" * 43
LICENSE, OTHER_LICENSE = "lic_" + "a" * 26, "lic_" + "b" * 26
TOKEN, NEXT_TOKEN, STRANGE_TOKEN = ("tok_" + letter * 26 for letter in "abc")
WINDOW = 1_963_584
NOW = (WINDOW + 2) * limits.WINDOW_S
ANCHOR = {"epoch": EPOCH, "seq": 0, "head": "0" * 64}
COMMON = {"v": 1, "time": NOW, "boot": "0f9e4c1a-4a54-4f10-9c4b-0a35b6f4e1d2"}
CLOCK = {**COMMON, "kind": "clock", "from_s": NOW, "to_s": NOW - 1, "reason": "back"}
INSTALLED = {
    **COMMON,
    "kind": "token",
    "jti": NEXT_TOKEN,
    "serial": 8,
    "iat": NOW - 900,
    "license": LICENSE,
    "anchor": ANCHOR,
}
USED = {
    **COMMON,
    "kind": "usage",
    "window": WINDOW,
    "provisional": False,
    "license": LICENSE,
    "token": TOKEN,
    "model": "detector",
    "digest": "0" * 64,
    "unit": "call",
    "units": 3,
    "unsettled": 0,
    "flags": [],
    "cell": "cel_" + "c" * 26,
    "from": 2,
    "to": 5,
}
KNOWN = {
    TOKEN: IssuedToken(license=LICENSE, serial=7, iat=NOW - 9_000, valid_from=NOW - 9_000, valid_until=NOW + 1),
    NEXT_TOKEN: IssuedToken(
        license=LICENSE, serial=8, iat=NOW - 900, valid_from=NOW - 900, reach={("detector", "call"): 40}
    ),
}
START = Chain(
    device=DEVICE,
    position=Position(EPOCH, 4, "5" * 64),
    token=TokenRef(TOKEN, 7, NOW - 9_000, LICENSE),
    totals={("detector", "call"): Total(11, 2), ("detector", "item"): Total(limits.INTEGER_MAX - 9, 0)},
)

# What devices write, within bounds and at them.
fair = st.fixed_dictionaries(
    {},
    optional={
        "window": st.integers(WINDOW - 12, WINDOW + 3),
        "token": st.sampled_from([TOKEN, NEXT_TOKEN]),
        "model": st.sampled_from(["detector", "reader"]),
        "unit": st.sampled_from(["call", "item"]),
        "provisional": st.booleans(),
        "cell": st.sampled_from(["cel_" + "c" * 26, "cel_" + "d" * 26]),
        "used": st.integers(0, 20),
    },
)
NUMBERS = [-1, 0, 1, 2**24 - 1, 2**24, 10**15, limits.INTEGER_MAX, limits.INTEGER_MAX + 1, 1.0, True, None, "1"]
TEXTS = [LICENSE.upper(), OTHER_LICENSE, STRANGE_TOKEN, "", "-x", "x" * 65, "é", 'a"b', "\x00", "F" * 64, "usage"]
LISTS = [[], *([flag] for flag in FLAGS), ["grace", "clock"], ["odd"], [""], [[]], None, {}]
odd = st.dictionaries(
    st.sampled_from([*USED, "more", "seq"]), st.sampled_from([*NUMBERS, *TEXTS, *LISTS]), min_size=1, max_size=2
)
damage = st.tuples(st.integers(0, 500), st.integers(0, 3), st.binary(max_size=3))


def written(records_, start=4):
    """Records in their places, as canonical JSON where there is any form of it."""
    bodies = []
    for seq, record in enumerate(records_, start + 1):
        claims = {"seq": seq, **record}
        if "used" in claims:
            claims["units"] = claims.pop("used")
            claims["to"] = claims["from"] + claims["units"]
        try:
            bodies.append(to_bytes(claims))
        except InputError:
            bodies.append(json.dumps(claims, sort_keys=True, separators=(",", ":")).encode())
    return bodies


def one_by_one(bodies, known=KNOWN):
    """Read, followed and attributed record by record; None where one of them is refused."""
    try:
        entries = ledger.read_all(START.position, bodies)
        after = ledger.follow_all(START, entries)
    except MeterkitError:
        return None
    return after, attributed(bodies, after, entries, known), entries


def attributed(bodies, after, entries, known):
    place = {"seq_from": 5, "prev": "5" * 64, "seq_to": 4 + len(bodies), "head": after.position.head}
    told = {"through": NOW, "made_at": NOW, "has": Has(), "bodies": tuple(bodies)}
    batch = Batch(product="camera", license_id=LICENSE, epoch=EPOCH, **place, **told)
    taken = Taken(
        acceptance=-1, parent=None, batch=batch, text="", before=START, after=after, entries=tuple(entries)
    )
    return records.attribute(taken, known, received_at=NOW)


def as_a_whole(bodies, known=KNOWN):
    """The same of a usual batch; None where it is none."""
    try:
        found = usual.read(START.position, bodies)
        if found is None:
            return None
        entries, run = found
        judged = usual.judge(ledger.follow_all(START, entries), run, known, received_at=NOW)
    except MeterkitError:
        return None
    return judged and (judged, attributed(bodies, judged.after, entries, known), run)


def compare(bodies):
    """Whether a batch is usual; if it is, it came to the same both ways."""
    whole = as_a_whole(bodies)
    if whole is None:
        return False
    (judged, lead, run), each = whole, one_by_one(bodies)
    assert each is not None
    after, made, entries = each
    assert judged.after == after
    assert run.hashes == [entry.hash for entry in entries[-len(run.hashes) :]]
    assert run.tokens == {entry.claims["token"] for entry in entries if entry.claims["kind"] == "usage"}
    assert judged.rows == list(map(store.record_values, made.rows))
    assert judged.uses == records.plain_uses(made.rows)
    assert (lead.serial, lead.findings, lead.rows) == (made.serial, made.findings, [])
    return True


@pytest.mark.parametrize("lead", [[], [INSTALLED], [CLOCK, INSTALLED]])
def test_what_devices_write_is_usual(lead):
    used = [
        {**USED, "token": token, "window": WINDOW + at, "cell": "cel_" + letter * 26}
        for token, at, letter in ((TOKEN, 0, "c"), (TOKEN, 1, "d"), (NEXT_TOKEN, 1, "c"))
    ]
    assert compare(written([*lead, *used]))


def test_what_a_person_should_look_at_is_not_usual():
    for changed in (
        {"flags": ["clock"]},
        {"unsettled": 1},
        {"token": STRANGE_TOKEN},
        {"license": OTHER_LICENSE},
        {"window": WINDOW + 3},
        {"window": WINDOW - 11},
        {"units": 10**9, "to": 10**9 + 2},
        {"token": NEXT_TOKEN, "units": 28, "to": 30},
        {"unit": "item", "units": 10, "to": 12},
        {"units": 4},
        {"token": NEXT_TOKEN, "window": limits.CELL_WINDOW_MAX + 1},
        {"time": limits.TIME_MAX_S + 1},
    ):
        assert as_a_whole(written([{**USED, **changed}])) is None, changed
    assert as_a_whole(written([USED]), {}) is None
    assert as_a_whole(written([USED]), {TOKEN: replace(KNOWN[TOKEN], serial=6)}) is None


def test_totals_stay_within_bounds():
    meters = {(f"model-{number}", "call"): Total(1, 0) for number in range(limits.METERS_MAX - 1)}
    last, one_more = written([USED]), written([{**USED, "unit": "item"}])
    for totals, bodies, fits in (
        (meters, last, True),
        ({**meters, ("detector", "call"): Total(limits.INTEGER_MAX - 3, 0)}, last, True),
        ({**meters, ("detector", "call"): Total(limits.INTEGER_MAX - 2, 0)}, last, False),
        ({**meters, ("detector", "call"): Total()}, one_more, False),
    ):
        chain = START._replace(totals=totals)
        _, run = usual.read(START.position, bodies)
        assert (usual._follow(chain, run) is not None) is fits
        if fits:
            assert usual._follow(chain, run) == ledger.verify_chain(chain, bodies)[0]
        else:
            with pytest.raises(LedgerError, match="out of bounds"):
                ledger.verify_chain(chain, bodies)


def test_a_run_has_its_place():
    first, second = written([USED, USED])
    assert compare([first, second])
    for bodies in ([second, first], [first, first], [second], [first, b"", second], [b""], []):
        assert as_a_whole(bodies) is None
    genesis = Position(EPOCH)
    assert usual.read(genesis, written([USED], start=0)) is None
    assert usual.read(genesis, written([CLOCK, USED], start=0)) is not None


def test_no_usual_record_is_too_large_to_be_read_by_itself():
    most = dict.fromkeys(("from", "to"), limits.INTEGER_MAX)
    record = {**USED, **most, "units": 0, "time": limits.TIME_MAX_S, "model": "m" * 64, "provisional": False}
    (body,) = written([record])
    assert usual.read(START.position, [body]) is not None
    assert len(body) <= limits.RECORD_BYTES_MAX


@given(st.lists(st.sampled_from([INSTALLED, CLOCK]), max_size=2), st.lists(fair, min_size=1, max_size=8))
@example([], [{"used": 27}])
@example([INSTALLED], [{"token": NEXT_TOKEN, "used": 26}, {"token": NEXT_TOKEN, "used": 1}])
def test_fair_usage(lead, used):
    bodies = written([*lead, *({**USED, **each} for each in used)])
    compare(bodies)


@given(st.lists(fair | odd, min_size=1, max_size=4), st.none() | damage)
def test_odd_usage(used, damaged):
    bodies = written([{**USED, **each} for each in used])
    if damaged:
        at, cut, put = damaged
        bodies[-1] = bodies[-1][:at] + put.replace(b"\n", b" ") + bodies[-1][at + cut :]
    compare(bodies)
