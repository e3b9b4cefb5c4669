"""A customer whose documents settle: taxes, credits, a credit note, a refund, a void, a dispute, a concession."""

from dataclasses import replace
from typing import Any

import billing_terms as bt
import core_world as world
from evidence_world import DAY, START, Shop

from meterkit.accounts import Concession, Credit, Dispute, Refund, Void
from meterkit.evidence import Bundle
from meterkit.lines import Key
from meterkit.taxes import TaxRate


def decide(shop: Shop, name: str, *decided: Any) -> None:
    """Add to what was decided about the shop's one account."""
    shop.account = replace(shop.account, **{name: (*getattr(shop.account, name), *decided)})


def next_run(shop: Shop) -> int:
    return len(shop.runs) + 1


def key(charge: str, month: int, kind: str) -> Key:
    start = START + month * 30 * DAY
    return Key(
        license_id=bt.LICENSE,
        start_at=start,
        end_at=start + 30 * DAY,
        charge=charge,
        plan_id=bt.PLAN,
        version=1,
        kind=kind,
    )


def _taxed_and_paid_ahead(shop: Shop) -> None:
    rates = ((0, "19", "VAT"), (START + 45 * DAY, "16.5", "VAT"))
    for starts_at, percent, name in rates:
        decide(shop, "tax_rates", TaxRate(starts_at=starts_at, since_run=1, name=name, percent=percent))
    for name, amount, priority, expires_at in (
        ("first", 2_000, 0, START + 30 * DAY),
        ("second", 1_000, 1, None),
        ("third", 1_000, 2, None),
    ):
        made = Credit(
            id=world.ident("cred", name),
            amount_minor=amount,
            priority=priority,
            starts_at=START - DAY,
            expires_at=expires_at,
            purchased_at=START - DAY,
            since_run=1,
        )
        decide(shop, "credits", made)


def settled_story() -> dict[str, Bundle]:
    """Four months of one device, and a document for each run; gives the evidence of each by its number.

    Calls cost 1.00 up to a hundred, all of them 0.50 beyond; the fee is 10.00, in arrears.
    """
    tiers = [{"up_to": 100, "unit_amount": "1"}, {"up_to": None, "unit_amount": "0.5"}]
    charges = bt.usage_charge({"model": "volume", "tiers": tiers}, model="detector"), bt.recurring("10.00")
    shop = Shop(bt.plan_json(*charges), months=4)
    crane = shop.device("crane")
    made: dict[str, Bundle] = {}

    def bill(day: float) -> str:
        bundle = shop.run(day)
        assert bundle is not None
        number = shop.documents[-1][2]
        made[number] = bundle
        return number

    _taxed_and_paid_ahead(shop)
    crane.install("one", 0)
    crane.use(100, 1)
    crane.send(4)
    first = bill(30)
    crane.use(1, 29)
    crane.send(31)  # the 101st call halves what January's calls cost
    note = bill(31)
    assert note.startswith("CN-")
    decide(shop, "refunds", Refund(amount_minor=100, since_run=next_run(shop)))
    decide(
        shop,
        "concessions",
        Concession(key=key("fee", 0, "concession"), amount_minor=333, since_run=next_run(shop)),
    )
    crane.use(40, 33)
    crane.send(34)
    gone = bill(60)
    decide(shop, "voids", Void(number=gone, since_run=next_run(shop)))
    again = bill(61)
    disputed = next_run(shop)
    crane.use(7, 45)
    crane.use(20, 63)
    crane.send(64)
    held = Dispute(key=key("calls", 1, "measured"), since_run=disputed, until_run=disputed + 1)
    decide(shop, "disputes", held)
    decide(
        shop,
        "concessions",
        Concession(key=key("fee", 0, "concession"), amount_minor=1, since_run=next_run(shop)),
    )
    waiting = bill(90)
    decide(shop, "disputes", Dispute(key=key("fee", 3, "recurring"), since_run=next_run(shop), until_run=None))
    last = bill(120)
    assert list(made) == [first, note, gone, again, waiting, last]
    return made
