"""A fleet's month as it lies in the database, written there set by set: nobody signed it, and no run asks that.

Devices sync some times a month, and one after the other, whatever license they have: so the records of one license
lie all over the table, as they do where they came in one by one.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from fleet import DIGEST, MODEL, PRODUCT, Fleet

from licensing_server.catalog import service as catalog
from licensing_server.customers import service as customers
from licensing_server.database import insert_all, write
from licensing_server.devices.ledger_store import heads
from licensing_server.devices.store import devices
from licensing_server.devices.token_store import tokens
from licensing_server.usage.store import ACCEPTANCE, batches, usage_records

SIZES = {"devices": 100_000, "days": 30, "customers": 1_000, "syncs": 4}
MODELS = (MODEL, "classifier")
JANUARY = 1_767_222_000  # 2026-01-01 in Berlin
DAY = 86_400
_AT_ONCE = 20_000
_CALL = {
    "model": "graduated",
    "tiers": [{"up_to": 100_000, "unit_amount": "0.002"}, {"up_to": None, "unit_amount": "0.001"}],
}
_FEE = {"id": "fee", "type": "recurring", "per": "license", "due": "advance", "from_period": 0}


def sizes() -> dict[str, int]:
    """How large the fleet is: METERKIT_BENCH_DEVICES and so on say otherwise."""
    return {name: int(os.environ.get(f"METERKIT_BENCH_{name.upper()}", size)) for name, size in SIZES.items()}


def build(fleet: Fleet, size: dict[str, int]) -> int:
    """Write it; gives how many usage records there are. The month is over, and its last syncs have come."""
    licenses = _sold(fleet, size["customers"])
    fleet.clock.now = JANUARY + 32 * DAY
    ledgers = [
        (
            number,
            f"dev_{_name('device', number)[:43]}",
            f"ep_{_name('epoch', number)[:26]}",
            licenses[number % len(licenses)],
        )
        for number in range(size["devices"])
    ]
    with write(fleet.server) as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -1000000")
        _insert_ledgers(connection, ledgers, size)
        _insert_records(connection, ledgers, size)
        made = "INSERT INTO counters (name, value) VALUES ('{}', {})"
        connection.exec_driver_sql(made.format(ACCEPTANCE, size["devices"] * size["syncs"]))
    fleet.close()
    with fleet.server.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
        return int(connection.exec_driver_sql("SELECT count(*) FROM usage_records").scalar_one())


def _name(what: str, number: int) -> str:
    return hashlib.sha256(f"{what} {number}".encode()).hexdigest()


def _sold(fleet: Fleet, count: int) -> list[str]:
    """A license for each customer, through the services, with two meters that cost by tiers, and a fee."""
    server = fleet.server
    fleet.clock.now = JANUARY
    catalog.create_model(
        server, product=PRODUCT, name=MODELS[1], unit="call", axis=None, sha256=[hashlib.sha256(b"2").hexdigest()]
    )
    usage = [
        {"id": name, "type": "usage", "meter": {"model": name, "unit": "call"}, "price": _CALL} for name in MODELS
    ]
    fee = {**_FEE, "price": {"model": "flat", "amount": "49"}}
    body = {"v": 1, "currency": "EUR", "interval": "month", "charges": [*usage, fee]}
    plan = catalog.create_plan(server, name="tiers", body=body)["id"]
    grant = {"token_units_max": 10**6, "pool_units": None, "pool_per": "license"}
    models = tuple({"name": name, **grant} for name in MODELS)
    named = (customers.create(server, name=f"C{n}", time_zone="Europe/Berlin")["id"] for n in range(count))
    return [fleet.grant(customer=each, plan=plan, models=models, devices_max=10**6) for each in named]


def _pieces(rows: list[Any]) -> Iterator[list[Any]]:
    return (rows[at : at + _AT_ONCE] for at in range(0, len(rows), _AT_ONCE))


def _insert_ledgers(connection: sa.Connection, ledgers: list[tuple], size: dict[str, int]) -> None:
    """Devices, and for each of their syncs a batch, a checkpoint and a token."""
    for some in _pieces(ledgers):
        insert_all(connection, devices, [_device(device, license_id) for _, device, _, license_id in some])
    for sync in range(size["syncs"]):
        for some in _pieces(ledgers):
            rows = [_of_sync(each, sync, size) for each in some]
            insert_all(connection, batches, [row[0] for row in rows])
            insert_all(connection, heads, [row[1] for row in rows])
            insert_all(connection, tokens, [row[2] for row in rows])


def _device(device: str, license_id: str) -> dict[str, Any]:
    text = dict.fromkeys(("sign_key", "seal_key", "activation_request", "sdk", "runtime", "platform"), "x")
    count = dict.fromkeys(("serial", "serial_seen", "seen_at", "revision", "activated_at"), 0)
    return {
        "id": device,
        "product": PRODUCT,
        "license": license_id,
        "state": "active",
        "held": False,
        **text,
        **count,
    }


def _days(sync: int, size: dict[str, int]) -> tuple[int, int]:
    """Which days a sync brings."""
    return size["days"] * sync // size["syncs"], size["days"] * (sync + 1) // size["syncs"]


def _of_sync(ledger: tuple, sync: int, size: dict[str, int]) -> tuple[dict[str, Any], ...]:
    number, device, epoch, license_id = ledger
    first, last = _days(sync, size)
    acceptance, at = sync * size["devices"] + number + 1, JANUARY + last * DAY
    seqs = [1 if sync == 0 else 3 + 2 * first, 2 + 2 * last]
    head = _name(f"head {sync}", number)
    place = {"device": device, "epoch": epoch}
    batch = {"from_seq": seqs[0], "to_seq": seqs[1], "prev": "0" * 64, "head": head, "first_new": seqs[0]}
    batch |= {"parent": acceptance - size["devices"] if sync else None, "license": license_id, "through": at}
    checkpoint = {"seq": seqs[1], "head": head, "totals": "[]", "last_token_jti": _name("jti", number)}
    checkpoint |= {"last_token_serial": 1, "last_token_iat": JANUARY, "last_token_license": license_id}
    jti = f"tok_{_name(f'token {sync}', number)[:26]}"
    token = {
        "jti": jti,
        **place,
        "license": license_id,
        "serial": sync + 1,
        "iat": at,
        "nbf": at,
        "exp": at + 30 * DAY,
    }
    token |= {"grace_s": 7 * DAY, "anchor_seq": seqs[1], "anchor_head": head, "anchor_accepted": True}
    return (
        {"acceptance": acceptance, **place, **batch, "made_at": at, "received_at": at, "body": b"\x00" * 1_000},
        {**place, **checkpoint, "is_tip": sync == size["syncs"] - 1, "through": at, "acceptance": acceptance},
        {**token, "superseded": sync < size["syncs"] - 1, "runs_on": False, "body": "x" * 600},
    )


def _insert_records(connection: sa.Connection, ledgers: list[tuple], size: dict[str, int]) -> None:
    """One record a day and meter, by one statement; indexes are made afterwards, which is faster."""
    connection.exec_driver_sql(
        "CREATE TEMPORARY TABLE bench_ledgers (n INTEGER, device TEXT, epoch TEXT, license TEXT)"
    )
    connection.exec_driver_sql("CREATE TEMPORARY TABLE bench_days (sync INTEGER, day INTEGER)")
    connection.exec_driver_sql("CREATE TEMPORARY TABLE bench_models (m INTEGER, model TEXT)")
    days = [(sync, day) for sync in range(size["syncs"]) for day in range(*_days(sync, size))]
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    for name, rows in (("ledgers", ledgers), ("days", days), ("models", list(enumerate(MODELS)))):
        marks = ", ".join([mark] * len(rows[0]))
        connection.exec_driver_sql(f"INSERT INTO bench_{name} VALUES ({marks})", rows)  # noqa: S608
    indexes = sorted(usage_records.indexes, key=lambda index: str(index.name))
    for index in indexes:
        index.drop(connection)
    columns = _columns(connection.dialect.name, size)
    connection.execute(
        sa.text(
            f"INSERT INTO usage_records ({', '.join(columns)}) SELECT {', '.join(columns.values())}"  # noqa: S608
            " FROM bench_days d CROSS JOIN bench_ledgers l CROSS JOIN bench_models m"
            " ORDER BY d.sync, l.n, d.day, m.m"
        )
    )
    for index in indexes:
        index.create(connection)
    for name in ("ledgers", "days", "models"):
        connection.exec_driver_sql(f"DROP TABLE bench_{name}")


def _columns(dialect: str, size: dict[str, int]) -> dict[str, str]:
    """What each column of a record is made of."""
    at = f"({JANUARY} + d.day * {DAY} + (l.n * 37 % 96) * 900)"
    seq = "3 + d.day * 2 + m.m"
    digest = (
        "lower(hex(randomblob(32)))"
        if dialect == "sqlite"
        else "md5(l.device || d.day || m.m) || md5(l.epoch || d.day)"
    )
    false = "0" if dialect == "sqlite" else "false"
    return {
        "device": "l.device", "epoch": "l.epoch", "seq": seq, "hash": digest, "prev": digest,
        "license": "l.license",
        "token": "'tok_' || substr(l.epoch, 4)", "model": "m.model", "unit": "'call'", "digest": f"'{DIGEST}'",
        "units": "100 + (l.n * 31 + d.day * 17 + m.m) % 900", "unsettled": "0", '"window"': f"{at} / 900",
        "provisional": false, "service_at": at, "shifted": false, "flags": "'[]'", "recorded_at": f"{at} + 900",
        "acceptance": f"d.sync * {size['devices']} + l.n + 1", "quarantined": false, "repeated": "0",
    }  # fmt: skip
