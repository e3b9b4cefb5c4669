"""Instants as a customer's own clock shows them. Documents carry UTC; these are for people."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTimes:
    """One time zone, by the name that is said once where its times are shown.

    It opens no table of time zones: a shell finds the zone, and hands it over.
    """

    name: str
    zone: dt.tzinfo

    def minute(self, at: int) -> str:
        """Write an instant, seconds UTC, to the minute; to the second where it lies within one."""
        return self._write(at, "%Y-%m-%d %H:%M" + (":%S" if at % 60 else ""))

    def second(self, at: int) -> str:
        """Write an instant, seconds UTC, to the second."""
        return self._write(at, "%Y-%m-%d %H:%M:%S")

    def _write(self, at: int, form: str) -> str:
        """A time that the zone's clocks show twice is told from the other one by its offset."""
        local = dt.datetime.fromtimestamp(at, tz=self.zone)
        shown = local.strftime(form)
        twice = local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()
        return f"{shown} ({local:%z})" if twice else shown


UTC = LocalTimes(name="UTC", zone=dt.UTC)
