"""How a simulated vendor bills: at any time, on a server that may die of it; all of it audited at the end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sim_device import CALLS, ITEMS
from sim_faults import Died, Faults, Plan
from sim_judging import must, same
from sim_model import Model

from licensing_server.billing import service
from licensing_server.billing.store import invoice_lines
from licensing_server.catalog import service as catalog
from licensing_server.database import read
from licensing_server.pages import Page
from meterkit import audit, evidence

if TYPE_CHECKING:
    import random

    from fleet import Fleet

    from meterkit.licenses import Meter

_DAY_S = 86_400
_ALL_CLOSED_S = 75 * _DAY_S
_RISING = [{"up_to": 100, "unit_amount": "0.05"}, {"up_to": None, "unit_amount": "0.003", "flat_amount": "2"}]
_FALLING = [{"up_to": 500, "unit_amount": "0.011"}, {"up_to": None, "unit_amount": "0.004"}]
_CALLS_COST: list[dict[str, Any]] = [
    {"model": "per_unit", "unit_amount": "0.003"},
    {"model": "graduated", "tiers": _RISING, "included_units": 7},
    {"model": "volume", "tiers": _FALLING},
    {"model": "package", "size": 70, "amount": "1.99", "minimum_amount": "3"},
]
_ITEMS_COST = {"model": "per_unit", "unit_amount": "0.0007"}
_CONTRACTS: list[dict[str, Any]] = [
    {},
    {"interim": True},
    {"close": {"policy": "grace", "days": 5}},
    {"close": {"policy": "coverage", "percent": 60, "days": 9}},
    {"close": {"policy": "estimate", "percent": 60, "days": 1}},
    {"late": {"policy": "carry_over"}},
]
_FEES: list[list[dict[str, Any]]] = [
    [],
    [
        {
            "id": "fee",
            "type": "recurring",
            "per": "license",
            "due": "advance",
            "price": {"model": "flat", "amount": "9"},
        }
    ],
    [
        {
            "id": "fleet",
            "type": "recurring",
            "per": "device",
            "due": "arrears",
            "price": {"model": "per_unit", "unit_amount": "1.5"},
        }
    ],
    [{"id": "least", "type": "commitment", "amount": "25", "over": ["calls"]}],
]


class Books:
    """The vendor's billing. All chance comes from the seed."""

    def __init__(self, fleet: Fleet, model: Model, faults: Faults, chance: random.Random) -> None:
        self._fleet = fleet
        self._model = model
        self._faults = faults
        self._chance = chance
        self.documents = 0

    def plan(self) -> str:
        """Make a plan for a license to be sold by; give its id."""
        choose = self._chance.choice
        every = choose(["day", "month"])  # a world lasts for weeks
        charges = [
            _usage("calls", CALLS, choose(_CALLS_COST), every),
            _usage("items", ITEMS, _ITEMS_COST, every),
            *choose(_FEES),
        ]
        body = {"v": 1, "currency": "EUR", "interval": "month", "charges": charges, **choose(_CONTRACTS)}
        name = f"plan-{self._chance.randbytes(6).hex()}"
        return str(catalog.create_plan(self._fleet.server, name=name, body=body)["id"])

    def bill(self, plan: Plan) -> str:
        """Bill what is known now, under what befalls it; some drafts are left to the next run. Tells what came."""
        try:
            with self._faults.planned(plan):
                run = service.run(self._fleet.server)
                must(f"a run could not bill {run['failed']}", not run["failed"])
                for invoice in run["invoices"]:
                    if self._chance.random() < 0.8:
                        self._finalize(invoice)
        except Died:
            return "died"
        return f"{len(run['invoices'])} drafts"

    def _finalize(self, invoice: str) -> None:
        if service.show(self._fleet.server, invoice)["state"] == "draft":
            service.finalize(self._fleet.server, invoice)

    def close(self) -> None:
        """The end: every period closes and is billed, every document is audited, and every unit is on one."""
        self._fleet.clock.advance(_ALL_CLOSED_S)
        for invoice in service.run(self._fleet.server)["invoices"]:
            self._finalize(invoice)
        asked = Page(limit=200)
        found = service.page(self._fleet.server, asked)["items"]
        must("one page holds all documents", len(found) < asked.limit)
        for each in found:
            self._audit(each["id"])
        self._compare_units()

    def _audit(self, invoice: str) -> None:
        """Ask the document's evidence alone."""
        number, data = service.show_evidence(self._fleet.server, invoice)
        self.documents += 1
        result = audit.recompute(evidence.read_zip(data), {self._fleet.made.fingerprint})
        same(f"what an audit finds in {number}", result.findings, ())

    def _compare_units(self) -> None:
        """What was billed of each license and meter is what its devices used, all of it, once."""
        billed: Counter[tuple[str, str]] = Counter()
        line = invoice_lines.c
        summed = sa.select(line.license, line.charge, sa.func.sum(line.quantity_change)).where(
            line.kind == "measured"
        )
        with read(self._fleet.server) as connection:
            for license_id, charge, units in connection.execute(summed.group_by(line.license, line.charge)):
                billed[license_id, charge] = int(units)
        for license_id in self._model.licenses:
            totals, _, _ = self._model.accepted(license_id)
            for charge, meter in (("calls", CALLS), ("items", ITEMS)):
                used = totals[meter].units if meter in totals else 0
                same(f"billed {charge} of {license_id}", billed[license_id, charge], used)


def _usage(name: str, meter: Meter, price: dict[str, Any], interval: str) -> dict[str, Any]:
    model, unit = meter
    charged = {"meter": {"model": model, "unit": unit}, "price": price, "interval": interval}
    return {"id": name, "type": "usage", **charged}
