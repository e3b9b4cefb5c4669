"""Every decision is logged where it was taken, and the log shows whether anybody touched it."""

import json
import threading

import pytest
import sqlalchemy as sa
from exchanging import refused
from fleet import DIGEST, PLAN, Api

from licensing_server.api_keys import service as api_keys
from licensing_server.audit_log import chain, service
from licensing_server.audit_log.store import audit_log
from licensing_server.database import read, write
from licensing_server.licenses import service as licenses
from licensing_server.pages import Page


def entries(fleet, **named):
    return service.page(fleet.server, Page(limit=200), **named)["items"]


def actions(fleet, **named):
    return [each["action"] for each in entries(fleet, **named)]


def broken(fleet, **named):
    found = service.verify(fleet.server, **named)
    assert found["holds"] is (found["broken"] is None)
    return found["broken"] and found["broken"]["seq"]


def tamper(fleet, statement):
    with write(fleet.server) as connection:
        connection.execute(statement)


def test_a_server_begins_its_log_with_its_first_key(fleet):
    first = entries(fleet)[0]
    assert (first["seq"], first["action"], first["who"]) == (1, "api_key.create", "command")
    assert first["body"]["scopes"] == ["admin"]
    assert first["prev"] == "0" * 64
    assert broken(fleet) is None


def test_every_decision_over_http_is_logged_with_the_key_that_took_it(api, fleet):
    since = len(entries(fleet))
    api.post("/v1/products", {"name": "drone"})
    api.post("/v1/products/drone/models", {"name": "eye", "unit": "call", "sha256": [DIGEST]})
    api.post("/v1/products/drone/models/eye/digests", {"sha256": "ab" * 32})
    plan = api.post("/v1/plans", {"name": "gold", "body": PLAN})["id"]
    api.post(f"/v1/plans/{plan}/versions", {"body": PLAN})
    customer = api.post("/v1/customers", {"name": "ACME"})["id"]
    asked = {"customer": customer, "plan": plan, "product": "drone", "models": [{"name": "eye"}]}
    license_id = api.post("/v1/licenses", asked)["id"]
    code = api.post(f"/v1/licenses/{license_id}/codes", {})
    api.post(f"/v1/licenses/{license_id}/suspend", expect=200)
    api.post(f"/v1/licenses/{license_id}/suspend", expect=200)  # nothing new was decided
    api.post(f"/v1/licenses/{license_id}/resume", expect=200)
    key = api.post("/v1/api-keys", {"name": "k", "scopes": ["usage:read"]})
    api.post(f"/v1/api-keys/{key['id']}/revoke", expect=200)
    api.post(f"/v1/api-keys/{key['id']}/revoke", expect=200)
    api.post(f"/v1/licenses/{license_id}/revoke", expect=200)
    api.post("/v1/billing-runs", {"cut_off": fleet.clock.now})
    new = entries(fleet)[since:]
    assert [each["action"] for each in new] == [
        "product.create", "model.create", "model.add_digest", "plan.create", "plan.add_version", "customer.create",
        "license.grant", "code.create", "license.state", "license.state", "api_key.create", "api_key.revoke",
        "license.revoke", "billing_run.start",
    ]  # fmt: skip
    assert {each["who"] for each in new} == {fleet.made.api_key.removeprefix("mk_").partition(".")[0]}
    assert entries(fleet, subject=license_id)[0]["body"]["customer"] == customer
    assert broken(fleet) is None
    with read(fleet.server) as connection:
        text = str(connection.execute(sa.select(audit_log)).all())
    assert code["code"].partition(".")[2] not in text
    assert key["key"].partition(".")[2] not in text


def test_what_was_refused_or_asked_for_twice_is_not_logged_again(api, fleet):
    before = len(entries(fleet))
    for _ in range(2):
        api.post("/v1/customers", {"name": "one"}, **{"idempotency-key": "k"})
    api.post("/v1/products", {"name": "camera"}, expect=409)
    assert actions(fleet)[before:] == ["customer.create"]


def test_what_a_licenses_own_rule_decides_is_the_servers(fleet):
    device = fleet.device(fleet.grant(fork_policy="hold"))
    other = fleet.device(fleet.grant(fork_policy="suspend"))
    for each in (device, other):
        clone = each.clone()
        each.use(1)
        clone.use(2)
        each.sync()
        clone.sync()
    assert [(each["action"], each["subject"]) for each in entries(fleet, who="server")] == [
        ("device.hold", device.id),
        ("license.state", other.token.license_id),
    ]


def test_decisions_taken_at_once_make_one_chain(fleet):
    license_id = fleet.grant()
    start, failures = threading.Barrier(6), []

    def decide(number):
        try:
            start.wait()
            for _ in range(5):
                licenses.create_code(fleet.server, license_id, expires_at=number + 1)
        except Exception as error:  # noqa: BLE001 - whatever it was, the test must fail
            failures.append(error)

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert actions(fleet).count("code.create") == 30
    assert [each["seq"] for each in entries(fleet)] == list(range(1, len(entries(fleet)) + 1))
    assert broken(fleet) is None


CHANGES = {
    "at": 5,
    "who": "somebody",
    "action": "license.grant2",
    "subject": "lic_other",
    "body": '{"customer":"cus_other"}',
    "prev": "ab" * 32,
    "hash": "ab" * 32,
}


@pytest.mark.parametrize("column", CHANGES)
def test_the_first_entry_that_was_changed_is_named(fleet, column):
    tamper(fleet, sa.update(audit_log).where(audit_log.c.seq == 3).values({column: CHANGES[column]}))
    assert broken(fleet) == 3


@pytest.mark.parametrize("body", ['{"b":1, "a":2}', "no json", "1.5", '{"a":1e3}'])
def test_a_body_that_nobody_could_have_logged_is_named(fleet, body):
    tamper(fleet, sa.update(audit_log).where(audit_log.c.seq == 2).values(body=body))
    assert broken(fleet) == 2
    assert entries(fleet)[1]["body"] in (body, 1.5)


def test_an_entry_that_follows_another_one_than_stands_before_it_is_named(fleet):
    own = entries(fleet)[2]
    members = {name: own[name] for name in ("at", "who", "action", "subject", "body")}
    made = chain.make(chain.Link(seq=2), **members)
    values = {"prev": made.prev, "hash": made.hash}
    tamper(fleet, sa.update(audit_log).where(audit_log.c.seq == 3).values(values))
    assert broken(fleet) == 3


@pytest.mark.parametrize("seq", [1, 3])
def test_an_entry_taken_out_is_named(fleet, seq):
    tamper(fleet, sa.delete(audit_log).where(audit_log.c.seq == seq))
    assert broken(fleet) == seq


def test_an_end_cut_off_is_named_and_nothing_is_decided_on_top_of_it(fleet):
    last = len(entries(fleet))
    tamper(fleet, sa.delete(audit_log).where(audit_log.c.seq == last))
    assert broken(fleet) == last
    assert refused(fleet.grant) == "audit_log_broken"


def test_a_log_rewritten_whole_is_told_by_what_was_noted_elsewhere(fleet):
    noted = chain.Link(**service.verify(fleet.server)["last"])
    last, rewritten = chain.Link(), []
    for each in entries(fleet):
        members = {name: each[name] for name in ("at", "who", "action", "subject", "body")}
        made = chain.make(last, **members | {"who": "somebody"})
        rewritten.append(made)
        last = chain.Link(seq=made.seq, hash=made.hash)
    for made in rewritten:
        values = {"who": made.who, "prev": made.prev, "hash": made.hash}
        tamper(fleet, sa.update(audit_log).where(audit_log.c.seq == made.seq).values(values))
    assert broken(fleet) is None
    assert broken(fleet, noted=noted) == noted.seq
    assert broken(fleet, noted=chain.Link(seq=999, hash=noted.hash)) == last.seq + 1
    fleet.grant()
    assert broken(fleet, noted=last) is None


def test_the_log_is_read_with_a_scope_of_its_own(client, fleet):
    for scope, status in (("audit-log:read", 200), ("licenses:write", 403)):
        key = api_keys.create(fleet.server, name="k", scopes=[scope])["key"]
        own = Api(client, key)
        own.get("/v1/audit-log", expect=status)
        own.get("/v1/audit-log/verification", expect=status)


def test_the_log_over_http_comes_in_pages_and_is_verified_there(api):
    first = api.get("/v1/audit-log", limit=2)
    assert [each["seq"] for each in first["items"]] == [1, 2]
    assert api.get("/v1/audit-log", limit=2, cursor=first["next"])["items"][0]["seq"] == 3
    found = api.get("/v1/audit-log/verification")
    noted = f"{found['last']['seq']}:{found['last']['hash']}"
    assert api.get("/v1/audit-log/verification", noted=noted)["holds"] is True
    for wrong in ("x", "1:", "-1:" + "0" * 64, "1:zz"):
        assert api.get("/v1/audit-log/verification", noted=wrong, expect=422)["code"] == "malformed_members"


def test_the_commands_say_the_same_and_end_with_one_where_it_does_not_hold(fleet):
    def run(*arguments):
        return fleet.invoke("--json", "audit-log", *arguments)

    listed = json.loads(run("list", "--action", "plan.create").stdout)["items"]
    assert listed == entries(fleet, action="plan.create")
    good = run("verify")
    assert (good.exit_code, json.loads(good.stdout)) == (0, service.verify(fleet.server))
    tamper(fleet, sa.update(audit_log).where(audit_log.c.seq == 2).values(who="x"))
    bad = run("verify")
    assert (bad.exit_code, json.loads(bad.stdout)["broken"]["seq"]) == (1, 2)
