"""A whole fleet comes back at once, and a server is never idle: how long they wait, and what it keeps in memory.

The devices are entered into the database as activations leave them: fifty thousand of those would take longer than
what is measured.
"""

import itertools
import os
from contextlib import ExitStack
from pathlib import Path

import psutil
from fleet import FakeDevice, Fleet
from harness import Row
from ingest import fleet_on, send
from serving import Serving

from licensing_server.database import insert_all, write
from licensing_server.devices import store as device_store
from licensing_server.devices.store import devices
from licensing_server.devices.token_store import token_limits, tokens

DEVICES = int(os.environ.get("METERKIT_BENCH_DEVICES", "50000"))
BATCHES = int(os.environ.get("METERKIT_BENCH_BATCHES", "100000"))
CONNECTIONS = 64
PIECE = 78 * CONNECTIONS
TURNS = 8  # batches of one device


def rows() -> list[Row]:
    """On PostgreSQL, with two server processes; and what one process holds after many small batches."""
    return [come_back(), keep_on()]


def come_back() -> Row:
    """Each device hands over three records, all of them one after the other over 64 connections."""
    with fleet_on("postgresql") as (fleet, work), ExitStack() as stack:
        made = enter(fleet, DEVICES)
        for device in made:
            device.install()
            device.use(3)
        requests = deal(work, [device.batch().encode() for device in made])
        sent = send([serve(stack, fleet, work).url for _ in range(2)], requests, connections=CONNECTIONS)
    what = f"{DEVICES} devices come back over {CONNECTIONS} connections, PostgreSQL, 2 processes: p99"
    values = {"p50_ms": sent["p50_ms"], "seconds": sent["seconds"], "per_s": DEVICES / sent["seconds"]}
    return Row(what, sent["p99_ms"], None, DEVICES, unit="ms", values=values)


def keep_on() -> Row:
    """Batches of one record, piece by piece: the process's memory at the end ÷ after a tenth of them."""
    with fleet_on("postgresql") as (fleet, work), ExitStack() as stack:
        serving = serve(stack, fleet, work)
        # So many that few tokens of each are to come, and that each keeps to one connection.
        made = enter(fleet, (BATCHES // TURNS // CONNECTIONS + 1) * CONNECTIONS)
        for device in made:
            device.install()
        memory = []
        turn = itertools.cycle(made)
        for _ in range(BATCHES // PIECE):
            requests = deal(work, [next_batch(next(turn)) for _ in range(PIECE)])
            send([serving.url], requests, connections=CONNECTIONS)
            memory.append(psutil.Process(serving.pid).memory_info().rss)
    first, last = memory[max(1, len(memory) // 10) - 1], memory[-1]
    what = f"memory after {BATCHES} batches of one record ÷ after a tenth of them"
    return Row(what, last / first, None, BATCHES, values={"first_mib": first / 2**20, "last_mib": last / 2**20})


def next_batch(device: FakeDevice) -> bytes:
    """One more record, handed over before any reply to what came before."""
    device.use(1)
    first = len(device.entries) if len(device.entries) > 3 else 1
    return device.batch(first=first).encode()


def serve(stack: ExitStack, fleet: Fleet, work: Path) -> Serving:
    """Start one server process, until the stack ends."""
    serving = Serving(fleet, work)
    stack.callback(serving.close)
    serving.start()
    return serving


def deal(work: Path, bodies: list[bytes]) -> list[Path]:
    """Write requests into one file a connection, in turn: a device's stay in order where it has its own turn."""
    files = []
    for number in range(CONNECTIONS):
        files.append(work / f"{number}.requests")
        files[-1].write_bytes(b"\n".join(bodies[number::CONNECTIONS]))
    return files


def enter(fleet: Fleet, count: int) -> list[FakeDevice]:
    """Enter devices of one license, each with a token, like one that was activated."""
    first = fleet.device(fleet.grant(devices_max=count + 1))
    with write(fleet.server) as connection:
        device_row = device_store.to_row(device_store.find(connection, first.id))
        token_row = connection.execute(tokens.select().where(tokens.c.device == first.id)).mappings().one()
        limit_row = connection.execute(token_limits.select()).mappings().one()
        made = [FakeDevice.make(fleet) for _ in range(count)]
        for device in made:
            device.token = first.token._replace(jti=fleet.server.make_id("tok"))
        keys = [(each.id, each.key.verify_key.text, each.token.jti, each.epoch) for each in made]
        insert_all(connection, devices, [{**device_row, "id": key[0], "sign_key": key[1]} for key in keys])
        named = [{"device": key[0], "jti": key[2], "epoch": key[3]} for key in keys]
        insert_all(connection, tokens, [{**token_row, **each} for each in named])
        insert_all(connection, token_limits, [{**limit_row, "jti": each["jti"]} for each in named])
    return made
