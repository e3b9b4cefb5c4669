"""What a billing run asks its database does not grow with its customers: they are read in portions."""

import sqlalchemy as sa
from billing_fleet import DAY, FEBRUARY, JANUARY

from licensing_server.accounts import service as accounts
from licensing_server.billing import disputing, service, settling


def add(biller, count: int) -> None:
    """So many customers with a fee, a tax, and a prepaid credit."""
    plan = biller.plan_of(biller.fee("10", due="advance"))
    for place in range(count):
        customer = biller.add_customer()
        biller.grant(customer=customer, plan=plan, starts_at=JANUARY)
        accounts.set_tax_rate(biller.server, name="VAT", percent="19", starts_at=0, customer=customer)
        named = {"currency": "EUR", "amount": f"{place + 1}.50", "starts_at": JANUARY}
        accounts.add_credit(biller.server, customer, **named)


def statements(biller, instant: int) -> int:
    """Bill up to an instant; gives how many statements that took."""
    biller.clock.now = instant
    counted = []

    def count(*_named):
        counted.append(1)

    sa.event.listen(biller.server.engine, "before_cursor_execute", count)
    try:
        service.run(biller.server)
    finally:
        sa.event.remove(biller.server.engine, "before_cursor_execute", count)
    return len(counted)


def story(biller, customers: int) -> tuple[int, int]:
    """How many statements two runs take: a first one, and one that knows documents, voids and concessions.

    (Now and then a run looks a hundred days ahead, which asks once for each license; neither of these does.)
    """
    add(biller, customers)
    first = statements(biller, JANUARY + DAY)
    drafts = biller.drafts()
    assert len(drafts) == customers
    for draft in drafts:
        biller.finalize(draft["id"])
    owing = [draft["id"] for draft in drafts if draft["due_minor"]]
    for place, invoice in enumerate(owing[: max(2, customers // 3)]):
        if place % 2:
            settling.void(biller.server, invoice, note="wrong")
        else:
            disputing.concede(biller.server, invoice, line=1, amount="1", note="late")
    return first, statements(biller, FEBRUARY)


def test_three_customers_take_as_many_statements_as_thirty(tmp_path, biller, first_fleet):
    other = first_fleet.copy(tmp_path / "other", seed=3)
    try:
        few, many = story(biller, 3), story(other, 30)
    finally:
        other.remove()
    assert few == many
