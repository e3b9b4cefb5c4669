"""A statement as a table for a spreadsheet: one row for each customer, license, device and meter. Pure."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from licensing_server.pages import Document
from licensing_server.reconciliation.statement import NO_FIGURES, Figures, Line

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
COLUMNS = (
    *("from", "to", "customer", "license", "device", "model", "unit"),
    *(each.name for each in fields(Figures)),
    *("should_have_reported", "has_reported", "through", "last_seen", "sdk", "runtime"),
)


def rows(head: Document, line: Line) -> Iterator[list[str | int]]:
    """The rows of one line: one a meter; a device that only should have reported has one, too."""
    standing = line.standing
    for (model, unit), figures in sorted(line.meters.items()) or [(("", ""), NO_FIGURES)]:
        cells = [
            *(instant(head["from"]), instant(head["to"]), line.customer or "", line.license_id),
            *(standing.device, model, unit),
            *asdict(figures).values(),
            *(line.expected, line.covered, instant(standing.through), instant(standing.seen_at)),
            *(standing.sdk, standing.runtime),
        ]
        yield [cell(each) for each in cells]


def instant(at: int | None) -> str:
    """Write an instant as people and spreadsheets read it."""
    if at is None:
        return ""
    return dt.datetime.fromtimestamp(at, tz=dt.UTC).isoformat().replace("+00:00", "Z")


def cell(value: Any) -> str | int:
    """Write a cell; what somebody named, or a device said of itself, can be no formula."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return value
    return f"'{value}" if value.startswith(_FORMULA) else str(value)
