"""Conservation of what is billed: every accepted unit is in one place, and the places add up (BILLING §5).

    accepted = invoiced (current quantity per key) + pending + waived + excluded + unpriced

What was accepted is added up from the records themselves; the places from what billing makes of them. Units that
are unsettled or quarantined are outside of all of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields

import sqlalchemy as sa

from licensing_server.billing import computing, pending, run_store, sums
from licensing_server.customers import service as customers
from licensing_server.customers import store as customer_store
from licensing_server.database import Connection, pieces, total
from licensing_server.pages import Document
from licensing_server.reconciliation.service import BROKEN
from licensing_server.server import Server
from licensing_server.usage.store import standing, usage_records
from meterkit import invoices
from meterkit.attribution import Run
from meterkit.licenses import Meter
from meterkit.lines import Billed, Key
from meterkit.plans import UsageCharge
from meterkit.terms import Terms

Owned = tuple[str, Meter]  # license and meter


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the units of one license and meter are.

    `pending` ones are to be billed by a later invoice, below zero where too many were; those of them that wait
    because a line is disputed are `disputed`. `excluded` ones a named decision took out, or another branch told of
    before. No charge asks for `unpriced` ones.
    """

    accepted: int = 0
    invoiced: int = 0
    pending: int = 0
    disputed: int = 0
    waived: int = 0
    excluded: int = 0
    unpriced: int = 0

    def plus(self, **added: int) -> "Places":
        """These, and some more."""
        both = {each.name: getattr(self, each.name) + added.get(each.name, 0) for each in fields(self)}
        return Places(**both)

    @property
    def holds(self) -> bool:
        """Whether every accepted unit is in one place."""
        return self.accepted == self.invoiced + self.pending + self.waived + self.excluded + self.unpriced


def show(server: Server, customer: str | None = None) -> Document:
    """Show where all accepted units are, meter by meter, as known now; of one customer if named.

    Raises:
        ServiceError: `not_found` for a customer.
    """
    with pending.next_run(server, customer) as (connection, run):
        asked = [] if customer is None else [customers.find(connection, customer).id]
        found: dict[str, dict[Owned, Places]] = {}
        for portion in run_store.portions(connection, asked or run_store.customers_in(connection, "all")):
            found |= _places(connection, portion, run)
        known_at = server.clock()
    items = [
        {"customer": owner, "license": license_id, "model": model, "unit": unit, **asdict(own), "holds": own.holds}
        for owner, places in sorted(found.items())
        for (license_id, (model, unit)), own in sorted(places.items())
    ]
    holds = all(item["holds"] for item in items)
    return {"known_at": known_at, "holds": holds, "code": None if holds else BROKEN, "items": items}


def _places(connection: Connection, portion: list[str], run: Run) -> dict[str, dict[Owned, Places]]:
    """Where the units of some customers are."""
    found: dict[str, dict[Owned, Places]] = {}
    for each in computing.read_all(connection, customer_store.find_all(connection, portion), run):
        disputed = {line.key: line.quantity - line.quantity_before for line in each.pending()}
        own = found.setdefault(each.id, {})
        for held in each.licenses:
            metered = invoices.metered(held.terms, held.usage, run)
            for meter, added in _of_license(held.terms, metered, held.billed, disputed):
                name = (held.terms.license_id, meter)
                own[name] = own.get(name, Places()).plus(**added)
        for name, accepted in _accepted(connection, [terms.license_id for terms in each.terms], run):
            own[name] = own.get(name, Places()).plus(accepted=accepted)
    return found


def _of_license(
    terms: Terms,
    metered: Iterable[invoices.Metered],
    billed: Mapping[Key, Billed],
    disputed: Mapping[Key, int],
) -> Iterator[tuple[Meter, dict[str, int]]]:
    """Where what was counted is, period by period; then what was billed on keys that hold nothing any more."""
    known = set()
    for each in metered:
        excluded = each.found.dismissed + each.found.repeated
        if each.key is None:
            yield each.meter, {"unpriced": each.found.units + each.found.late, "excluded": excluded}
            continue
        known.add(each.key)
        before = billed.get(each.key, Billed()).quantity
        yield (
            each.meter,
            {
                "invoiced": before,
                "pending": each.quantity - before,
                "disputed": disputed.get(each.key, 0),
                "waived": each.waived,
                "excluded": excluded,
            },
        )
    for key in billed.keys() - known:
        meter = _meter_of(terms, key)
        if meter is not None and key.kind == "measured":
            before = billed[key].quantity
            yield meter, {"invoiced": before, "pending": -before, "disputed": disputed.get(key, 0)}


def _meter_of(terms: Terms, key: Key) -> Meter | None:
    """The meter that a key's charge asks for."""
    name = (key.plan_id, key.version)
    charges = (each.plan.charges for each in terms.versions if (each.plan_id, each.number) == name)
    charge = next((charge for charge in next(charges, ()) if charge.id == key.charge), None)
    return charge.meter if isinstance(charge, UsageCharge) else None


def _accepted(connection: Connection, license_ids: list[str], run: Run) -> Iterator[tuple[Owned, int]]:
    """What was accepted and is to be billed or not, added up from the records."""
    record = usage_records.c
    held = standing(record, run.number)
    counts = sa.case((held.counted, record.units), (held.dismissed, record.units + record.unsettled), else_=0)
    place = (record.license, record.model, record.unit)
    for some in pieces(license_ids):
        chosen = sa.select(*place, total(counts)).where(record.license.in_(some), sums.known(run)).group_by(*place)
        for license_id, model, unit, units in connection.execute(chosen):
            yield (license_id, (model, unit)), int(units)
