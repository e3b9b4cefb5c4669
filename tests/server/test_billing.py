"""Billing on a real server: runs, drafts, invoices, evidence."""

import random
from zoneinfo import ZoneInfo

import pytest
from billing_fleet import BERLIN, DAY, FEBRUARY, JANUARY, MARCH, at

from licensing_server.billing import service
from licensing_server.licenses import service as licenses
from licensing_server.pages import Page
from licensing_server.usage import service as usage
from meterkit import evidence
from meterkit.attribution import Run
from meterkit.canonical import to_bytes
from meterkit.errors import InputError, ServiceError

NOT_STORED = ("state", "created_at", "kind", "due_minor")  # shown beside the document


def refused(act, *args, **named) -> str:
    with pytest.raises((ServiceError, InputError)) as error:
        act(*args, **named)
    return error.value.code


def test_from_units_to_an_invoice_that_proves_itself(biller):
    device = biller.device(biller.grant())
    biller.use(device, 150, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert draft["state"] == "draft"
    assert draft["number"] is None
    assert [(line["quantity"], line["amount"], line["late"]) for line in draft["lines"]] == [(150, "1.50", False)]
    assert "records" not in draft["lines"][0]
    final = biller.finalize(draft["id"])
    assert (final["state"], final["number"], final["total"]) == ("finalized", "INV-000001", "1.50")
    result = biller.audit(draft["id"])
    assert result.findings == ()
    assert result.pinned
    (line,) = final["lines"]
    assert (line["service_start_at"], line["service_end_at"]) == (JANUARY, FEBRUARY)
    assert line["invoice_at"] == FEBRUARY
    assert line["records"] == [
        {"device": device.id, "epoch": device.epoch, "head": device.position.head, "first": 3, "last": 3}
    ]


def test_late_usage_is_the_difference_and_cites_all_its_records(biller):
    device = biller.device(biller.grant())
    biller.use(device, 333, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    biller.finalize(biller.run()[0]["id"])
    biller.use(device, 333, at("2026-01-06"))
    biller.clock.now = MARCH
    (draft,) = biller.run()
    (line,) = draft["lines"]
    assert (line["quantity"], line["quantity_before"]) == (666, 333)
    assert (line["owed_minor"], line["billed_before_minor"], line["amount_minor"]) == (666, 333, 333)
    assert line["late"]
    assert line["service_end_at"] == FEBRUARY
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_a_draft_bills_nothing_and_the_next_run_replaces_it(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    (first,) = biller.run()
    biller.clock.now = FEBRUARY + DAY
    (second,) = biller.run()
    assert second["total_minor"] == first["total_minor"] == 10
    assert refused(service.show, biller.server, first["id"]) == "not_found"
    items = service.page(biller.server, Page())["items"]
    assert [item["id"] for item in items] == [second["id"]]


def test_a_run_asked_again_gives_what_it_stored(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    first = service.run(biller.server, cut_off=FEBRUARY)
    biller.use(device, 5, at("2026-01-06"))
    biller.clock.now = FEBRUARY + DAY
    assert service.run(biller.server, cut_off=FEBRUARY) == first
    (draft,) = biller.drafts()
    assert draft["lines"][0]["quantity"] == 10
    again = biller.finalize(draft["id"])
    assert again["lines"][0]["quantity"] == 10  # computed again, by the run's own limits
    assert biller.finalize(draft["id"]) == again


def test_limits_never_go_back(biller):
    biller.device(biller.grant())
    biller.clock.now = MARCH
    service.run(biller.server, cut_off=FEBRUARY + DAY)
    assert refused(service.run, biller.server, cut_off=FEBRUARY) == "run_superseded"
    assert refused(service.run, biller.server, cut_off=FEBRUARY, customer=biller.customer) == "run_superseded"
    assert refused(service.run, biller.server, cut_off=MARCH + 1) == "malformed_members"
    assert refused(service.run, biller.server, cut_off=MARCH, customer="cus_" + "a" * 26) == "not_found"


def test_a_run_for_one_customer_does_not_hold_up_the_others(biller):
    other = biller.add_customer()
    mine, theirs = biller.device(biller.grant()), biller.device(biller.grant(customer=other))
    for device in (mine, theirs):
        biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY + DAY
    made = service.run(biller.server, cut_off=FEBRUARY + DAY, customer=biller.customer)
    assert len(made["invoices"]) == 1
    assert refused(service.run, biller.server, cut_off=FEBRUARY) == "run_superseded"
    made = service.run(biller.server, cut_off=FEBRUARY, customer=other)
    assert len(made["invoices"]) == 1
    assert service.run(biller.server)["failed"] == []


def test_a_dry_run_shows_and_stores_nothing(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    seen = service.dry_run(biller.server)
    assert [draft["total"] for draft in seen["drafts"]] == ["0.10"]
    assert service.page(biller.server, Page())["items"] == []
    assert service.page_runs(biller.server, Page())["items"] == []
    assert service.run(biller.server)["number"] == 1


def test_numbers_have_no_gap(biller):
    devices = [biller.device(biller.grant(customer=biller.add_customer())) for _ in range(3)]
    for device in devices:
        biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    drafts = biller.run()
    assert len(drafts) == 3
    del biller.server.keys["invoice"]
    assert refused(service.finalize, biller.server, drafts[0]["id"]) == "signing_unavailable"
    assert service.show(biller.server, drafts[0]["id"])["state"] == "draft"
    biller.reopen()
    numbers = [biller.finalize(draft["id"])["number"] for draft in drafts]
    assert numbers == ["INV-000001", "INV-000002", "INV-000003"]


def test_an_invoice_never_changes_whatever_happens_after(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    final = biller.finalize(draft["id"])
    _, before = service.show_evidence(biller.server, draft["id"])
    biller.use(device, 90, at("2026-01-06"))
    biller.clock.now = MARCH
    biller.finalize(biller.run()[0]["id"])
    assert service.show(biller.server, draft["id"]) == final
    assert service.show_evidence(biller.server, draft["id"])[1] == before
    stored = evidence.read_zip(before).parts[evidence.INVOICE]
    shown = {name: value for name, value in final.items() if name not in NOT_STORED}
    assert to_bytes(shown) == stored


def test_a_draft_has_no_evidence(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert refused(service.show_evidence, biller.server, draft["id"]) == "state_conflict"


def test_an_advance_fee_is_billed_at_the_start_and_once(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.fee("49.00", due="advance")))
    biller.clock.now = at("2026-01-02")
    (draft,) = biller.run()
    assert [(line["charge"], line["amount"]) for line in draft["lines"]] == [("fee", "49.00")]
    biller.finalize(draft["id"])
    biller.clock.now = at("2026-01-20")
    assert biller.run() == []
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert [line["service_start_at"] for line in draft["lines"]] == [FEBRUARY]
    assert draft["lines"][0]["license"] == license_id
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_bounds_once_billed_stay_when_the_license_ends(biller):
    plan = biller.plan_of(biller.fee("31.00", due="advance"), biller.calls("0.01"))
    license_id = biller.grant(plan=plan)
    biller.clock.now = at("2026-01-02")
    biller.finalize(biller.run()[0]["id"])
    biller.clock.now = at("2026-01-11")
    licenses.change_state(biller.server, license_id, "ended")
    biller.clock.now = MARCH
    assert biller.run() == []


def test_an_unbilled_period_is_shortened_where_its_license_ends(biller):
    license_id = biller.grant(plan=biller.plan_of(biller.fee("31.00", due="arrears"), biller.calls("1")))
    device = biller.device(license_id)
    biller.use(device, 3, at("2026-01-05"))
    biller.clock.now = JANUARY + 10 * DAY
    licenses.change_state(biller.server, license_id, "ended")
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    lines = {line["charge"]: line for line in draft["lines"]}
    assert lines["fee"]["share"] == "10/31"
    assert lines["fee"]["amount"] == "10.00"
    assert lines["calls"]["amount"] == "3.00"
    assert lines["calls"]["service_end_at"] == JANUARY + 10 * DAY
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_a_license_backdated_after_a_run_is_billed_by_the_next(biller):
    first = biller.grant(plan=biller.plan_of(biller.fee("10", due="advance")))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    biller.finalize(draft["id"])
    second = biller.grant(plan=biller.plan_of(biller.fee("5", due="arrears")), starts_at=JANUARY)
    biller.clock.now = FEBRUARY + DAY
    (draft,) = biller.run()
    assert {line["license"] for line in draft["lines"]} == {second} != {first}
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_active_devices_are_counted_by_token_and_by_use(biller):
    license_id = biller.grant(
        plan=biller.plan_of(biller.fee("2", due="arrears", per="device")), token_life_s=15 * DAY
    )
    used, _idle = biller.device(license_id), biller.device(license_id)
    biller.use(used, 1, at("2026-01-20"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert [(line["quantity"], line["amount"]) for line in draft["lines"]] == [(2, "4.00")]
    biller.finalize(draft["id"])
    biller.clock.now = MARCH
    (draft,) = biller.run()
    assert draft["lines"][0]["quantity"] == 1  # the token given on 20 January ran into February
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_both_branches_of_a_fork_are_billed_and_cited(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    twin = device.clone()
    biller.use(device, 5, at("2026-01-06"))
    biller.use(twin, 7, at("2026-01-07"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    (line,) = draft["lines"]
    assert line["quantity"] == 22
    (line,) = biller.finalize(draft["id"])["lines"]
    ranges = [(each["head"], each["first"], each["last"]) for each in line["records"]]
    assert len(ranges) == 2
    assert {head for head, _, _ in ranges} == {device.position.head, twin.position.head}
    assert biller.audit(draft["id"]).findings == ()


def test_quarantined_and_unsettled_units_are_shown_and_not_billed(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"), unsettled=6)
    biller.use(device, 10**6 * 900 + 1, at("2026-01-06"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert draft["total"] == "0.10"
    (beside,) = draft["beside"]
    assert (beside["unsettled"], beside["quarantined"], beside["unpriced"]) == (6, 10**6 * 900 + 1, 0)
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_each_currency_has_its_own_invoice(biller):
    licensed = [
        biller.grant(plan=biller.plan_of(biller.calls("0.5"), currency=currency)) for currency in ("EUR", "JPY")
    ]
    for license_id in licensed:
        biller.use(biller.device(license_id), 3, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    drafts = {draft["currency"]: draft for draft in biller.run()}
    assert {currency: draft["total"] for currency, draft in drafts.items()} == {"EUR": "1.50", "JPY": "2"}
    for draft in drafts.values():
        biller.finalize(draft["id"])
        assert biller.audit(draft["id"]).findings == ()


def test_days_are_the_customer_s_days(biller):
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"), interval="day")))
    biller.clock.now = at("2026-03-30")
    for instant in ("2026-03-28T23:45", "2026-03-29T00:00", "2026-03-29T23:45"):
        device.use(1, at=at(instant))
    device.sync()
    (draft,) = biller.run()
    held = [
        ((line["service_end_at"] - line["service_start_at"]) // 3600, line["quantity"]) for line in draft["lines"]
    ]
    assert held == [(24, 1), (23, 2)]
    assert draft["lines"][1]["service_start_at"] == at("2026-03-29", BERLIN)


def test_an_interim_plan_is_billed_at_any_run_and_each_invoice_proves_itself(biller):
    charges = (
        biller.calls_at({"model": "per_unit", "unit_amount": "1", "minimum_amount": "40"}),
        {"id": "least", "type": "commitment", "amount": "100", "over": ["calls"]},
    )
    device = biller.device(biller.grant(plan=biller.plan_of(*charges, interim=True)))
    totals = []
    for day in ("2026-01-05", "2026-01-15", "2026-01-25"):
        biller.use(device, 10, at(day))
        (draft,) = biller.run()
        biller.finalize(draft["id"])
        totals.append(draft["total"])
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    biller.finalize(draft["id"])
    assert totals == ["10.00", "10.00", "10.00"]
    assert {line["charge"]: line["amount"] for line in draft["lines"]} == {"calls": "10.00", "least": "60.00"}
    assert biller.audit(draft["id"]).findings == ()


def test_a_changed_zone_acts_from_the_next_period_on(biller):
    device = biller.device(biller.grant())
    biller.use(device, 10, at("2026-01-05"))
    biller.run()  # opens January
    biller.move_customer("America/New_York")
    biller.use(device, 20, FEBRUARY)
    biller.clock.now = at("2026-03-02")
    (draft,) = biller.run()
    bounds = [(line["service_start_at"], line["service_end_at"], line["quantity"]) for line in draft["lines"]]
    assert bounds == [(JANUARY, FEBRUARY, 10), (FEBRUARY, at("2026-03-01", ZoneInfo("America/New_York")), 20)]
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_what_is_not_in_an_invoice_yet_is_nowhere_else(biller):
    """Conservation: Σ accepted = invoiced + still open + quarantined, over licenses, forks and late reports."""
    licensed = [biller.grant(), biller.grant()]
    devices = [biller.device(license_id) for license_id in licensed]
    for day, device in enumerate(devices * 8):
        biller.use(device, day + 1, at("2026-01-03") + day * 3 * DAY, unsettled=day % 2)
    twin = devices[0].clone()
    biller.use(twin, 1000, at("2026-01-29"))
    biller.use(devices[0], 10**6 * 900 + 7, at("2026-01-30"))
    biller.clock.now = max(biller.clock.now, FEBRUARY)
    (draft,) = biller.run(cut_off=FEBRUARY)
    invoiced = sum(line["quantity"] for line in draft["lines"])
    quarantined = sum(each["quarantined"] for each in draft["beside"])
    items = usage.sum_usage(biller.server)["items"]
    still_open = usage.sum_usage(biller.server, period=(FEBRUARY, None))["items"]
    assert sum(item["units"] for item in items) == invoiced + sum(item["units"] for item in still_open)
    assert sum(item["quarantined"] for item in items) == quarantined
    assert invoiced > 1000


@pytest.mark.parametrize("seed", range(6))
def test_the_database_adds_up_as_the_core_does(biller, seed):
    """A month of anything a fleet may do, and at any limits the same sums, citations and active devices."""
    chance = random.Random(seed)  # noqa: S311 - a test's, on purpose
    plan = biller.plan_of(
        biller.calls("0.01"),
        {**biller.fee("1", due="arrears", per="device"), "interval": chance.choice(["day", "week", "month"])},
    )
    licensed = [biller.grant(plan=plan, token_life_s=chance.randint(2, 20) * DAY) for _ in range(2)]
    devices = [biller.device(chance.choice(licensed)) for _ in range(4)]
    for _ in range(40):
        device = chance.choice(devices)
        happens = chance.random()
        if happens < 0.1:
            devices.append(device.clone())
        elif happens < 0.15:
            device.reset(lost=None)
            device.install()
        elif happens < 0.2:
            device.use(10**6 * 900 + chance.randint(1, 5))
        elif happens < 0.7:
            device.use(
                chance.randint(0, 50),
                at=biller.clock.now - chance.randint(0, 9 * DAY),
                unsettled=int(happens > 0.6),
            )
        else:
            biller.clock.advance(chance.randint(0, 2 * DAY))
            device.sync(first=1)
    for device in devices:
        device.sync(first=1)
    if chance.random() < 0.5:
        licenses.change_state(biller.server, licensed[0], "ended")
    accepted = biller.compare_sums(Run(number=1, cut_off=biller.clock.now, acceptance_max=10**6))
    assert accepted > 0
    for _ in range(5):
        cut_off = chance.randint(JANUARY, biller.clock.now)
        biller.compare_sums(Run(number=1, cut_off=cut_off, acceptance_max=chance.randint(1, 40)))


def test_a_call_in_flight_at_a_transfer_is_billed_to_the_new_license_and_proves_itself(biller):
    """Admitted under the old license's token, folded after the new one's record: the record in the chain is the
    cut. 10 calls are the old license's, 3 the new one's; nothing is set aside.
    """
    old, new = biller.grant(), biller.grant()
    device = biller.device(old)
    biller.use(device, 10, at("2026-01-05"))
    before = device.token
    device.sync()
    device.activate(biller.code(new))
    device.install()
    device.use(3, at=biller.clock.now, token=before.jti)
    device.sync()
    assert (biller.units(old), biller.units(new)) == (10, 3)
    assert biller.exceptions("unknown_token") == []
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    billed = {line["license"]: line["quantity"] for line in draft["lines"]}
    assert billed == {old: 10, new: 3}
    assert biller.audit(biller.finalize(draft["id"])["id"]).holds


def test_a_license_anchored_on_the_first_begins_with_a_short_period(biller):
    """From 10 to 31 January are 22 of 31 days: of 31.00 a month 22.00 are owed, then each whole month."""
    plan = biller.plan_of(biller.fee("31", due="arrears"))
    biller.clock.now = at("2026-01-10T15:00")
    biller.device(biller.grant(plan=plan, anchor_at=at("2026-01-01T12:00")))
    biller.clock.now = MARCH
    (draft,) = biller.run()
    shown = [(line["service_start_at"], line["service_end_at"], line["amount"]) for line in draft["lines"]]
    assert shown == [(at("2026-01-10"), FEBRUARY, "22.00"), (FEBRUARY, MARCH, "31.00")]
    biller.finalize(draft["id"])
    assert biller.audit(draft["id"]).findings == ()


def test_an_anchor_after_the_start_counts_back(biller):
    """Anchored on the 31st to come, the period before it ends there: 31 March is 31 March, 30 April its April."""
    biller.clock.now = at("2026-03-10")
    biller.device(biller.grant(plan=biller.plan_of(biller.fee("31", due="arrears")), anchor_at=at("2026-03-31")))
    biller.clock.now = at("2026-05-01")
    (draft,) = biller.run()
    bounds = [(line["service_start_at"], line["service_end_at"]) for line in draft["lines"]]
    assert bounds == [(at("2026-03-10"), at("2026-03-31")), (at("2026-03-31"), at("2026-04-30"))]


def test_an_anchor_far_from_the_start_is_refused(biller):
    far = biller.clock.now + 366 * DAY
    assert refused(biller.grant, anchor_at=far) == "malformed_members"
