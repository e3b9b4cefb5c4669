"""Raw usage for other systems: one CloudEvent for each record that billing counts."""

import json

import pytest
from billing_fleet import FEBRUARY, MARCH, at
from exchanging import refused
from fleet import Api, Fleet
from starlette.testclient import TestClient

from licensing_server import targets
from licensing_server.app import create_app
from licensing_server.database import write
from licensing_server.usage import deciding, events
from licensing_server.usage.deciding import Resolution
from licensing_server.usage.events import Asked
from meterkit.canonical import from_canonical

IMPLAUSIBLE = 10**6 * 900 + 1


@pytest.fixture
def license_id(biller):
    return biller.grant(plan=biller.plan_of(biller.calls("0.01")))


@pytest.fixture
def device(biller, license_id):
    return biller.device(license_id)


def exported(biller: Fleet, form: events.Form = "lines", **asked) -> bytes:
    return b"".join(events.export(biller.server, Asked(**asked)).written(form))


def read(biller: Fleet, **asked) -> list[dict]:
    lines = exported(biller, **asked).splitlines()
    return [from_canonical(line, bytes_max=4096) for line in lines]


def units(biller: Fleet, **asked) -> list[int]:
    return sorted(event["data"]["units"] for event in read(biller, **asked))


def test_a_record_is_an_event_with_the_names_that_cloudevents_gives(biller, license_id, device):
    biller.use(device, 7, at("2026-01-05"))
    (event,) = read(biller)
    assert {name: value for name, value in event.items() if name != "id"} == {
        "specversion": "1.0",
        "type": "meterkit.usage",
        "source": "urn:meterkit:usage:Example%20Vision",
        "time": "2026-01-04T23:00:00Z",
        "subject": license_id,
        "datacontenttype": "application/json",
        "data": {
            "customer": biller.customer,
            "license": license_id,
            "device": device.id,
            "model": "detector",
            "unit": "call",
            "units": 7,
        },
    }
    (of_customer,) = read(biller, subject="customer")
    assert of_customer == event | {"subject": biller.customer}


def test_an_id_is_the_records_own_whatever_is_exported_with_it(biller, device):
    for day in (5, 6, 20):
        biller.use(device, day, at(f"2026-01-{day:02}"))
    everything = {event["data"]["units"]: event["id"] for event in read(biller)}
    assert len(set(everything.values())) == 3
    assert all(len(each) == 64 for each in everything.values())
    few = read(biller, from_at=at("2026-01-06"), to_at=at("2026-01-20"))
    assert [(event["data"]["units"], event["id"]) for event in few] == [(6, everything[6])]


def test_the_same_export_twice_is_the_same_bytes_whatever_came_since(biller, device):
    for number in range(1, 40):
        biller.use(device, number, at("2026-01-05") + 900 * number)
    first = events.export(biller.server, Asked(period="2026"))
    known = {"through": first.scope.through, "run": first.scope.run}
    data = b"".join(first.written("lines"))
    assert data == exported(biller, period="2026")
    biller.use(device, 99, at("2026-01-09"))
    assert exported(biller, period="2026") != data
    assert exported(biller, period="2026", **known) == data
    assert len(data.splitlines()) == 39


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7])
def test_it_is_read_in_pieces_and_nothing_is_lost_between_them(biller, license_id, piece, monkeypatch):
    other = biller.grant(plan=biller.plan_of(biller.calls("0.01")))
    devices = [biller.device(each) for each in (license_id, license_id, other)]
    for number in range(2):
        for device in devices:
            biller.use(device, 1 + number, at("2026-01-05") + 900 * number)
    whole = exported(biller)
    of_each = [exported(biller, license_id=each) for each in (license_id, other)]
    monkeypatch.setattr(events, "_PIECE_RECORDS", piece)
    read_at_once = []
    original = events.event_store.read
    monkeypatch.setattr(
        events.event_store,
        "read",
        lambda *args: read_at_once.append(original(*args)) or read_at_once[-1],
    )
    assert exported(biller) == whole
    assert [exported(biller, license_id=each) for each in (license_id, other)] == of_each
    assert whole in (b"".join(of_each), b"".join(reversed(of_each)))
    assert len(whole.splitlines()) == 6
    assert max(map(len, read_at_once)) == min(piece, 6)


def test_devices_go_on_handing_over_while_an_export_is_half_taken(biller, device, monkeypatch):
    monkeypatch.setattr(events, "_PIECE_RECORDS", 1)
    for number in range(3):
        biller.use(device, 1 + number, at("2026-01-05") + 900 * number)
    taking = events.export(biller.server, Asked()).written("lines")
    parts = [next(taking)]
    biller.use(device, 50, at("2026-01-09"))
    parts += taking
    assert sorted(json.loads(part)["data"]["units"] for part in parts) == [1, 2, 3]


def test_a_period_is_the_customers_or_in_utc(biller, device):
    biller.use(device, 1, FEBRUARY)  # midnight in Berlin: still January in UTC
    biller.use(device, 2, at("2026-02-15"))
    biller.use(device, 4, MARCH)
    assert units(biller, period="2026-02", customer=biller.customer) == [1, 2]
    assert units(biller, period="2026-02") == [2, 4]
    assert units(biller, from_at=FEBRUARY, to_at=MARCH) == [1, 2]


def test_only_what_is_asked_for_leaves(biller, license_id, device):
    other = biller.add_customer()
    others = biller.device(biller.grant(customer=other, plan=biller.plan_of(biller.calls("0.01"))))
    biller.use(device, 1, at("2026-01-05"))
    biller.use(others, 2, at("2026-01-05"))
    assert units(biller) == [1, 2]
    assert units(biller, license_id=license_id) == [1]
    assert units(biller, customer=other) == [2]
    assert refused(events.export, biller.server, Asked(license_id="lic_no")) == "not_found"
    assert refused(events.export, biller.server, Asked(customer="cus_no")) == "not_found"


def test_what_is_set_aside_leaves_when_it_is_released(biller, device):
    biller.use(device, 3, at("2026-01-05"))
    biller.use(device, IMPLAUSIBLE, at("2026-01-06"))
    biller.clock.now = FEBRUARY
    biller.run()
    assert units(biller) == [3]
    (found,) = biller.exceptions("implausible_rate")
    deciding.resolve(biller.server, found["id"], Resolution(how="it was", outcome="release"))
    assert units(biller) == [3, IMPLAUSIBLE]
    assert units(biller, run=1) == [3]


def test_of_a_fork_each_branch_leaves_once_and_a_dismissed_one_not(biller, device):
    biller.use(device, 10, at("2026-01-05"))
    copy, living = device.clone(), device.live_copy()
    biller.use(device, 20, at("2026-01-06"))  # counts 10 to 30
    biller.use(copy, 7, at("2026-01-06"))
    biller.use(living, 25, at("2026-01-07"))  # counts 10 to 35: 5 are new
    assert units(biller) == [5, 7, 10, 20]
    found = next(each for each in biller.exceptions("fork") if copy.position.head in str(each["evidence"]))
    done = Resolution(how="a test", outcome="dismiss_branch", branch=copy.position.head)
    deciding.resolve(biller.server, found["id"], done)
    assert units(biller) == [5, 10, 20]
    assert sum(units(biller)) == biller.units(biller.exceptions()[0]["license"])


def test_what_repeats_whole_and_what_is_only_unsettled_is_no_event(biller, device):
    biller.use(device, 10, at("2026-01-05"))
    copy = device.live_copy()
    biller.use(device, 20, at("2026-01-06"))
    biller.use(copy, 20, at("2026-01-07"))
    biller.use(copy, 0, at("2026-01-08"), unsettled=30)
    assert units(biller) == [10, 20]


def test_a_batch_is_one_json_array_of_the_same_events(biller, device):
    assert exported(biller, "batch") == b"[]\n"
    assert exported(biller, "lines") == b""
    for number in range(3):
        biller.use(device, 1 + number, at("2026-01-05") + 900 * number)
        assert json.loads(exported(biller, "batch")) == read(biller)


@pytest.mark.parametrize(
    "asked",
    [
        {"period": "2026-13"},
        {"period": "2026", "from_at": 1},
        {"from_at": 2, "to_at": 2},
        {"through": 1},
        {"run": 2},
    ],
)
def test_what_cannot_be_exported_is_refused(biller, asked):
    assert refused(events.export, biller.server, Asked(**asked)) == "malformed_members"


def test_a_target_takes_raw_usage_or_rated_lines(biller):
    def claim(name, takes):
        with write(biller.server) as connection:
            targets.claim(biller.server, connection, name, takes)

    events.export(biller.server, Asked(target="openmeter"))
    events.export(biller.server, Asked(target="openmeter"))
    claim("openmeter", "usage")
    assert refused(claim, "openmeter", "lines") == "target_conflict"
    claim("stripe", "lines")
    assert refused(events.export, biller.server, Asked(target="stripe")) == "target_conflict"
    assert refused(events.export, biller.server, Asked(target="a b")) == "malformed_members"
    log = json.loads(biller.invoke("--json", "audit-log", "list", "--action", "export_target.create").stdout)
    assert [(each["subject"], each["body"]) for each in log["items"]] == [
        ("openmeter", {"takes": "usage"}),
        ("stripe", {"takes": "lines"}),
    ]


def test_by_command_and_over_http_it_is_the_same(biller, device, tmp_path):
    for number in range(3):
        biller.use(device, 1 + number, at("2026-01-05") + 900 * number)
    path = tmp_path / "usage.jsonl"
    done = biller.invoke("usage", "export", "--period", "2026-01", "--output", path)
    assert done.exit_code == 0, done.output
    assert done.stderr == "--through 3 --run 1\n"
    assert path.read_bytes() == exported(biller, period="2026-01")
    printed = biller.invoke("usage", "export", "--form", "batch", "--subject", "customer")
    with TestClient(create_app(biller.server), raise_server_exceptions=False) as client:
        headers = Api(client, biller.made.api_key).headers
        lines = client.get("/v1/usage/events", params={"period": "2026-01", "form": "lines"}, headers=headers)
        batch = client.get("/v1/usage/events", params={"subject": "customer"}, headers=headers)
        bad = client.get("/v1/usage/events", params={"period": "x"}, headers=headers)
        assert client.get("/v1/usage/events").status_code == 401
    assert lines.content == path.read_bytes()
    assert (lines.headers["content-type"], lines.headers["meterkit-through"]) == ("application/jsonl", "3")
    assert batch.content == printed.stdout_bytes
    assert batch.headers["content-type"] == "application/cloudevents-batch+json"
    assert (bad.status_code, bad.json()["code"]) == (422, "malformed_members")


def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(biller, tmp_path):
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b"of last month")
    assert biller.invoke("usage", "export", "--period", "2026-99", "--output", path).exit_code == 1
    assert path.read_bytes() == b"of last month"


def test_an_events_id_comes_from_the_record_and_from_nothing_else():
    row = {"device": "d", "epoch": "e", "seq": 1, "hash": "h", "customer": "c", "license": "l", "model": "m"}

    class Row:
        def __init__(self, **values):
            self.__dict__ |= row | {"unit": "call", "units": 1, "service_at": 0} | values

    made = events._event(Row(), "urn:x", "license")
    assert events._event(Row(units=5), "urn:x", "license")["id"] == made["id"]
    for name, other in (("device", "x"), ("epoch", "x"), ("seq", 2), ("hash", "x")):
        assert events._event(Row(**{name: other}), "urn:x", "license")["id"] != made["id"]
