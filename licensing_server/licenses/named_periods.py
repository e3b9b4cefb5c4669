"""Periods as people name them: 2026, 2026-01, 2026-01-31, or two instants. Pure."""

import datetime as dt
import re
from zoneinfo import ZoneInfo

from licensing_server.licenses.periods import local_midnight
from meterkit.errors import InputError

_PERIOD = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?\Z")
_YEARS = range(1970, 9999)


def bounds(period: str | None, between: tuple[int | None, int | None], *, zone: str, now: int) -> tuple[int, int]:
    """The two instants of a period (half-open): of one that is named, the zone's midnights; else of `between`.

    From the beginning of time, and until now, where `between` says nothing else.

    Raises:
        InputError: `malformed_members` for a name that is none, for both ways at once, and for a period that ends
            before it begins.
    """
    from_at, to_at = between
    if period is None:
        first_at, end_at = from_at or 0, now + 1 if to_at is None else to_at
        if end_at <= first_at:
            raise InputError("malformed_members", "to: it is not after from")
        return first_at, end_at
    if from_at is not None or to_at is not None:
        raise InputError("malformed_members", "period: name it, or give from and to")
    first, following = _days(period)
    where = ZoneInfo(zone)
    return max(0, local_midnight(first, where)), local_midnight(following, where)


def _days(period: str) -> tuple[dt.date, dt.date]:
    """The first day of a named period, and the first day after it."""
    match = _PERIOD.match(period)
    parts = [int(part) for part in match.groups() if part] if match else []
    try:
        first = dt.date(*[*parts, 1, 1][:3])
    except (TypeError, ValueError):
        first = dt.date.min
    if first.year not in _YEARS:
        raise InputError("malformed_members", "period: it is YYYY, YYYY-MM or YYYY-MM-DD")
    if len(parts) == 1:
        return first, dt.date(first.year + 1, 1, 1)
    if len(parts) == 2:
        return first, dt.date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return first, first + dt.timedelta(days=1)
