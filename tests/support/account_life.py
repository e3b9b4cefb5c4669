"""A customer's account on a real server, and what must be so of it after whatever was done to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from account_ways import FALLING
from billing_fleet import DAY, Biller

from licensing_server.accounts import journal
from licensing_server.accounts import store as accounts
from licensing_server.billing import account_store, conserving, service
from licensing_server.billing.store import invoice_lines, invoices
from licensing_server.database import read
from meterkit.canonical import from_bytes
from meterkit.errors import InputError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable

MONTH = 31 * DAY


class Life:
    """One customer with one license, billed, and all that became final of it."""

    def __init__(self, biller: Biller, currency: str) -> None:
        self.biller, self.currency = biller, currency
        charges = biller.calls_at(FALLING), biller.fee("7", due="arrears")
        self.plans = [biller.plan_of(*charges, currency=currency)]
        self.plans.append(biller.plan_of(charges[0], biller.fee("11", due="arrears"), currency=currency))
        self.license = biller.grant(plan=self.plans[0])
        self.device = biller.device(self.license)
        self.frozen: dict[str, tuple[bytes, bytes]] = {}
        self.refused: dict[str, int] = {}
        self.done: dict[str, int] = {}

    @property
    def server(self) -> Any:
        return self.biller.server

    def ask(self, act: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Ask for something that the rules may refuse; only in the words that they have for it."""
        try:
            made = act(self.server, *args, **named)
        except (ServiceError, InputError) as error:
            assert error.code in ("state_conflict", "not_found", "malformed_members"), error  # noqa: PT017
            self.refused[act.__name__] = self.refused.get(act.__name__, 0) + 1
            return None
        self.done[act.__name__] = self.done.get(act.__name__, 0) + 1
        return made

    def rows(self, table: sa.Table, *where: Any) -> list[Any]:
        with read(self.server) as connection:
            return list(connection.execute(sa.select(table).where(*where)))

    def final(self) -> list[Any]:
        """The rows of final documents, in the order of their runs."""
        return sorted(self.rows(invoices, invoices.c.state != "draft"), key=lambda row: row.run)

    def run(self) -> None:
        """Bill up to now, which is never the same now twice."""
        self.biller.clock.now += 60
        made = service.run(self.server)
        assert (made["failed"], made["state"]) == ([], "done")

    def finalize(self) -> None:
        for draft in self.biller.drafts():
            if self.ask(service.finalize, draft["id"]) is not None:
                assert self.biller.audit(draft["id"]).findings == ()

    def open_with_a_credit_note(self) -> None:
        """A month of a hundred calls, and one more that came late and halved the price of all."""
        self.biller.use(self.device, 100, self.biller.clock.now)
        self.biller.clock.now += MONTH
        for _ in range(2):
            self.run()
            self.finalize()
            self.biller.use(self.device, 1, self.biller.clock.now - MONTH)
        self.check()

    # -- what must be so, always

    def check(self) -> None:
        final = self.final()
        self._check_frozen(final)
        for series, kind in (("INV", "invoice"), ("CN", "credit_note")):
            numbers = sorted(row.number for row in final if row.kind == kind)
            assert numbers == [f"{series}-{place:06d}" for place in range(1, len(numbers) + 1)]
        standing = [row for row in final if row.state != "void"]
        self._check_journal(standing)
        self._check_credits(standing)
        self._check_lines(standing)
        assert conserving.show(self.server)["holds"]

    def _check_frozen(self, final: list[Any]) -> None:
        found = {row.id: (row.body, row.evidence) for row in final}
        assert {name: found.get(name) for name in self.frozen} == self.frozen
        self.frozen = found

    def _check_journal(self, standing: list[Any]) -> None:
        """Each transaction sums to zero, and the balances are those that the documents come to."""
        sums: dict[int, int] = {}
        for row in self.rows(journal.journal):
            sums[row.number] = sums.get(row.number, 0) + row.amount_minor
            assert row.amount_minor
        assert set(sums.values()) <= {0}
        assert sorted(sums) == list(range(1, len(sums) + 1))
        with read(self.server) as connection:
            found = journal.balances(connection, self.biller.customer).get(self.currency, {})
        documents = [from_bytes(row.body, bytes_max=10**7) for row in standing]
        lines = sum(line["amount_minor"] for each in documents for line in each["lines"])
        taxes = sum(tax["tax_minor"] for each in documents for tax in each.get("taxes", ()))
        used = sum(use["amount_minor"] for each in documents for use in each.get("credits", ()))
        taken = sum(each.get("balance_minor", 0) for each in documents)
        paid = sum(row.amount_minor for row in self.rows(account_store.payments))
        back = sum(row.amount_minor for row in self.rows(accounts.refunds))
        bought = sum(row.amount_minor for row in self.rows(accounts.credits))
        broken = sum(self.broken().values())
        expected = {
            "receivable": lines + taxes - used - taken - paid,
            "revenue": -lines,
            "tax": -taxes,
            "prepaid": used - bought + broken,
            "breakage": -broken,
            "balance": taken + back,
            "cash": paid + bought - back,
        }
        assert {name: found.get(name, 0) for name in expected} == expected
        assert found.get("balance", 0) <= 0
        assert found.get("prepaid", 0) <= 0
        assert found.get("receivable", 0) >= 0

    def _check_credits(self, standing: list[Any]) -> None:
        used: dict[str, int] = {}
        for row in standing:
            for use in from_bytes(row.body, bytes_max=10**7).get("credits", ()):
                used[use["credit"]] = used.get(use["credit"], 0) + use["amount_minor"]
        amounts = {row.id: row.amount_minor for row in self.rows(accounts.credits)}
        assert all(0 <= minor <= amounts[name] for name, minor in used.items()), used
        broken = self.broken()
        assert all(0 < minor <= amounts[name] - used.get(name, 0) for name, minor in broken.items()), broken

    def broken(self) -> dict[str, int]:
        """What of each credit is booked as breakage."""
        found: dict[str, int] = {}
        for row in self.rows(journal.journal):
            if (row.kind, row.account) == (journal.BROKEN, journal.PREPAID):
                found[row.subject] = found.get(row.subject, 0) + row.amount_minor
        return found

    def _check_lines(self, standing: list[Any]) -> None:
        """What stands on each key is what was owed for it when it was billed last."""
        owed: dict[tuple[Any, ...], int] = {}
        sums: dict[tuple[Any, ...], int] = {}
        names = ("charge", "service_start_at", "service_end_at", "plan", "version", "kind")
        gone = {row.run for row in self.final() if row.state == "void"}
        paid = {row.invoice for row in self.rows(account_store.payments)}
        for row in standing:
            assert row.due_minor >= 0
            assert row.state == "finalized" or row.id in paid or not row.due_minor
            assert (row.kind, row.state, row.due_minor) != ("invoice", "finalized", 0)
            for line in from_bytes(row.body, bytes_max=10**7)["lines"]:
                key = tuple(line[name] for name in names)
                sums[key] = sums.get(key, 0) + line["amount_minor"]
                owed[key] = line["owed_minor"]
        if not gone:
            assert sums == owed

    def settle_all(self) -> None:
        """Bill whatever is still open, and see that it comes to what is owed for what was used."""
        self.biller.clock.now += 2 * MONTH
        self.run()
        self.finalize()
        self.check()
        self.run()
        assert self.biller.drafts() == []

    def billed(self, charge: str) -> int:
        """What stands billed on a charge, concessions included."""
        joined = sa.select(sa.func.coalesce(sa.func.sum(invoice_lines.c.amount_minor), 0)).join(
            invoices, invoices.c.id == invoice_lines.c.invoice
        )
        with read(self.server) as connection:
            chosen = joined.where(invoice_lines.c.charge == charge, invoices.c.state != "void")
            return int(connection.execute(chosen).scalar_one())
