"""A fleet and its invoices, billed by the real server."""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from fleet import MODEL, FakeDevice, Fleet

from licensing_server.billing import chains, service, sums
from licensing_server.billing import terms as customer_terms
from licensing_server.catalog import service as catalog
from licensing_server.catalog.store import plan_versions
from licensing_server.customers import service as customers
from licensing_server.customers.store import customers as customer_table
from licensing_server.database import write
from licensing_server.devices.store import devices as device_table
from licensing_server.devices.token_store import tokens
from licensing_server.licenses.store import licenses
from licensing_server.pages import Page
from licensing_server.usage import rollups
from licensing_server.usage.store import usage_records
from meterkit import audit, evidence
from meterkit.attribution import Calendar, Measured, Run, Slot, TokenSpan, Usage, gather
from meterkit.licenses import Meter
from meterkit.plans import Charge, UsageCharge
from meterkit.terms import Terms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BERLIN = ZoneInfo("Europe/Berlin")
DAY = 86_400
PLAIN_CLOSE = '"v":1'
SPOILED_CLOSE = '"v":1,"close":{"days":1,"policy":"some_day"}'


def counting_no_devices(terms: Terms) -> Terms:
    """The same terms without what is charged per device."""
    versions = (
        replace(version, plan=replace(version.plan, charges=tuple(filter(is_measured, version.plan.charges))))
        for version in terms.versions
    )
    return replace(terms, versions=tuple(versions))


def is_measured(charge: Charge) -> bool:
    """Whether a charge is for usage."""
    return isinstance(charge, UsageCharge)


def uncited(usage: Usage) -> dict[tuple[Slot, Meter], Measured]:
    """What was measured, without the records that say so."""
    return {name: replace(held, cited=()) for name, held in usage.measured.items()}


def at(text: str, zone: ZoneInfo = BERLIN) -> int:
    """An instant by the customer's own clock."""
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


JANUARY, FEBRUARY, MARCH = at("2026-01-01"), at("2026-02-01"), at("2026-03-01")


@dataclass
class Biller(Fleet):
    """One server with a customer in Berlin, and the means to bill it."""

    @classmethod
    def start(cls, path: Path, **named: Any) -> Biller:
        return super().start(path, **named)  # type: ignore[return-value]  # cls is this class

    def reopen(self) -> None:
        """Open the server's directory anew, as another process would."""
        self.close()
        self.server = self.open(self.settings, clock=self.clock, random=self.random)

    # -- what is sold

    def plan_body(self, *charges: dict[str, Any], **changed: Any) -> dict[str, Any]:
        return {"v": 1, "currency": "EUR", "interval": "month", "charges": list(charges), **changed}

    def plan_of(self, *charges: dict[str, Any], **changed: Any) -> str:
        """Make a plan; give its id."""
        name = f"plan-{self.random(8).hex()}"
        body = self.plan_body(*charges, **changed)
        return str(catalog.create_plan(self.server, name=name, body=body)["id"])

    def calls(self, unit_amount: str) -> dict[str, Any]:
        return self.calls_at({"model": "per_unit", "unit_amount": unit_amount})

    def calls_at(self, price: dict[str, Any]) -> dict[str, Any]:
        return {"id": "calls", "type": "usage", "meter": {"model": MODEL, "unit": "call"}, "price": price}

    def fee(self, amount: str, *, due: str, per: str = "license") -> dict[str, Any]:
        model = {"model": "flat", "amount": amount}
        if per == "device":
            model = {"model": "per_unit", "unit_amount": amount}
        return {"id": "fee", "type": "recurring", "per": per, "due": due, "from_period": 0, "price": model}

    def add_customer(self, time_zone: str = "Europe/Berlin") -> str:
        return str(customers.create(self.server, name="Another", time_zone=time_zone)["id"])

    def spoil_plan(self, customer: str | None = None) -> None:
        """Let a customer's plan ask for what this server does not know, as a later one may allow."""
        held = sa.select(licenses.c.plan).where(licenses.c.customer == (customer or self.customer))
        spoiled = sa.func.replace(plan_versions.c.body, PLAIN_CLOSE, SPOILED_CLOSE)
        with write(self.server) as connection:
            this = plan_versions.c.plan.in_(held)
            connection.execute(sa.update(plan_versions).where(this).values(body=spoiled))

    def mend_plans(self) -> None:
        """Undo it."""
        plain = sa.func.replace(plan_versions.c.body, SPOILED_CLOSE, PLAIN_CLOSE)
        with write(self.server) as connection:
            connection.execute(sa.update(plan_versions).values(body=plain))

    def move_customer(self, time_zone: str) -> None:
        """Let the customer live by another clock from now on."""
        with write(self.server) as connection:
            this = customer_table.c.id == self.customer
            connection.execute(sa.update(customer_table).where(this).values(time_zone=time_zone))

    # -- what is used

    def use(self, device: FakeDevice, units: int, instant: int, **changed: Any) -> None:
        """Use units at an instant, and report them a little later, or now if that is past."""
        device.use(units, at=instant, **changed)
        self.clock.now = max(self.clock.now, instant + 3_600)
        device.sync()

    def report(self, device: FakeDevice, units: int, used_at: int, sent_at: int) -> None:
        """Use units at one instant, and report them at another."""
        device.use(units, at=used_at)
        self.clock.now = max(self.clock.now, sent_at)
        device.sync()

    # -- what is billed

    def bill_at(self, instant: int) -> dict[str, Any] | None:
        """Bill up to an instant, finalize what is drafted, and have it audited."""
        self.clock.now = max(self.clock.now, instant)
        for draft in self.run(cut_off=instant):
            final = self.finalize(draft["id"])
            assert self.audit(draft["id"]).findings == ()
            return final
        return None

    def run(self, **named: Any) -> list[dict[str, Any]]:
        """Bill up to now; give the drafts."""
        made = service.run(self.server, **named)
        assert made["failed"] == []
        assert made["state"] == "done"
        return [service.show(self.server, invoice_id) for invoice_id in made["invoices"]]

    def drafts(self) -> list[dict[str, Any]]:
        items = service.page(self.server, Page(limit=200))["items"]
        return [service.show(self.server, item["id"]) for item in items if item["state"] == "draft"]

    def finalize(self, invoice_id: str) -> dict[str, Any]:
        return service.finalize(self.server, invoice_id)

    def audit(self, invoice_id: str) -> audit.AuditResult:
        """Audit an invoice from its file, knowing nothing but the vendor's fingerprint."""
        _, data = service.show_evidence(self.server, invoice_id)
        return audit.recompute(evidence.read_zip(data), {self.made.fingerprint})

    def forget_repeats(self) -> None:
        """Count twice what two branches tell of, as a vendor would who knows no shame."""
        with write(self.server) as connection:
            connection.execute(sa.update(usage_records).values(repeated=0))
            ledgers = sa.select(usage_records.c.device, usage_records.c.epoch).distinct()
            for device, epoch in connection.execute(ledgers).all():
                rollups.renew(connection, device, [epoch])

    # -- what the core says

    def compare_sums(self, run: Run) -> int:
        """Let the database and the core add up one customer's usage at a run's limits; give the units."""
        with self._undone() as connection:
            customer = customers.find(connection, self.customer)
            known = customer_terms.read(connection, customer.id, customer.zone, run)
            found = sums.read(connection, run, known, cited=True)
            together = sums.read(connection, run, [counting_no_devices(each) for each in known], cited=False)
            devices = connection.execute(sa.select(device_table.c.id)).scalars()
            records = [record for device in devices for record in chains.records(connection, device, run)]
            spans = [
                TokenSpan(license_id=row.license, device=row.device, iat=row.iat, nbf=row.nbf, exp=row.exp)
                for row in connection.execute(sa.select(tokens))
            ]
        units = 0
        for each in known:
            own = [record for record in records if record.license_id == each.license_id]
            theirs = [span for span in spans if span.license_id == each.license_id]
            expected = gather(Calendar(each.periods, each.ends_at), run, own, theirs)
            assert found[each.license_id] == expected
            assert together[each.license_id].measured == uncited(expected)
            units += sum(held.units for held in expected.measured.values())
        return units

    @contextmanager
    def _undone(self) -> Iterator[sa.Connection]:
        with self.server.engine.connect() as connection, connection.begin() as transaction:
            yield connection
            transaction.rollback()
