"""A year of a small fleet in which everything goes wrong, billed month by month by the real server."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from billing_fleet import Biller
from fleet import MODEL, PRODUCT, FakeDevice

from licensing_server import renewing
from licensing_server.accounts import service as accounts
from licensing_server.billing import changing, correcting, disputing, service, settling
from licensing_server.catalog import service as catalog
from licensing_server.customers import service as customers
from licensing_server.database import read
from licensing_server.devices import decisions
from licensing_server.licenses import periods
from licensing_server.licenses import service as licenses
from licensing_server.usage import deciding
from meterkit.keys import SigningKey

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400
START = int(dt.datetime(2028, 1, 1, tzinfo=dt.UTC).timestamp())  # a leap year
MONTHS = 12
LADDER = [{"up_to": 500, "unit_amount": "0.10", "flat_amount": "5"}, {"up_to": None, "unit_amount": "0.04"}]
FALLING = [{"up_to": 900, "unit_amount": "0.05"}, {"up_to": None, "unit_amount": "0.02"}]


def midnight(year: int, month: int, zone: str = "UTC") -> int:
    return int(dt.datetime(year, month, 1, tzinfo=ZoneInfo(zone)).timestamp())


def usage(price: dict[str, Any], name: str = "calls") -> dict[str, Any]:
    return {"id": name, "type": "usage", "meter": {"model": MODEL, "unit": "call"}, "price": price}


def fee(amount: str, **changed: Any) -> dict[str, Any]:
    price = {"model": "flat", "amount": amount}
    return {"id": "fee", "type": "recurring", "per": "license", "due": "advance", "price": price, **changed}


FLEET = {"id": "fleet", "type": "recurring", "per": "device", "due": "arrears"}
PLANS: dict[str, dict[str, Any]] = {
    "ladder": {
        "currency": "EUR",
        "charges": [
            usage({"model": "graduated", "tiers": LADDER, "included_units": 20}),
            fee("49"),
            {**FLEET, "price": {"model": "per_unit", "unit_amount": "2.50"}},
            {"id": "least", "type": "commitment", "amount": "120", "over": ["calls", "fee"]},
        ],
    },
    "carried": {
        "currency": "JPY",
        "late": {"policy": "carry_over"},
        "charges": [usage({"model": "package", "size": 100, "amount": "330", "maximum_amount": "9000"})],
    },
    "waived": {
        "currency": "USD",
        "late": {"policy": "waive", "days": 20},
        "charges": [usage({"model": "volume", "tiers": FALLING}), fee("10", due="arrears", from_period=1)],
    },
    "covered": {
        "currency": "KWD",
        "interim": True,
        "close": {"policy": "coverage", "percent": 75, "days": 15},
        "charges": [usage({"model": "per_unit", "unit_amount": "0.0005", "minimum_amount": "0.250"})],
    },
    "estimated": {
        "currency": "GBP",
        "close": {"policy": "estimate", "percent": 90, "days": 3},
        "charges": [
            usage({"model": "graduated", "tiers": LADDER}),
            {"id": "least", "type": "commitment", "amount": "60", "over": ["calls"]},
        ],
    },
    "falling": {"currency": "EUR", "charges": [usage({"model": "volume", "tiers": FALLING})]},
}
CUSTOMERS = {  # on both sides of the date line, with and without a summer time
    "ladder": "Europe/Berlin",
    "carried": "Pacific/Kiritimati",
    "waived": "America/New_York",
    "covered": "Pacific/Pago_Pago",
    "estimated": "America/Santiago",
    "falling": "Australia/Lord_Howe",
}


@dataclass
class Unit:
    """One device of the fleet, and how it lives."""

    name: str
    device: FakeDevice
    sync_days: int
    asleep_until: int = 0
    twin: FakeDevice | None = None


@dataclass
class Year:
    """The server, its customers and their devices, as a year goes by. One seed is one year."""

    biller: Biller
    chance: random.Random
    customers: dict[str, str] = field(default_factory=dict)
    licenses: dict[str, str] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)
    mishaps: Counter[str] = field(default_factory=Counter)
    all_reported_at: int = 0

    @classmethod
    def begin(cls, path: Path, seed: int, **named: Any) -> Year:
        year = cls(biller=Biller.start(path, now=START, **named), chance=random.Random(seed))  # noqa: S311
        for name, zone in CUSTOMERS.items():
            made = customers.create(year.server, name=name.title(), time_zone=zone)
            year.customers[name] = str(made["id"])
            year.license(name)
        for name in ("ladder", "waived", "falling"):
            accounts.set_tax_rate(
                year.server, name="VAT", percent="19", starts_at=0, customer=year.customers[name]
            )
        return year

    @property
    def server(self) -> Any:
        return self.biller.server

    @property
    def now(self) -> int:
        return self.biller.clock.now

    def plans(self, name: str, **changed: Any) -> str:
        """Make a customer's plan, its usage charges changed as named."""
        body = {"v": 1, "interval": "month", **PLANS[name]}
        body["charges"] = [{**each, **(changed if each["type"] == "usage" else {})} for each in body["charges"]]
        return str(
            catalog.create_plan(self.server, name=f"{name}-{len(self.licenses)}-{self.now}", body=body)["id"]
        )

    def license(self, name: str, devices: int = 3) -> None:
        """Grant a customer a license by its own plan, and give it devices that report by habits of their own."""
        plan = self.plans(name)
        license_id = self.biller.grant(customer=self.customers[name], plan=plan, devices_max=devices)
        self.licenses[name] = license_id
        for sync_days in self.chance.sample([1, 5, 9, 30, 45], devices):
            made = self.biller.device(license_id)
            self.units.append(Unit(name=name, device=made, sync_days=sync_days))

    # -- a day

    def day(self) -> None:
        """Everybody uses something, some report, and now and then something goes wrong."""
        for unit in self.units:
            for device in (unit.device, *([unit.twin] if unit.twin else [])):
                self._use(device)
            if self.now >= unit.asleep_until and self.chance.random() < 1 / unit.sync_days:
                self._sync(unit)
            if self.chance.random() < 1 / 150:
                self._go_wrong(unit)
        self.biller.clock.now += DAY

    def _use(self, device: FakeDevice) -> None:
        hour = self.chance.randrange(24)
        unsettled = self.chance.randrange(50) if self.chance.random() < 0.02 else 0
        if self.chance.random() < 0.8:
            device.use(self.chance.randrange(1, 40), at=self.now + hour * 3_600, unsettled=unsettled)

    def _sync(self, unit: Unit) -> None:
        """Report at the day's end; a reply is lost now and then."""
        self.biller.clock.now += DAY - 1
        for device in (unit.device, *([unit.twin] if unit.twin else [])):
            if self.chance.random() < 0.1:
                self.biller.exchange(device.batch())
                self.mishaps["reply lost"] += 1
            else:
                device.sync()
                installed = [entry.claims["serial"] for entry in device.entries if entry.claims["kind"] == "token"]
                if self.chance.random() < 0.5 and device.token.serial > max(installed, default=0):
                    device.install()
        self.biller.clock.now -= DAY - 1

    def _go_wrong(self, unit: Unit) -> None:
        mishap = self.chance.choice(["asleep", "clone", "reset", "lost", "impossible"])
        self.mishaps[mishap] += 1
        if mishap == "asleep":
            unit.asleep_until = self.now + self.chance.randrange(30, 90) * DAY
        elif mishap == "clone" and unit.twin is None:
            unit.twin = unit.device.clone()
        elif mishap == "reset" and unit.device.receipt is not None:
            unit.device.sync()
            unit.device.reset()
            unit.device.install()
        elif mishap == "lost" and self._state(unit) == "active":
            decisions.declare(self.server, unit.device.id, state="lost", why="nowhere to be found", who="year")
        elif mishap == "impossible":
            unit.device.use(10**9 + 1)

    def _state(self, unit: Unit) -> str:
        from licensing_server.devices import service as devices  # noqa: PLC0415

        return str(devices.show(self.server, unit.device.id)["state"])

    # -- a month

    def month(self, number: int) -> None:
        """Bill what is closed, finalize it, and do what a billing team does in a year."""
        made = service.run(self.server)
        assert made["failed"] == []
        for invoice_id in made["invoices"]:
            self.finals.append(self.biller.finalize(invoice_id))
        act = getattr(self, f"_in_{number}", None)
        if act is not None:
            act()
        self._settle()

    def _newest(self, name: str, kind: str = "invoice") -> dict[str, Any] | None:
        own = [
            service.show(self.server, final["id"])
            for final in self.finals
            if final["customer"] == self.customers[name]
        ]
        open_ones = [each for each in own if each["kind"] == kind and each["state"] == "finalized"]
        return open_ones[-1] if open_ones else None

    def _in_1(self) -> None:
        for name, currency, amount in (("ladder", "EUR", "300"), ("waived", "USD", "40")):
            ends = midnight(2028, 8)
            accounts.add_credit(
                self.server, self.customers[name], currency=currency, amount=amount, starts_at=0, expires_at=ends
            )

    def _in_3(self) -> None:
        invoice = self._newest("ladder")
        if invoice is not None:
            settling.void(self.server, invoice["id"], note="wrong address")
            self.mishaps["void"] += 1

    def _in_4(self) -> None:
        for exception in self.biller.exceptions():
            if exception["kind"] == "implausible_rate" and exception["state"] == "open":
                how = deciding.Resolution(how="a broken clock", outcome="keep")
                deciding.resolve(self.server, exception["id"], how, who="year")
                self.mishaps["kept aside"] += 1
                return

    def _in_5(self) -> None:
        for name, starts in (("ladder", "next_period"), ("falling", "now")):
            changing.change_plan(self.server, self.licenses[name], plan=self.plans(name), starts=starts)
        self.mishaps["plan changed"] += 1

    def _in_6(self) -> None:
        accounts.set_tax_rate(self.server, name="VAT", percent="16", starts_at=midnight(2028, 7))
        invoice = self._newest("falling")
        if invoice is not None:
            self._disputed = disputing.dispute(self.server, invoice["id"], line=1, note="not ours")["id"]
            self.mishaps["dispute"] += 1

    def _in_8(self) -> None:
        if self.mishaps["dispute"]:
            disputing.resolve(
                self.server, self._disputed, outcome="conceded", amount="1.23", note="for the trouble"
            )
        licenses.change_state(self.server, self.licenses["carried"], "ended")
        self.license("carried", devices=2)
        self.mishaps["license ended"] += 1

    def _in_9(self) -> None:
        for exception in self.biller.exceptions("fork"):
            if exception["state"] == "open":
                branches = deciding.show(self.server, exception["id"])["branches"]
                how = deciding.Resolution(
                    how="a stolen image", outcome="dismiss_branch", branch=branches[-1]["head"]
                )
                deciding.resolve(self.server, exception["id"], how, who="year")
                self.mishaps["branch dismissed"] += 1
                return

    def _in_10(self) -> None:
        """From July or September on some were billed by the wrong prices; for one it was right from August on."""
        flat = {"model": "per_unit", "unit_amount": "0.05"}
        for name, month in (("ladder", 7), ("waived", 7), ("covered", 9)):
            self._correct(name, month, self.plans(name, price=flat))
        self._correct("waived", 8, licenses.show(self.server, self.licenses["waived"])["versions"][0]["plan"])

    def _correct(self, name: str, month: int, plan: str) -> None:
        starts_at = self._period_start(name, midnight(2028, month))
        named = {"plan": plan, "starts_at": starts_at, "note": "the wrong prices"}
        correcting.correct_plan(self.server, self.licenses[name], **named)
        self.mishaps["plan corrected"] += 1

    def _period_start(self, name: str, at: int) -> int:
        """Where the period starts that holds an instant."""
        with read(self.server) as connection:
            stored = periods.read(connection, [self.licenses[name]])[self.licenses[name]]
        return max(bounds.start_at for _, bounds in stored if bounds.start_at <= at)

    def _in_11(self) -> None:
        """The root signs the next year's keyring; what was signed before stays good."""
        renewing.renew(self.server, [SigningKey.from_text(self.biller.made.root_key.read_text())])
        self.biller.reopen()
        self.mishaps["keyring renewed"] += 1

    def _settle(self) -> None:
        """Most invoices are paid; a balance is paid back now and then."""
        for final in self.finals:
            found = settling.show_payments(self.server, final["id"])
            if found["open_minor"] and self.chance.random() < 0.5:
                settling.pay(self.server, final["id"], reference=f"SEPA {final['number']}")
                self.mishaps["paid"] += 1
        for name, customer in self.customers.items():
            for item in accounts.show(self.server, customer)["items"]:
                if item["balance_minor"] and name == "falling" and self.chance.random() < 0.5:
                    settling.refund(
                        self.server, customer, currency=item["currency"], amount=item["balance"], reference="back"
                    )
                    self.mishaps["refunded"] += 1

    def live(self, months: int = MONTHS) -> None:
        """Live through the months, each billed on its successor's fourth day, and two more for what is late."""
        for number in range(1, months + 3):
            ends = midnight(2028 + number // 12, number % 12 + 1) + 4 * DAY
            while self.now < ends:
                self.day()
            self.month(number)
        for unit in self.units:
            unit.asleep_until = 0
            for device in (unit.device, *([unit.twin] if unit.twin else [])):
                device.sync()
        self.all_reported_at = self.now
        self.biller.clock.now += 40 * DAY
        self.month(months + 3)


__all__ = ["PRODUCT", "Year"]
