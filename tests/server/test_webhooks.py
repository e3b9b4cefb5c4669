"""Webhooks: told in the transaction of the fact, signed, delivered at least once, and never to the inside."""

import base64
import json
import threading
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa
from billing_fleet import FEBRUARY, at
from exchanging import refused
from fleet import Api
from serving import Serving
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from starlette.testclient import TestClient
from webhook_receiver import OK, Receiver, answer

from licensing_server.app import create_app
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import service as billing
from licensing_server.database import read, write
from licensing_server.pages import Page
from licensing_server.settings import WEBHOOK_HOSTS
from licensing_server.webhook_endpoints import delivering, exchange, outbox, service, store
from licensing_server.webhook_endpoints.exchange import Outcome

NOW = FEBRUARY
DAY = 86_400


@pytest.fixture
def biller(biller):
    biller.server = replace(biller.server, webhook_hosts=frozenset({"localhost"}))
    return biller


def tell(biller, *subjects, event="invoice.finalized"):
    """Something has happened, so many times."""
    for subject in subjects:
        with write(biller.server) as connection:
            outbox.announce(biller.server, connection, event, subject, {"invoice": subject})


def messages(biller, **named):
    return service.page_messages(biller.server, Page(limit=200), **named)["items"]


def endpoint(biller, receiver, **named):
    return service.create(biller.server, url=receiver.url(), **{"events": ["invoice.finalized"]} | named)


def deliver(biller):
    return delivering.deliver(biller.server)


# -- what is told


def test_a_life_of_a_month_is_told_once_each_in_the_transaction_of_the_fact(biller, receiver):
    made = endpoint(biller, receiver, events=list(outbox.EVENTS))
    device = biller.device(biller.grant(plan=biller.plan_of(biller.calls("0.01"))))
    biller.use(device, 100, at("2026-01-05"))
    copy = device.clone()
    biller.use(device, 1, at("2026-01-06"))
    biller.use(copy, 2, at("2026-01-06"))
    biller.clock.now = FEBRUARY
    (draft,) = biller.run()
    biller.run(cut_off=FEBRUARY)
    for _ in range(2):
        invoice = biller.finalize(draft["id"])
    told = {message["event"]: json.loads(message["body"]) for message in messages(biller)}
    assert len(messages(biller)) == 3
    (fork,) = biller.exceptions("fork")
    assert told["exception.opened"]["data"] == {
        "exception": fork["id"], "kind": "fork", "device": device.id, "license": fork["license"],
    }  # fmt: skip
    assert told["billing_run.finished"]["data"] == {"run": 1}
    assert told["invoice.finalized"] == {
        "type": "invoice.finalized",
        "timestamp": "2026-01-31T23:00:00Z",
        "data": {
            "invoice": invoice["id"],
            "number": "INV-000001",
            "customer": biller.customer,
            "currency": "EUR",
            "run": 1,
            "kind": "invoice",
            "total_minor": 103,
            "due_minor": 103,
        },
    }
    assert {message["endpoint"] for message in messages(biller)} == {made["id"]}


def test_what_does_not_stand_is_not_told(biller, receiver):
    endpoint(biller, receiver)

    def broken():
        with write(biller.server) as connection:
            outbox.announce(biller.server, connection, "invoice.finalized", "inv_1", {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert messages(biller) == []
    assert billing.dry_run(biller.server)["drafts"] == []
    assert messages(biller) == []


def test_an_endpoint_is_told_what_it_asked_for_from_then_on(biller, receiver):
    tell(biller, "inv_before")
    endpoint(biller, receiver, events=["exception.opened"])
    both = endpoint(biller, receiver, events=["exception.opened", "invoice.finalized"])
    tell(biller, "inv_1")
    tell(biller, "inv_1")
    service.switch(biller.server, both["id"], "disabled")
    tell(biller, "inv_2")
    assert [(each["endpoint"], each["subject"]) for each in messages(biller)] == [(both["id"], "inv_1")]


# -- how it is signed


def test_what_arrives_is_what_the_library_verifies(biller, receiver):
    biller.clock.now = int(time.time())
    made = endpoint(biller, receiver)
    tell(biller, "inv_ä")
    assert deliver(biller) == {"delivered": 1, "failed": 0, "dead": 0}
    (request,) = receiver.requests
    first, headers, body = request
    assert first == "POST /hooks?of=meterkit HTTP/1.1"
    assert (headers["host"], headers["content-type"]) == (f"localhost:{receiver.port}", "application/json")
    assert headers["user-agent"].startswith("meterkit/")
    assert Webhook(made["secret"]).verify(body, headers)["data"] == {"invoice": "inv_ä"}
    other = "whsec_" + base64.b64encode(b"x" * 32).decode()
    for secret, data in ((other, body), (made["secret"], body.replace(b"invoice", b"invoicf"))):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(data, headers)
    assert deliver(biller) == {"delivered": 0, "failed": 0, "dead": 0}


def test_after_a_new_secret_the_old_one_signs_along_for_a_day(biller, receiver):
    biller.clock.now = int(time.time())
    old = endpoint(biller, receiver)
    new = service.rotate(biller.server, old["id"])
    assert new["secret"] != old["secret"]
    tell(biller, "inv_1")
    deliver(biller)
    _, headers, body = receiver.requests[0]
    for made in (old, new):
        Webhook(made["secret"]).verify(body, headers)
    biller.clock.advance(service.OLD_SECRET_S)
    tell(biller, "inv_2")
    deliver(biller)
    assert [len(headers["webhook-signature"].split()) for _, headers, _ in receiver.requests] == [2, 1]


def test_secrets_are_sealed_and_shown_once(biller, receiver):
    made = endpoint(biller, receiver)
    secret = base64.b64decode(made["secret"].removeprefix("whsec_"))
    assert len(secret) == 32
    with read(biller.server) as connection:
        stored = store.find(connection, made["id"])
    assert stored.secret not in repr(stored)
    shown = [
        repr(stored),
        json.dumps(service.show(biller.server, made["id"])),
        json.dumps(service.page(biller.server, Page())),
        json.dumps(audit_log.page(biller.server, Page())),
        biller.stored().decode(),
    ]
    for text in shown:
        assert made["secret"] not in text
        assert secret.hex() not in text
        assert "secret" not in json.dumps(service.show(biller.server, made["id"]))
    assert delivering.open_secrets(biller.server, stored, NOW) == [secret]


# -- faults


def endless(connection):
    while True:
        connection.sendall(b"HTTP/1.1 100 Soon" + b"n" * 4_096)


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (answer(200), Outcome(status=200)),
        (answer(302, Location="https://localhost/elsewhere"), Outcome(status=302)),
        (answer(404), Outcome(status=404)),
        (answer(500), Outcome(status=500)),
        (answer(103) + answer(202), Outcome(status=202)),
        (answer(100) * 3 + answer(503), Outcome(status=503)),
        (b"", Outcome(failure="answer_bad")),
        (b"<html>hello</html>\r\n\r\n", Outcome(failure="answer_bad")),
        (b"HTTP/1.1 2000 Much\r\n\r\n", Outcome(failure="answer_bad")),
        (answer(100) * 2_000, Outcome(failure="answer_bad")),
        (b"HTTP/1.1 " + b"x" * 100_000, Outcome(failure="answer_bad")),
        (endless, Outcome(failure="answer_bad")),
    ],
)
def test_an_answer_is_its_status_and_is_read_no_further(receiver, reply, outcome):
    receiver.answers = [reply]
    assert exchange.post(receiver.url(), {}, b"{}", allowed={"localhost"}, seconds=5) == outcome
    assert receiver.connections == 1
    assert outcome.is_delivered == (outcome.status in {200, 202})


def drip(connection):
    while True:
        connection.sendall(b"HTTP/1.1 100 Soon\r\n\r\n")
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["no handshake", "silence", drip])
def test_one_deadline_holds_for_all_of_it(receiver, how):
    receiver.answers = [how]
    outcome = exchange.post(receiver.url(), {}, b"{}", allowed={"localhost"}, seconds=0.5)
    assert outcome == Outcome(failure="timed_out")  # drop by drop, the answer would else be too long in the end


def test_a_certificate_must_be_of_someone_who_is_trusted_and_for_the_name(receiver, tmp_path, monkeypatch):
    receiver_of_another_name = Receiver(tmp_path, "elsewhere.example", address="127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(receiver_of_another_name.certificate))
    for port in (receiver.port, receiver_of_another_name.port):
        url = f"https://{'127.0.0.1' if port == receiver.port else '127.0.0.2'}:{port}/"
        allowed = {"127.0.0.1", "127.0.0.2"}
        assert exchange.post(url, {}, b"{}", allowed=allowed, seconds=5) == Outcome(failure="certificate_wrong")
    receiver_of_another_name.stop()
    assert receiver.requests == receiver_of_another_name.requests == []


def test_what_fails_is_sent_again_by_the_schedule_and_ends_with_the_dead(biller, receiver):
    made = endpoint(biller, receiver)
    receiver.answers = [answer(500)]
    tell(biller, "inv_1")
    assert list(delivering.RETRIES_S) == [5, 20, 80, 320, 1_280, 5_120, 20_480, 81_920]
    for number, seconds in enumerate(delivering.RETRIES_S, start=1):
        assert deliver(biller) == {"delivered": 0, "failed": 1, "dead": 0}
        (message,) = messages(biller)
        assert (message["state"], message["attempts"], message["http_status"]) == ("waiting", number, 500)
        wait = message["due_at"] - biller.clock.now
        assert seconds <= wait <= seconds + seconds // 4
        biller.clock.advance(wait - 1)
        assert deliver(biller) == {"delivered": 0, "failed": 0, "dead": 0}
        biller.clock.advance(1)
    assert deliver(biller) == {"delivered": 0, "failed": 0, "dead": 1}
    assert len(receiver.requests) == 9
    assert len({headers["webhook-id"] for _, headers, _ in receiver.requests}) == 1
    (dead,) = messages(biller, state="dead", endpoint=made["id"])
    biller.clock.advance(DAY * 40)
    assert deliver(biller) == {"delivered": 0, "failed": 0, "dead": 0}
    receiver.answers = [OK]
    assert service.resend(biller.server, dead["id"])["state"] == "waiting"
    assert refused(service.resend, biller.server, dead["id"]) == "state_conflict"
    assert deliver(biller)["delivered"] == 1
    assert messages(biller, state="delivered")[0]["id"] == dead["id"]


def test_the_schedule_is_jittered(biller, receiver):
    receiver.answers = [answer(500)]
    for _ in range(6):
        endpoint(biller, receiver)
    tell(biller, "inv_1")
    with write(biller.server) as connection:
        connection.execute(sa.update(store.webhook_messages).values(attempts=6))
    deliver(biller)
    waits = {message["due_at"] - biller.clock.now for message in messages(biller)}
    assert len(waits) > 1
    assert min(waits) >= 20_480
    assert max(waits) <= 20_480 * 5 // 4


def test_an_endpoint_that_fails_is_asked_once_a_time_and_keeps_no_other_waiting(biller, receiver, tmp_path):
    failing = Receiver(tmp_path, like=receiver)
    failing.answers = [answer(500)]
    service.create(biller.server, url=failing.url(), events=["invoice.finalized"])
    endpoint(biller, receiver)
    tell(biller, "inv_1", "inv_2", "inv_3")
    assert deliver(biller) == {"delivered": 3, "failed": 1, "dead": 0}
    failing.answers = [OK]
    assert deliver(biller) == {"delivered": 2, "failed": 0, "dead": 0}
    biller.clock.advance(10)
    assert deliver(biller) == {"delivered": 1, "failed": 0, "dead": 0}
    failing.stop()
    assert (len(receiver.requests), len(failing.requests)) == (3, 4)


def test_a_delivery_that_dies_on_the_way_is_done_again_and_not_meanwhile(biller, receiver, monkeypatch):
    endpoint(biller, receiver)
    tell(biller, "inv_1")
    settle = delivering._settle
    monkeypatch.setattr(delivering, "_settle", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        deliver(biller)
    monkeypatch.setattr(delivering, "_settle", settle)
    assert deliver(biller)["delivered"] == 0
    assert 2 * exchange.TIMEOUT_S < delivering._TAKEN_S
    biller.clock.advance(delivering._TAKEN_S)
    assert deliver(biller)["delivered"] == 1
    first, second = receiver.requests
    assert first[1]["webhook-id"] == second[1]["webhook-id"]


def test_a_secret_that_cannot_be_opened_keeps_no_other_endpoint_waiting(biller, receiver):
    bad, good = endpoint(biller, receiver), endpoint(biller, receiver)
    with write(biller.server) as connection:
        store.update(connection, bad["id"], {"secret": store.find(connection, good["id"]).secret})
    tell(biller, "inv_1")
    assert deliver(biller) == {"delivered": 1, "failed": 1, "dead": 0}
    (failed,) = messages(biller, state="waiting")
    assert (failed["endpoint"], failed["failure"]) == (bad["id"], "internal_error")


def test_who_is_gone_is_told_nothing_more(biller, receiver):
    made = endpoint(biller, receiver)
    receiver.answers = [answer(410), OK]
    tell(biller, "inv_1")
    deliver(biller)
    assert service.show(biller.server, made["id"])["state"] == "disabled"
    last = audit_log.page(biller.server, Page(limit=200))["items"][-1]
    assert (last["who"], last["action"]) == ("server", "webhook_endpoint.disable")
    biller.clock.advance(DAY)
    assert deliver(biller)["delivered"] == 0
    service.switch(biller.server, made["id"], "enabled")
    assert deliver(biller)["delivered"] == 1


def test_what_was_delivered_is_forgotten_after_a_month(biller, receiver):
    endpoint(biller, receiver)
    tell(biller, "inv_1")
    deliver(biller)
    biller.clock.advance(delivering.KEPT_S)
    deliver(biller)
    assert len(messages(biller)) == 1
    biller.clock.advance(1)
    deliver(biller)
    assert messages(biller) == []


def test_allowing_one_host_allows_no_other(biller, receiver):
    made = service.create(biller.server, url=receiver.url(), events=["invoice.finalized"])
    biller.server = replace(biller.server, webhook_hosts=frozenset({"hooks.example", "localhost.example"}))
    tell(biller, "inv_1")
    assert deliver(biller)["failed"] == 1
    assert messages(biller, endpoint=made["id"])[0]["failure"] == "url_forbidden"
    assert receiver.connections == 0


# -- over HTTP and by command


def test_over_http(biller, receiver):
    with TestClient(create_app(biller.server), raise_server_exceptions=False) as client:
        api = Api(client, biller.made.api_key)
        asked = {"url": receiver.url(), "events": ["invoice.finalized"]}
        made = api.post("/v1/webhook-endpoints", asked, **{"idempotency-key": "a"})
        assert api.post("/v1/webhook-endpoints", asked, **{"idempotency-key": "a"}) == made
        assert made["secret"].startswith("whsec_")
        path = f"/v1/webhook-endpoints/{made['id']}"
        shown = {name: value for name, value in made.items() if name != "secret"}
        assert api.get(path) == shown
        assert api.get("/v1/webhook-endpoints")["items"] == [shown]
        assert api.post(f"{path}/rotate", {})["secret"] != made["secret"]
        assert api.post(f"{path}/disable", expect=200)["state"] == "disabled"
        assert api.post(f"{path}/enable", expect=200)["state"] == "enabled"
        tell(biller, "inv_1")
        deliver(biller)
        (message,) = api.get("/v1/webhook-messages", state="delivered", endpoint=made["id"])["items"]
        assert api.post(f"/v1/webhook-messages/{message['id']}/resend", expect=200)["attempts"] == 0
        api.post("/v1/webhook-messages/msg_no/resend", expect=404)
        api.get("/v1/webhook-endpoints/wep_no", expect=404)
        for bad in (
            {"url": receiver.url(), "events": ["x"]},
            {"url": receiver.url(), "events": []},
            {"url": 1, "events": []},
        ):
            api.post("/v1/webhook-endpoints", bad, expect=422)
        reader = api.post("/v1/api-keys", {"name": "r", "scopes": ["webhook-endpoints:read"]})["key"]
        seeing = Api(client, reader)
        seeing.get("/v1/webhook-messages")
        seeing.post("/v1/webhook-endpoints", asked, expect=403)
        seeing.post(f"{path}/rotate", {}, expect=403)
        other = Api(client, api.post("/v1/api-keys", {"name": "o", "scopes": ["billing:write"]})["key"])
        other.get("/v1/webhook-endpoints", expect=403)


def test_by_command(biller, receiver):
    def run(*arguments):
        done = biller.invoke("--json", *arguments)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    made = run("webhook-endpoint", "create", "https://hooks.example/x", "--event", "invoice.finalized")
    assert run("webhook-endpoint", "show", made["id"])["events"] == ["invoice.finalized"]
    assert len(run("webhook-endpoint", "list")["items"]) == 1
    assert run("webhook-endpoint", "rotate", made["id"])["secret"] != made["secret"]
    assert run("webhook-endpoint", "disable", made["id"])["state"] == "disabled"
    assert run("webhook-endpoint", "enable", made["id"])["state"] == "enabled"
    everything = endpoint(biller, receiver, events=list(outbox.EVENTS))
    tell(biller, "7", event="billing_run.finished")
    deliver(biller)
    (message,) = run("webhooks", "list", "--state", "delivered", "--endpoint", everything["id"])["items"]
    assert run("webhooks", "resend", message["id"])["state"] == "waiting"
    run("webhook-endpoint", "disable", everything["id"])
    assert run("webhooks", "deliver") == {"delivered": 0, "failed": 0, "dead": 0}
    assert biller.invoke("webhook-endpoint", "create", "https://127.0.0.1/").exit_code == 1


def test_a_serving_process_delivers_too_with_the_hosts_that_its_settings_name(
    biller, receiver, tmp_path, monkeypatch
):
    monkeypatch.setenv(WEBHOOK_HOSTS, "localhost")
    made = endpoint(biller, receiver)
    tell(biller, "inv_1")
    arrived = threading.Event()
    receiver.answers = [lambda connection: (connection.sendall(OK), arrived.set())]
    serving = Serving(biller, tmp_path, "--deliver-webhooks")
    serving.start()
    try:
        assert arrived.wait(60)
    finally:
        serving.close()
    _, headers, body = receiver.requests[0]
    assert Webhook(made["secret"]).verify(body, headers)["data"] == {"invoice": "inv_1"}
