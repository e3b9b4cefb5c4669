"""One license's periods and what they hold, put together from what the database gives while a run adds up."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from licensing_server.usage.store import HALF
from meterkit.attribution import Calendar, Cited, Measured, Slot, Usage
from meterkit.licenses import Meter
from meterkit.limits import INTEGER_MAX
from meterkit.terms import Terms

Ledger = tuple[str, str]  # (device, epoch)


@dataclass(slots=True)
class Sum:
    """One period and meter, put together from its ledgers' sums."""

    units: int = 0
    unsettled: int = 0
    quarantined: int = 0
    dismissed: int = 0
    repeated: int = 0
    ranges: list[tuple[str, str, int, int]] = field(default_factory=list)

    def add_odd(self, row: Any) -> None:
        """Add odd records of a ledger."""
        self.units += row.units
        self.unsettled += row.unsettled
        self.quarantined += row.aside_high * HALF + row.aside_low
        self.dismissed += row.dismissed
        self.repeated += row.repeated
        if row.seq_first is not None:
            self.ranges.append((row.device, row.epoch, row.seq_first, row.seq_last))

    def measured(self, heads_of: dict[Ledger, str] | None) -> Measured:
        """Give the sum, its records cited by the ends of their ledgers, where these are told."""
        return Measured(
            units=self.units,
            unsettled=self.unsettled,
            quarantined=min(self.quarantined, INTEGER_MAX),
            dismissed=min(self.dismissed, INTEGER_MAX),
            repeated=min(self.repeated, INTEGER_MAX),
            cited=() if heads_of is None else tuple(self._cited(heads_of)),
        )

    def _cited(self, heads_of: dict[Ledger, str]) -> Iterator[Cited]:
        """One range for each ledger, from the first record to the last that counts."""
        self.ranges.sort()
        for (device, epoch), own in groupby(self.ranges, itemgetter(0, 1)):
            ranges = list(own)
            first, last = ranges[0][2], max(each[3] for each in ranges)
            head = heads_of.get((device, epoch), "")
            yield Cited(device=device, epoch=epoch, head=head, first=first, last=last)


class LicenseSums:
    """One license's periods, and what they hold, while it is added up."""

    __slots__ = ("_calendar", "_holding", "id", "sums")

    def __init__(self, terms: Terms) -> None:
        self.id = terms.license_id
        self.sums: dict[tuple[Slot, Meter], Sum] = {}
        self._calendar = Calendar(terms.periods, terms.ends_at)
        self._holding: dict[tuple[int, str, str], list[Sum]] = {}

    def holding(self, start_at: int, model: str, unit: str) -> list[Sum]:
        """The sums in which a span and meter count: of the period of each interval that the span lies in."""
        name = (start_at, model, unit)
        if name not in self._holding:
            slots = self.slots(start_at)
            self._holding[name] = [self.sums.setdefault((slot, (model, unit)), Sum()) for slot in slots]
        return self._holding[name]

    def slots(self, start_at: int) -> list[Slot]:
        """The period of each interval that a span lies in."""
        return [period.slot for period in self._calendar.holding(start_at)]

    def usage(self, heads_of: dict[Ledger, str] | None, devices: dict[Slot, int]) -> Usage:
        """What was added up."""
        return Usage(measured={name: held.measured(heads_of) for name, held in self.sums.items()}, devices=devices)
