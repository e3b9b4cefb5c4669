"""Whatever is done to an account, in whatever order: the journal balances, documents audit, what is final stays.

`account_life` says what must hold after every step. `METERKIT_TEST_EXAMPLES` sets how many lives are played.
"""

import os
import shutil
import tempfile
from pathlib import Path

from account_life import Life
from billing_fleet import DAY, JANUARY, Biller
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from licensing_server.accounts import service as accounts
from licensing_server.billing import changing, dispute_store, disputing, service, settling
from licensing_server.database import write
from meterkit import money

EXAMPLES = os.environ.get("METERKIT_TEST_EXAMPLES")
MONTH = 31 * DAY
billed = lambda self: bool(self.life.frozen)  # noqa: E731 - a condition of rules
which = st.integers(0, 9)
minor = st.integers(1, 6_000)
seen: dict[str, int] = {}


class AccountMachine(RuleBasedStateMachine):
    """One customer, one device, one billing clerk."""

    first: Biller

    @initialize(currency=st.sampled_from(["EUR", "JPY", "KWD"]))
    def begin(self, currency):
        self.directory = Path(tempfile.mkdtemp())
        self.life = Life(self.first.copy(self.directory / "server", seed=5), currency)
        self.life.open_with_a_credit_note()

    @property
    def biller(self) -> Biller:
        return self.life.biller

    def text(self, minor: int) -> str:
        return money.to_text(minor, self.life.currency)

    def document(self, place: int) -> str | None:
        final = self.life.final()
        return final[place % len(final)].id if final else None

    # -- what is used and billed

    @rule(units=st.integers(1, 130), back=st.sampled_from([0, 0, 0, MONTH, 2 * MONTH]))
    def calls_are_made(self, units, back):
        self.biller.use(self.life.device, units, max(self.biller.clock.now - back, JANUARY))

    @precondition(
        lambda self: self.biller.clock.now < JANUARY + 8 * MONTH
    )  # the server's keys are good for a year
    @rule(units=st.integers(1, 130) | st.integers(60, 100))
    def a_month_is_billed(self, units):
        self.biller.use(self.life.device, units, max(self.biller.clock.now, JANUARY))
        self.biller.clock.now += 31 * DAY
        self.life.run()
        self.life.finalize()

    @precondition(billed)
    @rule(units=st.sampled_from([1, 41, 60]), back=st.sampled_from([1, 1, 2]))
    def calls_come_late(self, units, back):
        """Often so many that the month costs less than before."""
        self.biller.use(self.life.device, units, max(self.biller.clock.now - back * MONTH, JANUARY))
        self.life.run()
        self.life.finalize()

    @rule()
    def a_run_drafts(self):
        self.life.run()

    @rule()
    def a_run_dies(self):
        """Its limits are stored, and nobody is billed: whatever is decided from here on it does not know."""
        self.biller.clock.now += 60
        with write(self.biller.server) as connection:
            service._start(self.biller.server, connection, None, None, "test")

    @rule()
    def it_goes_on(self):
        service._finish_open(self.biller.server)

    @rule()
    def drafts_are_finalized(self):
        self.life.finalize()

    @rule(plan=st.integers(0, 1), starts=st.sampled_from(["next_period", "now"]))
    def the_plan_changes(self, plan, starts):
        self.life.ask(changing.change_plan, self.life.license, plan=self.life.plans[plan], starts=starts)

    # -- what a clerk does

    @precondition(billed)
    @rule(place=which, minor=st.sampled_from([None, None, 1, 50]))
    def somebody_pays(self, place, minor):
        amount = None if minor is None else self.text(minor)
        if document := self.document(place):
            self.life.ask(settling.pay, document, reference="SEPA", amount=amount)

    @precondition(billed)
    @rule(place=which)
    def a_document_is_void(self, place):
        if document := self.document(place):
            self.life.ask(settling.void, document, note="wrong")

    @precondition(billed)
    @rule(minor=minor)
    def money_is_paid_back(self, minor):
        named = {"currency": self.life.currency, "reference": "SEPA"}
        held = accounts.show(self.biller.server, self.biller.customer)["items"]
        balance = held[0]["balance_minor"] if held else 0
        amount = self.text(min(minor, balance) or minor)
        self.life.ask(settling.refund, self.biller.customer, amount=amount, **named)

    @precondition(billed)
    @rule(place=which, line=st.integers(1, 3))
    def a_line_is_disputed(self, place, line):
        if document := self.document(place):
            self.life.ask(disputing.dispute, document, line=line, note="not ours")

    @precondition(billed)
    @rule(place=which, minor=st.none() | minor)
    def a_dispute_ends(self, place, minor):
        held = self.life.rows(dispute_store.disputes)
        if held:
            ends = {"outcome": "stands"} if minor is None else {"outcome": "conceded", "amount": self.text(minor)}
            self.life.ask(disputing.resolve, held[place % len(held)].id, note="so", **ends)

    @precondition(billed)
    @rule(place=which, line=st.integers(1, 3), minor=minor)
    def something_is_let_off(self, place, line, minor):
        if document := self.document(place):
            self.life.ask(disputing.concede, document, line=line, amount=self.text(minor), note="so")

    @rule(
        minor=minor,
        priority=st.integers(0, 1),
        starts_at=st.sampled_from([0, JANUARY + MONTH]),
        expires_at=st.sampled_from([None, JANUARY + 2 * MONTH, JANUARY + 9 * MONTH]),
    )
    def somebody_pays_ahead(self, minor, **validity):
        named = {"currency": self.life.currency, "amount": self.text(minor), **validity}
        self.life.ask(accounts.add_credit, self.biller.customer, **named)

    @rule(percent=st.sampled_from(["19", "16", "8.1", "0"]), months=st.integers(0, 4))
    def the_tax_changes(self, percent, months):
        named = {"name": "VAT", "percent": percent, "starts_at": JANUARY + months * 30 * DAY}
        self.life.ask(accounts.set_tax_rate, customer=self.biller.customer, **named)

    # -- what must be so

    @invariant()
    def it_is_all_in_order(self):
        if hasattr(self, "life"):
            self.life.check()

    def teardown(self):
        if not hasattr(self, "life"):
            return
        try:
            for held in self.life.rows(dispute_store.disputes):
                self.life.ask(disputing.resolve, held.id, outcome="stands", note="end")
            self.life.settle_all()
            for name, times in self.life.done.items():
                seen[name] = seen.get(name, 0) + times
            for row in self.life.final():
                seen[row.kind] = seen.get(row.kind, 0) + 1
        finally:
            self.biller.remove()
            shutil.rmtree(self.directory)


def test_whatever_is_done_to_an_account_it_stays_in_order(tmp_path, postgresql):
    first = Biller.start(tmp_path / "first", cluster=postgresql, now=JANUARY)
    first.close()
    seen.clear()
    machine = type("Machine", (AccountMachine,), {"first": first})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(EXAMPLES or 4),
            stateful_step_count=30,
            deadline=None,
            derandomize=EXAMPLES is None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    first.remove()
    assert "invoice" in seen, seen
