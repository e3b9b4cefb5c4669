"""Short ways to bill one customer, decide about its account, and look at it."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from billing_fleet import Biller, at
from fleet import FakeDevice

from licensing_server.accounts import journal
from licensing_server.accounts import service as accounts
from licensing_server.database import read
from meterkit.errors import InputError, ServiceError

APRIL = at("2026-04-01")
FALLING = {
    "model": "volume",
    "tiers": [{"up_to": 100, "unit_amount": "1"}, {"up_to": None, "unit_amount": "0.5"}],
}


def unbalanced(biller: Biller) -> list[Any]:
    """Transactions that do not sum to zero."""
    table = journal.journal.c
    sums = sa.select(table.number).group_by(table.number).having(sa.func.sum(table.amount_minor) != 0)
    with read(biller.server) as connection:
        return list(connection.execute(sums))


def refused(act: Callable[..., Any], *args: Any, **named: Any) -> str:
    """The code by which something is refused."""
    with pytest.raises((ServiceError, InputError)) as error:
        act(*args, **named)
    return str(error.value.code)


def bill_at(biller: Biller, instant: int) -> dict[str, Any]:
    """Bill up to an instant, finalize the one draft, and have it audited."""
    biller.clock.now = max(biller.clock.now, instant)
    (draft,) = biller.run(cut_off=instant)
    final = biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()
    return final


def tax(biller: Biller, percent: str, starts_at: int = 0, name: str = "VAT") -> None:
    """Let a tax count for the customer."""
    made = accounts.set_tax_rate(
        biller.server, name=name, percent=percent, starts_at=starts_at, customer=biller.customer
    )
    assert made["customers"] == 1


def stands(biller: Biller) -> dict[str, str]:
    """What a customer of one currency owes, has paid ahead, and has to its credit."""
    (item,) = accounts.show(biller.server, biller.customer)["items"]
    return {name: item[name] for name in ("owes", "prepaid", "balance")}


def falling(biller: Biller) -> FakeDevice:
    """A license whose price falls with its volume, so that late units can cost less than nothing."""
    return biller.device(biller.grant(plan=biller.plan_of(biller.calls_at(FALLING))))


def credit(biller: Biller, amount: str, **named: Any) -> str:
    """Money paid ahead; gives its id."""
    made = accounts.add_credit(biller.server, biller.customer, currency="EUR", amount=amount, **named)
    return str(made["id"])
