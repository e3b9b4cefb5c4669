"""Rated lines at Stripe: its own client against what keeps its documented rules, over real HTTP."""

import json
import logging
import subprocess
import sys
from functools import partial

import pytest
import stripe
from billing_fleet import FEBRUARY, MARCH, at
from exchanging import refused
from stripe_standin import KEY, StripeStandIn

from licensing_server import settings
from licensing_server.billing import rated_lines, stripe_client, stripe_sending
from licensing_server.settings import STRIPE_API, STRIPE_KEY, Stripe
from licensing_server.usage import events
from meterkit.errors import ServiceError


@pytest.fixture
def there(monkeypatch):
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.001)
    monkeypatch.setattr(stripe.HTTPClient, "MAX_DELAY", 0.001)
    made = StripeStandIn()
    yield made
    made.stop()


def billed(biller, *, licenses=3, cut_off=FEBRUARY) -> dict:
    """An invoice with a line of usage for each license."""
    plan = biller.plan_of(biller.calls("0.01"))
    devices = [biller.device(biller.grant(plan=plan)) for _ in range(licenses)]
    for number, device in enumerate(devices):
        biller.use(device, 100 * (1 + number), at("2026-01-05"))
    biller.clock.now = cut_off
    (draft,) = biller.run()
    return biller.finalize(draft["id"])


def account(there) -> Stripe:
    return Stripe(secret_key=KEY, api_base=there.url)


def send(biller, there, invoice, **named) -> dict:
    named = {"stripe_customer": "cus_A"} | named
    return stripe_sending.send(biller.server, invoice["id"], account(there), **named)


def stands(found) -> list[tuple]:
    return [(item["place"], item["state"], item["how"]) for item in found["items"]]


def amounts(invoice) -> list[tuple[str, int]]:
    lines = enumerate(invoice["lines"], start=1)
    return sorted((str(place), line["amount_minor"]) for place, line in lines if line["amount_minor"])


def test_every_line_becomes_one_item_with_what_it_bills(biller, there):
    invoice = billed(biller)
    found = send(biller, there, invoice)
    assert found["delivered"]
    assert stands(found) == [(1, "delivered", "made"), (2, "delivered", "made"), (3, "delivered", "made")]
    assert there.made == amounts(invoice)
    assert [item["stripe_id"] for item in found["items"]] == ["ii_1", "ii_2", "ii_3"]
    first, params = invoice["lines"][0], there.posts()[0][3]
    assert params == {
        "customer": "cus_A",
        "amount": str(first["amount_minor"]),
        "currency": "eur",
        "description": first["description"],
        "discountable": "false",
        "period[start]": str(first["service_start_at"]),
        "period[end]": str(first["service_end_at"] - 1),
        "metadata[meterkit_line]": found["items"][0]["line"],
        "metadata[meterkit_invoice]": invoice["number"],
        "metadata[meterkit_place]": "1",
        "metadata[meterkit_license]": first["license"],
        "metadata[meterkit_charge]": "calls",
    }


def test_sent_again_nothing_is_asked_of_stripe(biller, there):
    invoice = billed(biller)
    first = send(biller, there, invoice)
    asked = len(there.requests)
    assert send(biller, there, invoice, stripe_customer=None) == first
    assert len(there.requests) == asked


@pytest.mark.parametrize("fault", ["cut", "cut after", 409, 503])
def test_one_fault_is_retried_under_the_same_key_and_makes_nothing_twice(biller, there, fault):
    invoice = billed(biller)
    there.faults = [None, fault]
    found = send(biller, there, invoice)
    assert found["delivered"]
    assert there.made == amounts(invoice)
    keys = [request[2]["idempotency-key"] for request in there.posts()]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3
    assert stands(found)[1] == (2, "delivered", "replayed" if fault == "cut after" else "made")


@pytest.mark.parametrize("after", ["at once", "a day later"])
@pytest.mark.parametrize("fault", ["cut", "cut after"])
def test_a_sending_that_was_cut_off_goes_on_where_it_stopped(biller, there, fault, after):
    invoice = billed(biller, licenses=5)
    there.faults = [None, fault, "cut", "cut"]
    first = send(biller, there, invoice)
    assert not first["delivered"]
    assert [state for _, state, _ in stands(first)] == ["delivered", "sending", "waiting", "waiting", "waiting"]
    if after == "a day later":
        there.forget_keys()
    second = send(biller, there, invoice)
    assert second["delivered"]
    assert there.made == amounts(invoice)
    assert stands(second)[1] == (2, "delivered", "found" if fault == "cut after" else "made")
    assert second["items"][1]["attempt"] == 1


def test_a_process_that_ends_before_it_notes_what_it_sent_makes_nothing_twice(biller, there, monkeypatch):
    invoice = billed(biller)
    create = stripe_client.Client.create

    def ending(*arguments):
        create(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(stripe_client.Client, "create", ending)
    with pytest.raises(KeyboardInterrupt):
        send(biller, there, invoice)
    monkeypatch.setattr(stripe_client.Client, "create", create)
    there.forget_keys()
    found = send(biller, there, invoice)
    assert stands(found) == [(1, "delivered", "found"), (2, "delivered", "made"), (3, "delivered", "made")]
    assert there.made == amounts(invoice)


def test_what_another_sending_is_at_keeps_its_key(biller, there):
    invoice = billed(biller)
    there.faults = [409, 409, 409]
    first = send(biller, there, invoice)
    assert [(item["state"], item["http_status"]) for item in first["items"]][:2] == [
        ("sending", 409),
        ("waiting", None),
    ]
    second = send(biller, there, invoice)
    assert second["delivered"]
    assert {item["attempt"] for item in second["items"]} == {1}


@pytest.mark.parametrize("status", [429, 500])
def test_nothing_is_sent_again_while_it_is_not_known_what_is_there(biller, there, status):
    invoice = billed(biller)
    there.faults = ["cut after", "cut", "cut"]
    send(biller, there, invoice)
    there.forget_keys()
    there.list_faults = [status] * 3
    posts = len(there.posts())
    assert not send(biller, there, invoice)["delivered"]
    assert len(there.posts()) == posts
    there.list_faults = []
    assert send(biller, there, invoice)["delivered"]
    assert there.made == amounts(invoice)


def test_a_fault_that_stripe_remembers_is_asked_for_anew(biller, there):
    invoice = billed(biller)
    there.faults = [500]
    first = send(biller, there, invoice)
    assert [(item["state"], item["http_status"], item["attempt"]) for item in first["items"]] == [
        ("sending", 500, 1),
        ("waiting", None, 0),
        ("waiting", None, 0),
    ]
    second = send(biller, there, invoice)
    assert second["delivered"]
    assert second["items"][0]["attempt"] == 2
    assert there.made == amounts(invoice)


def test_what_was_made_before_a_fault_was_told_is_found_in_whatever_page(biller, there):
    invoice = billed(biller, licenses=5)
    there.faults = [502, 502, 502]
    assert send(biller, there, invoice)["items"][0]["state"] == "sending"
    assert len(there.items) == 1
    there.forget_keys()
    for number in range(5):
        there.items.append(there.items[0] | {"id": f"ii_other{number}", "metadata": {}})
    second = send(biller, there, invoice)
    assert stands(second)[0] == (1, "delivered", "found")
    assert len(there.items) == 10


def test_a_rate_limit_ends_the_sending_and_the_next_one_goes_on(biller, there):
    invoice = billed(biller)
    there.faults = [None, 429]
    first = send(biller, there, invoice)
    assert [state for _, state, _ in stands(first)] == ["delivered", "waiting", "waiting"]
    assert (first["items"][1]["http_status"], first["items"][1]["error_code"]) == (429, "rate_limit")
    assert send(biller, there, invoice)["delivered"]
    assert there.made == amounts(invoice)


def test_a_refused_line_keeps_no_other_from_being_sent_and_is_tried_again(biller, there):
    invoice = billed(biller)
    there.customers.clear()
    first = send(biller, there, invoice)
    assert {(item["state"], item["http_status"], item["error_code"]) for item in first["items"]} == {
        ("refused", 400, "resource_missing")
    }
    there.customers.add("cus_A")
    assert send(biller, there, invoice)["delivered"]
    assert there.made == amounts(invoice)


def test_a_wrong_key_ends_it_at_once_and_is_nowhere_to_be_read(biller, there, caplog):
    caplog.set_level(logging.DEBUG)
    invoice = billed(biller)
    secret = "sk_test_another_that_is_wrong"
    wrong = Stripe(secret_key=secret, api_base=there.url)
    found = stripe_sending.send(biller.server, invoice["id"], wrong, stripe_customer="cus_A")
    assert [state for _, state, _ in stands(found)] == ["refused", "waiting", "waiting"]
    assert len(there.requests) == 1
    shown = [repr(wrong), repr(stripe_client.Client(wrong)), json.dumps(found), caplog.text]
    assert not [text for text in shown if secret in text or "nobody should store" in json.dumps(found)]
    assert secret.encode() not in biller.stored()
    assert secret not in str(there.requests[0][1:2])


def test_amounts_below_zero_are_sent_and_those_of_zero_are_not(biller, there):
    plan = biller.plan_of(biller.calls_at(volume()))
    license_id = biller.grant(plan=plan)
    device, other = biller.device(license_id), biller.device(biller.grant(plan=biller.plan_of(biller.calls("1"))))
    free = biller.device(biller.grant(plan=biller.plan_of(biller.calls("0"))))
    biller.use(device, 100, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    biller.finalize(biller.run()[0]["id"])
    biller.use(device, 50, at("2026-01-06"))  # late: all 150 are cheaper now
    biller.use(other, 1_000, at("2026-02-06"))
    biller.use(free, 9, at("2026-02-06"))
    biller.clock.now = MARCH
    (draft,) = biller.run()
    invoice = biller.finalize(draft["id"])
    minor = sorted(line["amount_minor"] for line in invoice["lines"])
    assert minor[0] < 0
    assert 0 in minor
    assert send(biller, there, invoice)["delivered"]
    assert sorted(item["amount"] for item in there.items) == [each for each in minor if each]


def volume():
    tiers = [
        {"up_to": 100, "unit_amount": "2", "flat_amount": "0"},
        {"up_to": None, "unit_amount": "0.5", "flat_amount": "0"},
    ]
    return {"model": "volume", "tiers": tiers}


@pytest.mark.parametrize(
    ("minor", "currency", "expected"),
    [
        (1234, "USD", 1234),
        (-5, "EUR", -5),
        (500, "JPY", 500),
        (5120, "KWD", 5120),
        (-10, "TND", -10),
        (5, "ISK", 500),
        (300, "MGA", 3),
        (10000, "HUF", 10000),
        (700, "TWD", 700),
    ],
)
def test_amounts_are_in_stripes_minor_units(minor, currency, expected):
    assert rated_lines.amount(minor, currency) == expected


@pytest.mark.parametrize(
    ("minor", "currency"),
    [(5124, "KWD"), (1, "BHD"), (150, "MGA"), (1000, "IQD"), (10000, "CLF"), (5, "UGX"), (5, "UYI"), (5, "XXX")],
)
def test_what_stripe_cannot_be_told_exactly_is_refused(minor, currency):
    assert refused(rated_lines.amount, minor, currency) == "currency_wrong"


def test_an_invoice_with_one_amount_that_stripe_does_not_take_is_not_sent_at_all(biller, there):
    plan = biller.plan_of(biller.calls("0.001"), currency="KWD")
    for device, units in [(biller.device(biller.grant(plan=plan)), units) for units in (10, 7)]:
        biller.use(device, units, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    invoice = biller.finalize(biller.run()[0]["id"])
    assert refused(send, biller, there, invoice) == "currency_wrong"
    assert there.requests == []


def test_a_draft_is_not_sent_and_a_customer_stays_who_it_is(biller, there):
    biller.use(biller.device(biller.grant(plan=biller.plan_of(biller.calls("0.01")))), 5, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    assert refused(send, biller, there, draft) == "state_conflict"
    invoice = biller.finalize(draft["id"])
    assert refused(send, biller, there, invoice, stripe_customer=None) == "malformed_members"
    assert refused(send, biller, there, {"id": "inv_no"}) == "not_found"
    assert not send(biller, there, invoice, stripe_customer="cus_typo")["delivered"]
    assert send(biller, there, invoice)["delivered"]
    assert refused(send, biller, there, invoice, stripe_customer="cus_B") == "state_conflict"


def test_a_target_of_raw_usage_takes_no_rated_lines_and_the_other_way_round(biller, there):
    invoice = billed(biller, licenses=1)
    events.export(biller.server, events.Asked(target="elsewhere"))
    assert refused(send, biller, there, invoice, target="elsewhere") == "target_conflict"
    assert there.requests == []
    send(biller, there, invoice)
    assert refused(events.export, biller.server, events.Asked(target="stripe")) == "target_conflict"


def test_an_answer_about_something_else_is_no_delivery(biller, there, monkeypatch):
    invoice = billed(biller, licenses=1)
    original = StripeStandIn._execute
    monkeypatch.setattr(there, "_execute", lambda params: original(there, params | {"amount": "7"}))
    found = send(biller, there, invoice)
    assert [(item["state"], item["error_code"]) for item in found["items"]] == [("refused", "answer_differs")]
    again = send(biller, there, invoice)
    assert [(item["state"], item["error_code"]) for item in again["items"]] == [("refused", "answer_differs")]
    assert len(there.items) == 1


def test_a_redirect_is_not_followed(biller, there, monkeypatch):
    invoice = billed(biller, licenses=1)
    elsewhere = StripeStandIn()
    location = {"Location": f"{elsewhere.url}/v1/invoiceitems"}
    monkeypatch.setattr(there, "answer", lambda *_: (307, {}, location))
    found = send(biller, there, invoice)
    elsewhere.stop()
    assert elsewhere.requests == []
    assert [item["state"] for item in found["items"]] == ["sending"]


def test_an_answer_that_is_not_stripes_is_no_delivery(biller, there, monkeypatch):
    invoice = billed(biller, licenses=1)
    monkeypatch.setattr(there, "answer", lambda *_: (200, [], {}))
    assert [item["state"] for item in send(biller, there, invoice)["items"]] == ["sending"]


def test_by_command(biller, there, monkeypatch):
    invoice = billed(biller)
    run = partial(biller.invoke, "--json", "billing", "send-stripe", invoice["id"])
    dry = json.loads(run("--dry-run").stdout)
    assert {item["state"] for item in dry["items"]} == {"waiting"}
    assert "target_unavailable" in run().stderr
    assert there.requests == []
    monkeypatch.setenv(STRIPE_KEY, KEY)
    monkeypatch.setenv(STRIPE_API, there.url)
    there.faults = [None, 429]
    cut = run("--stripe-customer", "cus_A")
    assert cut.exit_code == 1
    done = run()
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["delivered"]
    assert KEY not in cut.output + done.output


def test_settings_name_the_key_and_where_it_goes():
    assert settings.stripe({STRIPE_KEY: KEY}).api_base is None
    for base in ("https://stripe.example", "http://127.0.0.1:1", "http://localhost:12111", "http://[::1]:9"):
        assert settings.stripe({STRIPE_KEY: KEY, STRIPE_API: base}).api_base == base
    bad = (
        "http://stripe.example",
        "http://127.0.0.1.evil.example",
        "https://u:p@x.example",
        "ftp://localhost",
        "x",
        "http://[",
    )
    for base in bad:
        with pytest.raises(ServiceError) as error:
            settings.stripe({STRIPE_KEY: KEY, STRIPE_API: base})
        assert error.value.code == "target_unavailable"
        assert KEY not in str(error.value)
    for key in ("", "sk test", "sk_\n", "sk_ä"):
        assert refused(settings.stripe, {STRIPE_KEY: key}) == "target_unavailable"


def test_nothing_of_it_is_imported_until_it_is_used():
    program = "import sys, licensing_server.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not {"stripe", "requests"} & set(loaded.split())
    program = (
        "import sys; sys.modules['stripe'] = None; from licensing_server.billing.stripe_client import Client\n"
    )
    program += "from licensing_server.settings import Stripe; Client(Stripe(secret_key='x'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "install meterkit[stripe]" in done.stderr
