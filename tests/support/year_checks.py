"""What must be true at a year's end: each document proved offline, each unit accounted for, each cent booked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from licensing_server.accounts import journal
from licensing_server.accounts import service as accounts
from licensing_server.billing import conserving, service
from licensing_server.database import read
from licensing_server.usage.store import standing, usage_records
from meterkit import audit, evidence, money

if TYPE_CHECKING:
    from year_fleet import Year


@dataclass
class Checked:
    """What was found: audits that held, units by what became of them, differences."""

    audits: int = 0
    lines: int = 0
    units: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


def check(year: Year) -> Checked:
    """Check everything; it stops at nothing."""
    found = Checked()
    for final in year.finals:
        _audit(year, final, found)
    _units(year, found)
    if not conserving.show(year.server)["holds"]:
        found.differences.append("conservation of what is billed is broken")
    _estimates(year, found)
    _journal(year, found)
    return found


def _audit(year: Year, final: dict[str, Any], found: Checked) -> None:
    number, data = service.show_evidence(year.server, final["id"])
    result = audit.recompute(evidence.read_zip(data), {year.biller.made.fingerprint})
    found.audits += 1
    found.lines += len(result.lines)
    found.differences += [f"{number}: {each.place}: {each.what}" for each in result.findings]


def _units(year: Year, found: Checked) -> None:
    """Σ accepted that count = Σ quantities of keys, as they stand, + waived (BILLING §5)."""
    billed: Counter[tuple[Any, ...]] = Counter()
    waived: dict[tuple[Any, ...], int] = {}
    for final in (service.show(year.server, each["id"]) for each in year.finals):
        for line in final["lines"]:
            if line["kind"] == "measured" and final["state"] != "void":
                billed[line["license"]] += line["quantity"] - line["quantity_before"]
        for beside in final["beside"]:
            waived[beside["license"], beside["service_start_at"]] = beside.get("waived", 0)
    found.units["billed"], found.units["waived"] = sum(billed.values()), sum(waived.values())
    table = usage_records.c
    held = standing(table)
    sums = sa.select(
        table.license,
        sa.func.sum(sa.case((held.counted, held.units), else_=0)).label("counted"),
        sa.func.sum(sa.case((held.counted, held.repeated), else_=0)).label("repeated"),
        sa.func.sum(sa.case((held.aside, 1), else_=0)).label("aside"),
        sa.func.sum(sa.case((held.dismissed, table.units), else_=0)).label("dismissed"),
        sa.func.sum(sa.case((held.counted, table.unsettled), else_=0)).label("unsettled"),
    ).group_by(table.license)
    with read(year.server) as connection:
        rows = connection.execute(sums).all()
    for row in rows:
        for name in ("counted", "repeated", "aside", "dismissed", "unsettled"):
            found.units[name] += int(getattr(row, name))
        own = sum(units for (license_id, _), units in waived.items() if license_id == row.license)
        if int(row.counted) != billed[row.license] + own:
            what = f"{row.license}: {row.counted} units count, {billed[row.license]} are billed, {own} waived"
            found.differences.append(what)


def _estimates(year: Year, found: Checked) -> None:
    """Of periods on which all have reported since, nothing stays estimated."""
    left: Counter[tuple[str, int]] = Counter()
    for final in (service.show(year.server, each["id"]) for each in year.finals):
        for line in final["lines"]:
            if line["kind"] == "estimated" and final["state"] != "void":
                found.units["once estimated"] += max(0, line["quantity"] - line["quantity_before"])
                if line["service_end_at"] <= year.all_reported_at:
                    left[line["license"], line["service_start_at"]] += line["amount_minor"]
    found.differences += [f"{name}: {minor} stay estimated" for name, minor in left.items() if minor]


def _journal(year: Year, found: Checked) -> None:
    """Each transaction sums to zero, and what customers owe is what their documents say, less what they paid."""
    table = journal.journal.c
    with read(year.server) as connection:
        sums = sa.select(table.number).group_by(table.number).having(sa.func.sum(table.amount_minor) != 0)
        found.differences += [f"transaction {number}" for (number,) in connection.execute(sums)]
        paid = sa.select(table.customer, table.currency, sa.func.sum(table.amount_minor))
        paid = paid.where(table.account == journal.CASH, table.kind == "payment")
        received = {
            (customer, currency): int(amount)
            for customer, currency, amount in connection.execute(paid.group_by(table.customer, table.currency))
        }
    due: Counter[tuple[str, str]] = Counter()
    for final in year.finals:
        shown = service.show(year.server, final["id"])
        if shown["state"] != "void":
            due[shown["customer"], shown["currency"]] += shown["due_minor"]
    for customer in year.customers.values():
        for item in accounts.show(year.server, customer)["items"]:
            name = (customer, item["currency"])
            if item["owes_minor"] != due[name] - received.get(name, 0):
                found.differences.append(f"{customer}: owes {item['owes']} {item['currency']}")


def table(year: Year, found: Checked) -> list[str]:
    """What happened, as a table for people."""
    rows = [f"{'customer':10} {'documents':>9} {'void':>5} {'billed':>14} {'tax':>10} {'due':>14} {'owes':>12}"]
    for name, customer in year.customers.items():
        own = [service.show(year.server, each["id"]) for each in year.finals if each["customer"] == customer]
        standing_ones = [each for each in own if each["state"] != "void"]
        for currency in sorted({each["currency"] for each in own}):
            mine = [each for each in standing_ones if each["currency"] == currency]
            taxes = sum(tax["tax_minor"] for each in mine for tax in each.get("taxes", ()))
            total, due = (sum(each[member] for each in mine) for member in ("total_minor", "due_minor"))
            owes = {each["currency"]: each["owes"] for each in accounts.show(year.server, customer)["items"]}
            amounts = [f"{money.to_text(each, currency)} {currency}" for each in (total - taxes, due)]
            gone = len(own) - len(standing_ones)
            tax = money.to_text(taxes, currency)
            rows.append(
                f"{name:10} {len(mine):>9} {gone:>5} {amounts[0]:>14} {tax:>10} {amounts[1]:>14} "
                f"{owes.get(currency, '0'):>12}"
            )
    rows.append(f"units: {', '.join(f'{count:,} {name}' for name, count in found.units.items())}")
    rows.append(f"what happened: {', '.join(f'{count} {name}' for name, count in year.mishaps.items())}")
    rows.append(f"audits: {found.audits} documents, {found.lines} lines, {len(found.differences)} differences")
    return rows
