"""A range of one cell's counts that two branches of a ledger report counts once (DESIGN §6).

A process that was snapshot, and lived on beside its copy, is told of by both. Of two records that lie on different
branches of one epoch, and name the same counts of the same cell for the same license and meter, the one that was
accepted later repeats the other; where they overlap in part, only that part of it. What a record says that was
set aside by the rule, or dismissed before the other came, is repeated by nobody. A record of a lost cell names no
counts that prove its units: it repeats nothing. Neither are unsettled units counts of a cell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from meterkit.licenses import Meter
from meterkit.tuples import NamedTuple
from meterkit.usage import UsageRecord

Name = tuple[str, str]  # a record's epoch and hash


class Span(NamedTuple):
    """Counts of one cell, half-open, and what they are counted for."""

    cell: str
    license_id: str
    meter: Meter
    first: int
    last: int

    def is_of(self, other: Span) -> bool:
        """Whether both are counts of one cell for one purpose, and overlap."""
        same = (self.cell, self.license_id, self.meter) == (other.cell, other.license_id, other.meter)
        return same and max(self.first, other.first) < min(self.last, other.last)


def span_of(record: UsageRecord) -> Span | None:
    """The counts that prove a record's units; None if none do."""
    if "cell_lost" in record.flags or not record.units:
        return None
    return Span(
        cell=record.cell,
        license_id=record.license_id,
        meter=record.meter,
        first=record.count_from,
        last=record.count_to,
    )


def overlap(own: Span, others: Iterable[Span]) -> int:
    """How many of a record's counts any of the others has, too."""
    found, reached = 0, own.first
    for other in sorted((other for other in others if own.is_of(other)), key=lambda other: other.first):
        last = min(own.last, other.last)
        found += max(0, last - max(reached, other.first))
        reached = max(reached, last)
    return found


class Link(NamedTuple):
    """One record of a chain: which one it follows, when it was accepted, and what it counts, if it is usage."""

    name: Name
    prev: str
    seq: int
    acceptance: int
    span: Span | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """How many units of a record repeat others, and which."""

    units: int
    of: frozenset[Name]


class Dismissal(NamedTuple):
    """The records that a decision took out, and how much had been accepted of the device when it was made."""

    acceptance: int
    names: frozenset[Name]


def find(links: Iterable[Link], aside: Collection[Name], dismissals: Sequence[Dismissal]) -> dict[Name, Repeat]:
    """Find every record of a device that repeats others, by the order in which they were accepted.

    `aside` are those that the rule sets aside, whatever was decided since.
    """
    ordered = sorted(links, key=lambda link: link.seq)
    branches = _Branches(ordered)
    groups: dict[tuple[str, str], list[tuple[Link, Span]]] = {}
    for link in ordered:
        if link.span is not None and link.name not in aside and branches.parts(link):
            groups.setdefault((link.name[0], link.span.cell), []).append((link, link.span))
    found: dict[Name, Repeat] = {}
    for group in groups.values():
        for own, span in group:
            others = {
                other.name: told
                for other, told in group
                if other.acceptance < own.acceptance
                and told.is_of(span)
                and branches.are_apart(own, other)
                and not _is_out(other.name, own.acceptance, dismissals)
            }
            if others:
                found[own.name] = Repeat(units=overlap(span, others.values()), of=frozenset(others))
    return found


def _is_out(name: Name, acceptance: int, dismissals: Sequence[Dismissal]) -> bool:
    return any(each.acceptance < acceptance and name in each.names for each in dismissals)


class _Branches:
    """The pieces of a device's chains between the places where they part, and what each piece follows."""

    def __init__(self, ordered: Sequence[Link]) -> None:
        children: dict[Name, int] = {}
        for link in ordered:
            before = (link.name[0], link.prev)
            children[before] = children.get(before, 0) + 1
        self._pieces: dict[Name, int] = {}
        self._before: list[frozenset[int]] = []  # of a piece: those it follows, and itself
        self._found: dict[str, set[int]] = {}  # by epoch
        self._begin: list[int] = []  # of a piece: the first record of its chain; before it, records are gone
        for link in ordered:
            before = (link.name[0], link.prev)
            piece = self._pieces.get(before)
            if piece is None or children[before] > 1:
                follows = frozenset() if piece is None else self._before[piece]
                begin = link.seq if piece is None else self._begin[piece]
                self._before.append(follows | {len(self._before)})
                self._begin.append(begin)
                piece = len(self._begin) - 1
            self._pieces[link.name] = piece
            self._found.setdefault(link.name[0], set()).add(piece)

    def parts(self, link: Link) -> bool:
        """Whether a record's epoch has more than one piece."""
        return len(self._found[link.name[0]]) > 1

    def are_apart(self, one: Link, two: Link) -> bool:
        """Whether two records of one epoch lie on different branches: neither comes before the other."""
        first, second = self._pieces[one.name], self._pieces[two.name]
        if first in self._before[second] or second in self._before[first]:
            return False
        return one.seq >= self._begin[second] and two.seq >= self._begin[first]
