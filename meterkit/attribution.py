"""Which period a record belongs to, and what each period then holds (BILLING §2).

`gather` is the reference: records in, sums per period and meter out, whatever order, number of copies or
pieces they come in. A server may let its database add up instead; it must come to the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from meterkit.licenses import Meter
from meterkit.limits import INTEGER_MAX
from meterkit.tuples import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One billing period of a license, as two UTC instants, half-open.

    `nth` counts whole periods from the license's first. A short period knows the whole one it is a piece of.
    `since_run` is the first billing run that knew it: recomputed, an earlier one does not. Where it was cut
    shorter, runs before `cut_run` knew it to end at `end_before`.
    """

    interval: str
    nth: int
    start_at: int
    end_at: int
    whole_start_at: int
    whole_end_at: int
    since_run: int = 0
    cut_run: int = 0
    end_before: int | None = None

    def known_at(self, run: Run) -> Period:
        """The period as a run knows it."""
        if self.end_before is None or run.number >= self.cut_run:
            return self
        return replace(self, end_at=self.end_before, cut_run=0, end_before=None)

    @property
    def share(self) -> Fraction:
        """The part of the whole period's seconds that this one is."""
        return Fraction(self.end_at - self.start_at, self.whole_end_at - self.whole_start_at)

    @property
    def slot(self) -> Slot:
        """What tells this period from the license's others."""
        return self.interval, self.start_at


Slot = tuple[str, int]  # (interval, start_at)
_Ranges = dict[tuple[str, str, str], tuple[int, int]]  # (device, epoch, branch) → its first and last record


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A billing run and its two limits: usage before `cut_off`, accepted up to `acceptance_max`."""

    number: int
    cut_off: int
    acceptance_max: int

    def to_claims(self) -> dict[str, Any]:
        """Write the run as documents carry it."""
        return {"number": self.number, "cut_off": self.cut_off, "acceptance_max": self.acceptance_max}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One accepted usage record, with what the server knows of it.

    `branch` is the head of the branch it is cited on; `acceptance` the number it was accepted under, in
    commit order. Records are one where (device, epoch, seq, hash) are. What is `quarantined` (and not released),
    or on a branch that was `dismissed`, is in no sum; nor are so many of its units as are `repeated` (and not
    released): another branch told of the same counts before.
    """

    license_id: str
    device: str
    epoch: str
    seq: int
    hash: str
    branch: str
    meter: Meter
    units: int
    unsettled: int
    service_at: int
    acceptance: int
    quarantined: bool = False
    dismissed: bool = False
    repeated: int = 0
    received_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """Until when usage of a period is in time: up to an acceptance, after which it is carried over to the period
    that was open when it came; or up to an instant, after which it is waived.
    """

    acceptance_max: int | None = None
    received_max: int | None = None

    @property
    def carries(self) -> bool:
        """Whether what is late is billed in another period."""
        return self.acceptance_max is not None

    def is_past(self, record: Record) -> bool:
        """Whether a record came later."""
        if self.acceptance_max is not None:
            return record.acceptance > self.acceptance_max
        return self.received_max is not None and record.received_at > self.received_max


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """When a token was issued, and from when to when it was valid, without grace."""

    license_id: str
    device: str
    iat: int
    nbf: int
    exp: int


class Cited(NamedTuple):
    """Records of one branch, named by its head: from sequence `first` to `last`.

    A tuple, for a run makes and sorts one per ledger and line.
    """

    device: str
    epoch: str
    head: str
    first: int
    last: int

    def to_claims(self) -> dict[str, Any]:
        """Write the range as a line cites it."""
        return self._asdict()


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Carried:
    """Units that are billed in another period than that of their use, from `start_at` to `end_at`."""

    start_at: int
    end_at: int
    units: int

    def to_claims(self) -> dict[str, int]:
        """Write them as a line carries them."""
        return {"service_start_at": self.start_at, "service_end_at": self.end_at, "quantity": self.units}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one meter counted in one period. Only `units` are billed; the rest is shown beside them.

    `late` units came too late by the contract, and are billed only where that costs less; `carried` ones are among
    the units, and were used in another period.
    `quarantined` counts the units of quarantined records, unsettled ones included, up to the largest number
    that every JSON reader knows; `dismissed` likewise those that a decision took out. `repeated` ones are counted
    on another branch.
    """

    units: int = 0
    unsettled: int = 0
    quarantined: int = 0
    dismissed: int = 0
    repeated: int = 0
    cited: tuple[Cited, ...] = ()
    late: int = 0
    late_cited: tuple[Cited, ...] = ()
    carried: tuple[Carried, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a license's periods hold, by the limits of one run: meters, and how many devices were active."""

    measured: Mapping[tuple[Slot, Meter], Measured] = field(default_factory=dict)
    devices: Mapping[Slot, int] = field(default_factory=dict)


def service_time(window_start: int, *, token_iat: int, received_at: int) -> int:
    """The instant at which a record counts as used: its start, within what the server can vouch for.

    Held between the `iat` of the last `token` record before it and its batch's `received_at`, seconds UTC.
    """
    return min(max(window_start, token_iat), received_at)


class Calendar:
    """A license's periods, so that the one which holds an instant is found fast."""

    __slots__ = ("_ended", "_periods", "_starts")

    def __init__(self, periods: Iterable[Period], ends_at: int | None) -> None:
        self._periods: dict[str, list[Period]] = {}
        for period in sorted(periods, key=lambda period: period.start_at):
            self._periods.setdefault(period.interval, []).append(period)
        self._starts = {name: [each.start_at for each in line] for name, line in self._periods.items()}
        self._ended = ends_at

    def touching(self, first: int, last: int) -> Iterator[Period]:
        """The periods of every interval that hold any instant from `first` to `last`."""
        for interval, line in self._periods.items():
            for period in line[max(0, bisect_right(self._starts[interval], first) - 1) :]:
                if period.start_at > last:
                    break
                if period.end_at > first:
                    yield period

    def holding(self, at: int) -> list[Period]:
        """The period of each interval that holds an instant; before the first or after the end, the nearest."""
        found = []
        for interval, line in self._periods.items():
            period = line[max(0, bisect_right(self._starts[interval], at) - 1)]
            ended = self._ended is not None and period is line[-1] and period.end_at >= self._ended
            if at < period.end_at or ended:
                found.append(period)
        return found


def gather(
    calendar: Calendar,
    run: Run,
    records: Iterable[Record],
    tokens: Iterable[TokenSpan],
    deadlines: Mapping[Slot, Deadline] = MappingProxyType({}),
) -> Usage:
    """Add up one license's records per period and meter, within a run's limits.

    A record that comes several times counts once, as accepted the first time. It judges no signature and no
    chain, and does not ask whether the records are this license's: pass only those.
    """
    once: dict[tuple[str, str, int, str], Record] = {}
    for record in records:
        name = (record.device, record.epoch, record.seq, record.hash)
        if name not in once or record.acceptance < once[name].acceptance:
            once[name] = record
    known = [
        record
        for record in once.values()
        if record.service_at < run.cut_off and record.acceptance <= run.acceptance_max
    ]
    sums: dict[tuple[Slot, Meter], _Sum] = {}
    active: dict[Slot, set[str]] = {}
    for record in known:
        for period in calendar.holding(record.service_at):
            _add(sums, calendar, period, record, deadlines.get(period.slot))
            if not (record.quarantined or record.dismissed):
                active.setdefault(period.slot, set()).add(record.device)
    _add_tokens(active, calendar, run, tokens)
    return Usage(
        measured={name: total.measured() for name, total in sums.items()},
        devices={slot: len(devices) for slot, devices in active.items()},
    )


def _add(
    sums: dict[tuple[Slot, Meter], _Sum],
    calendar: Calendar,
    period: Period,
    record: Record,
    deadline: Deadline | None,
) -> None:
    """Add a record to its period, or where it is late and carried over, to the one open when it came."""
    late = deadline is not None and deadline.is_past(record)
    if deadline is None or not late or not deadline.carries:
        sums.setdefault((period.slot, record.meter), _Sum()).add(record, late=late)
        return
    for other in calendar.holding(record.received_at):
        if other.interval == period.interval:
            sums.setdefault((other.slot, record.meter), _Sum()).add(record, used_in=period)


def _add_tokens(active: dict[Slot, set[str]], calendar: Calendar, run: Run, tokens: Iterable[TokenSpan]) -> None:
    """Count a device as active where a token was issued to it, or was valid, in the period."""
    for token in tokens:
        if token.iat >= run.cut_off:
            continue
        valid = calendar.touching(token.nbf, token.exp - 1)
        for period in (*calendar.touching(token.iat, token.iat), *valid):
            active.setdefault(period.slot, set()).add(token.device)


class _Sum:
    """One period and meter, while it is added up."""

    __slots__ = (
        *(
            "carried",
            "dismissed",
            "late",
            "late_ranges",
            "quarantined",
            "ranges",
            "repeated",
            "units",
            "unsettled",
        ),
    )

    def __init__(self) -> None:
        self.units = self.unsettled = self.quarantined = self.dismissed = self.repeated = self.late = 0
        self.ranges: _Ranges = {}
        self.late_ranges: _Ranges = {}
        self.carried: dict[tuple[int, int], int] = {}

    def add(self, record: Record, *, late: bool = False, used_in: Period | None = None) -> None:
        if record.quarantined:
            self.quarantined += record.units + record.unsettled
            return
        if record.dismissed:
            self.dismissed += record.units + record.unsettled
            return
        units = record.units - record.repeated
        self.repeated += record.repeated
        self.unsettled += record.unsettled
        if late:
            self.late += units
        else:
            self.units += units
        if used_in is not None:
            name = (used_in.start_at, used_in.end_at)
            self.carried[name] = self.carried.get(name, 0) + units
        _extend(self.late_ranges if late else self.ranges, record)

    def measured(self) -> Measured:
        return Measured(
            units=self.units,
            unsettled=self.unsettled,
            quarantined=min(self.quarantined, INTEGER_MAX),
            dismissed=min(self.dismissed, INTEGER_MAX),
            repeated=min(self.repeated, INTEGER_MAX),
            cited=_cited(self.ranges),
            late=self.late,
            late_cited=_cited(self.late_ranges),
            carried=tuple(
                sorted(
                    Carried(start_at=start, end_at=end, units=each) for (start, end), each in self.carried.items()
                )
            ),
        )


def cite(*parts: tuple[Cited, ...]) -> tuple[Cited, ...]:
    """Put what is cited of several parts of a period together: a range for each branch."""
    ranges: dict[tuple[str, str, str], tuple[int, int]] = {}
    for cited in (each for part in parts for each in part):
        name = (cited.device, cited.epoch, cited.head)
        first, last = ranges.get(name, (cited.first, cited.last))
        ranges[name] = (min(first, cited.first), max(last, cited.last))
    return _cited(ranges)


def _extend(ranges: _Ranges, record: Record) -> None:
    name = (record.device, record.epoch, record.branch)
    first, last = ranges.get(name, (record.seq, record.seq))
    ranges[name] = (min(first, record.seq), max(last, record.seq))


def _cited(ranges: _Ranges) -> tuple[Cited, ...]:
    return tuple(
        sorted(
            Cited(device=device, epoch=epoch, head=head, first=first, last=last)
            for (device, epoch, head), (first, last) in ranges.items()
        )
    )
