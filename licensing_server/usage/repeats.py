"""What a batch tells of that another branch of its ledger told of before: found, and noted (DESIGN §6).

`meterkit.repeats` says what a repeat is, and works it out from whole chains. This finds the same for one batch,
from the other branches' own batches alone: a ledger that has forked may be long.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from licensing_server.usage.branches import Taken
from licensing_server.usage.records import Finding
from licensing_server.usage.store import StoredBatch
from meterkit.canonical import from_canonical
from meterkit.limits import RECORD_BYTES_MAX
from meterkit.repeats import Span, overlap, span_of
from meterkit.usage import UsageRecord

KIND = "repeated_range"
_CELL = re.compile(rb'"cell":"([^"]*)"')
Place = tuple[int, int]  # the acceptance of the batch that first brought a record, and its seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a stored batch's own records lie: from `first_new` on, after a record that `parent` brought."""

    acceptance: int
    parent: int | None
    first_new: int
    to_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of an epoch's other batches: where they lie, what is in them, and which records count."""

    placed: Mapping[int, Placed]
    read: Callable[[Collection[int]], Iterable[StoredBatch]]
    standing: Callable[[Collection[int]], Collection[Place]]


def elsewhere(placed: Mapping[int, Placed], taken: Taken, acceptance: int) -> dict[int, int]:
    """The batches that have records on other branches than a batch's own, and from which record on."""
    begins: dict[int, int] = {}  # by batch: the first record of its chain; before it, records are gone
    for number in sorted(placed):
        each = placed[number]
        begins[number] = begins.get(each.parent or 0, each.first_new)
    followed = _followed(placed, acceptance)
    found = {}
    for number, each in placed.items():
        since = max(each.first_new, followed.get(number, 0) + 1, begins[acceptance])
        if number < acceptance and since <= each.to_seq and taken.entries[0].seq >= begins[number]:
            found[number] = since
    return found


def _followed(placed: Mapping[int, Placed], acceptance: int) -> dict[int, int]:
    """The batches that a batch follows, each up to which record."""
    found: dict[int, int] = {}
    own = placed[acceptance]
    while own.parent is not None:
        found[own.parent] = own.first_new - 1
        own = placed[own.parent]
    return found


def note(rows: list[dict[str, Any]], taken: Taken, acceptance: int, known: Known) -> Finding | None:
    """Note in a batch's rows how many units repeat others; give what a person should look at, if any do."""
    since = elsewhere(known.placed, taken, acceptance)
    own = {entry.seq: span for entry in taken.entries if (span := _span(entry.claims)) is not None}
    if not since or not own:
        return None
    others: dict[str, list[Span]] = {}
    standing = known.standing(since)
    for place, span in _spans(known.read(since), since, {span.cell for span in own.values()}):
        if place in standing:
            others.setdefault(span.cell, []).append(span)
    repeating = []
    for row in rows:
        span = own.get(row["seq"])
        if span is not None and not row["quarantined"]:
            row["repeated"] = overlap(span, others.get(span.cell, ()))
            repeating += [row] if row["repeated"] else []
    return _finding(repeating, taken) if repeating else None


def _span(claims: dict[str, Any]) -> Span | None:
    return span_of(UsageRecord.from_claims(claims)) if claims["kind"] == "usage" else None


def _spans(
    batches: Iterable[StoredBatch], since: Mapping[int, int], cells: Collection[str]
) -> Iterator[tuple[Place, Span]]:
    """The counts of some cells that batches tell of, from a record of each on."""
    wanted = {cell.encode() for cell in cells}
    for stored in batches:
        for seq, body in enumerate(stored.batch.bodies, stored.batch.seq_from):
            named = _CELL.search(body)  # nearly no record needs to be read
            if seq >= since[stored.acceptance] and named is not None and named[1] in wanted:
                span = _span(from_canonical(body, bytes_max=RECORD_BYTES_MAX))
                if span is not None:
                    yield (stored.acceptance, seq), span


def _finding(rows: list[dict[str, Any]], taken: Taken) -> Finding:
    evidence = {
        "first": rows[0]["seq"],
        "last": rows[-1]["seq"],
        "records": len(rows),
        "units": sum(row["repeated"] for row in rows),
        "head": taken.batch.head,
    }
    return Finding(kind=KIND, license=taken.batch.license_id, evidence=evidence)
