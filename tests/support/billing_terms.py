"""Terms, records and runs for tests of billing, written short."""

from collections.abc import Iterable, Sequence
from typing import Any

from meterkit import invoices, plans
from meterkit.attribution import Calendar, Period, Record, Run, TokenSpan, gather
from meterkit.licenses import Meter
from meterkit.lines import Bill, Key, Line, billed_before
from meterkit.terms import Terms, Version

DAY = 86_400
LICENSE = "lic_" + "a" * 26
PLAN = "plan_" + "a" * 26
CALLS: Meter = ("net", "call")


def plan_json(*charges: dict[str, Any], **changed: Any) -> dict[str, Any]:
    values = {"v": 1, "currency": "EUR", "interval": "month", "charges": list(charges)}
    return {**values, **changed}


def usage_charge(price: dict[str, Any], name: str = "calls", model: str = "net", **more: Any) -> dict[str, Any]:
    return {"id": name, "type": "usage", "meter": {"model": model, "unit": "call"}, "price": price, **more}


def recurring(amount: str = "30", name: str = "fee", **more: Any) -> dict[str, Any]:
    values = {"id": name, "type": "recurring", "per": "license", "due": "arrears"}
    return {**values, "price": {"model": "flat", "amount": amount}, **more}


def commitment(amount: str, *over: str, **more: Any) -> dict[str, Any]:
    return {"id": "least", "type": "commitment", "amount": amount, "over": list(over), **more}


def per_unit(amount: str, **more: Any) -> dict[str, Any]:
    return {"model": "per_unit", "unit_amount": amount, **more}


def whole(nth: int, *, interval: str = "month", days: int = 30) -> Period:
    start, end = nth * days * DAY, (nth + 1) * days * DAY
    return Period(interval=interval, nth=nth, start_at=start, end_at=end, whole_start_at=start, whole_end_at=end)


def terms(
    plan: dict[str, Any], *, periods: Iterable[Period] | None = None, ends_at: int | None = None, count: int = 3
) -> Terms:
    version = Version(plan_id=PLAN, number=1, starts_at=0, plan=plans.read(plan))
    chosen = tuple(periods) if periods is not None else tuple(whole(nth) for nth in range(count))
    return Terms(license_id=LICENSE, ends_at=ends_at, versions=(version,), periods=chosen)


def record(units: int, *, day: float = 0, seq: int = 1, **changed: Any) -> Record:
    values = {
        "license_id": LICENSE,
        "device": "dev_a",
        "epoch": "ep_a",
        "seq": seq,
        "hash": f"{seq:064x}",
        "branch": "f" * 64,
        "meter": CALLS,
        "units": units,
        "unsettled": 0,
        "service_at": int(day * DAY),
        "acceptance": 1,
    }
    return Record(**{**values, **changed})


def run(day: float, *, number: int = 1, acceptance_max: int = 10**9) -> Run:
    return Run(number=number, cut_off=int(day * DAY), acceptance_max=acceptance_max)


def bill(
    given: Terms, records: Sequence[Record], runs: Sequence[Run], tokens: Sequence[TokenSpan] = ()
) -> list[Bill]:
    """Bill every run in turn, each building on the lines of those before it."""
    calendar = Calendar(given.periods, given.ends_at)
    lines: list[Line] = []
    bills = []
    for place in range(len(runs)):
        now = runs[place]
        opened = [period for period in given.periods if period.start_at <= now.cut_off]
        usage = gather(calendar, now, records, tokens)
        terms_now = Terms(
            license_id=given.license_id, ends_at=given.ends_at, versions=given.versions, periods=tuple(opened)
        )
        made = invoices.bill(terms_now, usage, billed_before(lines), runs[: place + 1])
        lines += made.lines
        bills.append(made)
    return bills


def amounts(made: Bill) -> dict[str, int]:
    """The lines of a bill, as charge@day → minor units."""
    return {f"{line.key.charge}@{line.key.start_at // DAY}": line.amount_minor for line in made.lines}


def sums(bills: Iterable[Bill]) -> dict[Key, int]:
    """All that was billed on each key; keys that came to nothing are left out."""
    found: dict[Key, int] = {}
    for made in bills:
        for line in made.lines:
            found[line.key] = found.get(line.key, 0) + line.amount_minor
    return {key: amount for key, amount in found.items() if amount}
