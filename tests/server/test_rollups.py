"""What is added up as usage comes in is what the records come to, at any run's limits and whatever happens."""

import threading

import pytest
import sqlalchemy as sa
from billing_fleet import DAY, FEBRUARY, JANUARY, MARCH, at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lively_fleet import decide_all, lively

from licensing_server import directory
from licensing_server.billing import changing, run_store, run_sums, service, terms
from licensing_server.billing.run_store import billing_runs, run_from_row
from licensing_server.customers.store import customers
from licensing_server.database import read, write
from licensing_server.licenses import spans
from licensing_server.licenses.periods import license_periods
from licensing_server.licenses.spans import EVER, license_spans
from licensing_server.licenses.store import licenses
from licensing_server.pages import Page
from licensing_server.usage import rollups
from licensing_server.usage import service as usage
from licensing_server.usage.rebuild import rebuild
from licensing_server.usage.rollups import usage_rollups
from licensing_server.usage.store import usage_records
from meterkit.attribution import Run
from meterkit.limits import INTEGER_MAX

ANY_TIME = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def rows(biller, table=usage_rollups):
    with read(biller.server) as connection:
        return sorted(map(tuple, connection.execute(sa.select(table))))


def forget(biller):
    """As in a database that comes from before all this."""
    with write(biller.server) as connection:
        connection.execute(sa.delete(usage_rollups))
        connection.execute(sa.delete(license_spans))


def compare(biller, run):
    """Every customer's sums at a run's limits; gives the units."""
    with read(biller.server) as connection:
        ids = list(connection.execute(sa.select(customers.c.id)).scalars())
    units = 0
    for biller.customer in ids:
        units += biller.compare_sums(run)
    return units


@pytest.mark.parametrize("seed", range(3))
def test_at_any_limits_and_in_any_spans_the_sums_are_what_the_core_adds_up(biller, seed):
    fee = {**biller.fee("1", due="arrears", per="device"), "interval": "week"}
    biller.plan = biller.plan_of(biller.calls("0.01"), fee)
    chance, _ = lively(biller, seed, steps=60)
    biller.run()
    decide_all(biller, chance)
    now = biller.clock.now
    assert compare(biller, Run(number=9, cut_off=now, acceptance_max=INTEGER_MAX)) > 0
    with read(biller.server) as connection:
        most = run_store.newest_acceptance(connection)
        licensed = list(connection.execute(sa.select(license_spans.c.license).distinct()).scalars())

    @ANY_TIME
    @given(
        number=st.integers(0, 3),
        cut_off=st.integers(JANUARY - DAY, now),
        acceptance_max=st.integers(0, most),
        cut=st.none() | st.integers(JANUARY - DAY, now),
    )
    def at_limits(number, cut_off, acceptance_max, cut):
        if cut is not None:
            with write(biller.server) as connection:
                known = spans.read(connection, licensed)
                rollups.align(connection, known, {each: [cut] for each in licensed})
        compare(biller, Run(number=number, cut_off=cut_off, acceptance_max=acceptance_max))

    at_limits()
    assert rebuild(biller.server, check=True)["items"] == []


@pytest.mark.parametrize("seed", [4, 5])
def test_what_is_added_up_later_is_what_would_have_been_kept(biller, seed):
    chance, _ = lively(biller, seed, steps=60)
    decide_all(biller, chance)
    biller.run()
    kept = rows(biller)
    assert len(kept) > 5
    forget(biller)
    service.run(biller.server, cut_off=biller.clock.now)
    assert rows(biller) == []  # it gives what it stored
    biller.clock.advance(1)
    biller.run()
    assert rows(biller) == kept


# -- a run that sums up for itself what is not added up yet


@pytest.fixture
def many(monkeypatch):
    """However few licenses are not added up yet, a run takes them for many."""
    monkeypatch.setattr(rollups, "FEW", 0)


def runs_of_spans(biller):
    """The runs that spans are alone."""
    return {only_run for *_, only_run in rows(biller, license_spans)}


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(("seed", "counts_devices"), [(4, False), (5, True), (6, False), (7, True)])
def test_a_run_that_sums_up_for_itself_bills_the_same(biller, seed, counts_devices):
    fee = {**biller.fee("1", due="arrears", per="device"), "interval": "week"}
    biller.plan = biller.plan_of(biller.calls("0.01"), *([fee] if counts_devices else []))
    chance, _ = lively(biller, seed, steps=60)
    decide_all(biller, chance)
    biller.clock.advance(40 * DAY)
    added_up = biller.run()
    kept = rows(biller)
    forget(biller)
    biller.clock.advance(1)
    summed = biller.run()
    assert figures(summed) == figures(added_up) != []
    assert rows(biller) == []
    with read(biller.server) as connection:
        run = run_from_row(
            connection.execute(sa.select(billing_runs).order_by(billing_runs.c.number.desc())).first()
        )
    assert runs_of_spans(biller) == {run.number}
    assert not counts_devices or compare(biller, run.limits) > 0
    decide_all(biller, chance)
    assert not counts_devices or compare(biller, run.limits) > 0
    assert rebuild(biller.server, check=True)["items"] == []
    for draft in summed:
        assert biller.audit(biller.finalize(draft["id"])["id"]).holds
    service.add_up(biller.server)
    assert runs_of_spans(biller) == {None}
    assert not rows(biller, run_sums.run_sums)
    assert [row[:6] for row in rows(biller)] == [row[:6] for row in kept]
    assert rebuild(biller.server, check=True)["items"] == []


def figures(drafts):
    """What drafts say of each line."""
    named = ("license", "charge", "period_start", "quantity", "amount")
    return sorted([str(line.get(name)) for name in named] for draft in drafts for line in draft["lines"])


@pytest.mark.usefixtures("many")
def test_usage_that_comes_before_it_is_added_up_waits_for_that(biller):
    license_id = biller.grant()
    device = biller.device(license_id)
    biller.use(device, 10, at("2026-01-05"))
    forget(biller)
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    biller.use(device, 5, at("2026-01-06"))
    assert rows(biller) == []
    assert [line["quantity"] for line in draft["lines"]] == [10]
    assert biller.audit(biller.finalize(draft["id"])["id"]).holds
    biller.clock.advance(1)
    if biller.cluster is not None:  # and with the next run, or before it
        service.add_up(biller.server)
        assert [row[6] for row in rows(biller)] == [15]
    (late,) = biller.run()
    assert [line["quantity"] for line in late["lines"]] == [15]


@pytest.mark.usefixtures("many")
def test_what_a_run_has_summed_up_is_given_up_when_a_record_of_it_is_plain_no_more(biller):
    plan = biller.plan_of(biller.calls("1"), biller.fee("1", due="arrears", per="device"))
    device = biller.device(biller.grant(plan=plan))
    biller.use(device, 10, at("2026-01-05"))
    biller.use(device, 5, at("2026-01-06"))
    forget(biller)
    run = Run(number=1, cut_off=FEBRUARY, acceptance_max=INTEGER_MAX)
    with write(biller.server) as connection:
        terms.sum_first(connection, [biller.customer], run)
        assert spans.read_of_run(connection, licenses_of(connection), 1)
    assert compare(biller, run) == 15
    with write(biller.server) as connection:
        connection.execute(sa.update(usage_records).where(usage_records.c.units == 10).values(repeated=4))
        rollups.renew(connection, device.id, [device.epoch])
    assert rows(biller) == []
    assert compare(biller, run) == 11


@pytest.mark.usefixtures("many")
def test_what_a_run_has_summed_up_is_given_up_when_a_later_one_does(biller):
    """A run that a customer kept from its end goes on where another took its sums in between."""
    plan = biller.plan_of(biller.calls("1"), biller.fee("1", due="arrears", per="device"))
    devices = [biller.device(biller.grant(plan=plan)) for _ in range(2)]
    for device in devices:
        biller.use(device, 10, at("2026-01-05"))
    forget(biller)
    run = Run(number=1, cut_off=FEBRUARY, acceptance_max=INTEGER_MAX)
    with write(biller.server) as connection:
        terms.sum_first(connection, [biller.customer], run)
        both = list(spans.read_of_run(connection, licenses_of(connection), 1))
        run_sums.take(connection, {both[0]: [EVER, JANUARY, FEBRUARY]}, Run(number=2, **limits_of(run)))
        assert list(spans.read_of_run(connection, both, 2)) == both[:1]
        assert not spans.read_of_run(connection, both, 1)
    assert compare(biller, run) == 20


def licenses_of(connection):
    return list(connection.execute(sa.select(licenses.c.id)).scalars())


def limits_of(run):
    return {"cut_off": run.cut_off, "acceptance_max": run.acceptance_max}


def test_usage_older_than_its_being_added_up_waits_for_the_first_run(biller):
    license_id = biller.grant()
    device = biller.device(license_id)
    biller.use(device, 10, at("2026-01-05"))
    forget(biller)
    biller.use(device, 5, at("2026-01-06"))
    assert rows(biller) == []
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert [line["quantity"] for line in draft["lines"]] == [15]
    biller.use(device, 7, at("2026-01-20"))
    ((*_, units, _, first, last, _, _, _),) = rows(biller)
    assert (units, first, last) == (22, 3, 5)
    assert biller.audit(biller.finalize(draft["id"])["id"]).holds


def test_spans_begin_with_the_periods_to_come_and_a_new_bound_cuts_one(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.calls("1")))
    cuts = [row[1] for row in rows(biller, license_spans)]
    assert cuts[:4] == [EVER, JANUARY, FEBRUARY, MARCH]
    assert max(cuts) > biller.clock.now + 60 * DAY
    device = biller.device(license_id)
    biller.use(device, 10, at("2026-01-05T10:00"))
    biller.clock.now = at("2026-01-10T09:00")
    changing.change_plan(biller.server, license_id, plan=biller.plan_of(biller.calls("2")), starts="now")
    biller.use(device, 20, at("2026-01-10T12:00"))
    assert [row[6] for row in rows(biller)] == [30]
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert [(line["quantity"], line["amount"]) for line in draft["lines"]] == [(10, "10.00"), (20, "40.00")]
    assert [row[6] for row in rows(biller)] == [10, 20]
    assert rebuild(biller.server, check=True)["items"] == []


def test_every_span_lies_in_one_period_of_each_interval(biller):
    fees = [{**biller.fee("1", due="arrears"), "id": name, "interval": name} for name in ("day", "week", "year")]
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"), *fees)))
    biller.move_customer("Asia/Kathmandu")
    for day in (3, 20, 33, 70):
        biller.use(device, day, at("2026-01-01") + day * DAY)
    biller.run()
    cuts = {row[1] for row in rows(biller, license_spans)}
    with read(biller.server) as connection:
        starts = set(connection.execute(sa.select(license_periods.c.start_at)).scalars())
    assert len(starts) > 70
    assert starts <= cuts


def test_a_run_reads_no_records_where_it_may_know_all_that_was_added_up(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    biller.run()
    with write(biller.server) as connection:
        connection.execute(sa.update(usage_records).values(units=1_000))
    biller.clock.advance(1)
    (draft,) = biller.run()
    assert draft["lines"][0]["quantity"] == 10
    biller.use(device, 5, at("2026-01-20"))
    (draft,) = [service.show(biller.server, draft["id"])]
    assert biller.finalize(draft["id"])["lines"][0]["quantity"] == 1_000  # it may not know the five


@pytest.mark.parametrize(("at_once", "devices"), [(1, 2_000), (100, 1), (100, 2_000), (2, 3)])
def test_customers_are_billed_alike_in_whatever_portions(biller, monkeypatch, at_once, devices):
    monkeypatch.setattr(run_store, "_CUSTOMERS_AT_ONCE", at_once)
    monkeypatch.setattr(run_store, "_DEVICES_AT_ONCE", devices)
    named = [biller.customer, *(biller.add_customer() for _ in range(4))]
    licensed = [biller.grant(customer=customer) for customer in named]
    for count, license_id in enumerate(licensed):
        for _ in range(count):
            biller.use(biller.device(license_id), 10 + count, at("2026-01-05"))
    spoiled = biller.add_customer()
    biller.grant(customer=spoiled, plan=biller.plan_of(biller.calls("1")))
    biller.spoil_plan(customer=spoiled)
    if at_once == 2:
        forget(biller)
    biller.clock.now = FEBRUARY
    made = service.run(biller.server)
    assert made["failed"] == [{"customer": spoiled, "code": "malformed_plan"}]
    billed = {draft["customer"]: draft["lines"][0]["quantity"] for draft in biller.drafts()}
    assert billed == {customer: count * (10 + count) for count, customer in enumerate(named) if count}
    biller.mend_plans()
    assert service.run(biller.server)["failed"] == []


def test_portions_are_of_so_many_customers_or_devices_and_hold_each_once(biller, monkeypatch):
    monkeypatch.setattr(run_store, "_CUSTOMERS_AT_ONCE", 3)
    monkeypatch.setattr(run_store, "_DEVICES_AT_ONCE", 2)
    named = sorted([biller.customer, *(biller.add_customer() for _ in range(6))])
    for customer, count in zip(named, (1, 2, 0, 1, 3, 0, 0), strict=True):
        license_id = biller.grant(customer=customer)
        for _ in range(count):
            biller.device(license_id)
    with read(biller.server) as connection:
        portions = list(run_store.portions(connection, named))
    assert portions == [named[:1], named[1:3], named[3:4], named[4:5], named[5:]]


def test_two_servers_take_usage_in_while_a_third_bills(biller):
    fee = {**biller.fee("1", due="arrears", per="device"), "interval": "month"}
    licensed = [biller.grant(plan=biller.plan_of(biller.calls("1"), fee)) for _ in range(2)]
    devices = [biller.device(each) for each in licensed * 3]
    bodies = [[sent(device) for _ in range(12)] for device in devices]
    biller.clock.now = FEBRUARY
    others = [directory.open_server(biller.settings, clock=biller.clock, random=biller.random) for _ in range(2)]
    faults = []

    def take(server, mine):
        try:
            for together in zip(*mine, strict=True):
                for body in together:
                    usage.exchange(server, [body])
        except BaseException as fault:  # noqa: BLE001
            faults.append(fault)

    threads = [threading.Thread(target=take, args=(server, bodies[n::2])) for n, server in enumerate(others)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        biller.run()
        biller.clock.advance(1)
    for thread in threads:
        thread.join()
    for server in others:
        server.engine.dispose()
    assert faults == []
    biller.run()
    with read(biller.server) as connection:
        runs = [run_from_row(row).limits for row in connection.execute(sa.select(billing_runs))]
    sums = [compare(biller, run) for run in sorted(runs, key=lambda run: run.number)]
    assert sums == sorted(sums)
    assert sums[-1] == 6 * 12 * 3
    assert rebuild(biller.server, check=True)["items"] == []
    assert len(service.page(biller.server, Page())["items"]) == 1


def sent(device):
    """What a device hands over next, without waiting for an answer."""
    first = getattr(device, "handed", 0) + 1
    device.use(3, at=JANUARY + DAY)
    device.handed = len(device.entries)
    return device.batch(first=first)
