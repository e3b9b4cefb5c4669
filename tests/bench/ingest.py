"""Taking usage in: real server processes beside the bare database that stores the same rows, durably both.

Batches of fifty records, signed beforehand, one a request, over connections that are kept open. What the answers
acknowledge is verified and committed. Each device's first batch is sent before anything is measured. The bare
database stores the rows that came of them, as they are, without asking anything: eight connections that COPY one
batch a transaction, or SQLite with many batches a transaction. Beside it stands what it stores of the batches and
their records alone, without the rows of their answers.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import bare
from fleet import FakeDevice, Fleet
from harness import Row
from postgresql import Cluster
from serving import Serving

DURABLE = ("fsync=on", "full_page_writes=on", "synchronous_commit=on", "shared_buffers=256MB", "max_wal_size=2GB")
# Few batches of many devices: what is signed beforehand installs none of the tokens that come back, and ledgers
# with dozens of tokens that could still be used are no usual ones.
DEVICES, BATCHES, RECORDS = 1_024, 4, 50
CONNECTIONS = 64
CLIENT = Path(__file__).resolve().parent / "exchange_client.py"


def rows() -> list[Row]:
    """Both databases, with one and with two server processes."""
    found = []
    for name in ("sqlite", "postgresql"):
        found += [measure(name, processes=processes) for processes in (1, 2)]
    return found


def measure(name: str, *, processes: int) -> Row:
    """Batches a second that are acknowledged, ÷ those that the bare database stores a second."""
    with fleet_on(name) as (fleet, work):
        requests = prepare(fleet, work)
        served = serve_all(fleet, work, requests, processes=processes)
        plain, records = bare.store_again(fleet, work), bare.store_again(fleet, work, bare.RECORDS)
    batches = DEVICES * (BATCHES - 1)
    what = f"ingest ÷ bare {name}, {processes} server process{'es' if processes > 1 else ''}"
    served_per_s, bare_per_s = batches / served["seconds"], DEVICES * BATCHES / plain
    values = {"served_per_s": served_per_s, "bare_per_s": bare_per_s, **latencies(served)}
    values["bare_records_alone_per_s"] = DEVICES * BATCHES / records
    values["ratio_to_records_alone"] = served_per_s / values["bare_records_alone_per_s"]
    return Row(what, served_per_s / bare_per_s, None, batches, values=values)


@contextmanager
def fleet_on(name: str) -> Iterator[tuple[Fleet, Path]]:
    """A server's directory and its database, on durable settings, in a temporary directory."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meterkit-bench-")))
        cluster = None
        if name == "postgresql":
            cluster = Cluster(*DURABLE)
            stack.callback(cluster.close)
        fleet = Fleet.start(work, cluster=cluster, now=int(time.time()))
        stack.callback(fleet.close)
        yield fleet, work


def prepare(fleet: Fleet, work: Path) -> list[Path]:
    """Every device's requests in a file of its own, in order: a device sends one after the other."""
    license_id = fleet.grant(devices_max=DEVICES)
    return [write_requests(fleet.device(license_id), work / f"{number}.requests") for number in range(DEVICES)]


def write_requests(device: FakeDevice, path: Path) -> Path:
    """Use it, and sign what it used in batches, made one after another before any reply."""
    first = 1
    bodies = []
    for _ in range(BATCHES):
        for _ in range(RECORDS - (len(device.entries) if first == 1 else 0)):
            device.use(3)
        bodies.append(device.batch(first=first).encode("ascii"))
        first = len(device.entries) + 1
    path.write_bytes(b"\n".join(bodies))
    return path


def serve_all(fleet: Fleet, work: Path, requests: list[Path], *, processes: int) -> dict[str, float]:
    """Let a client send everything to so many servers; gives its seconds, and what it waited for answers."""
    with ExitStack() as stack:
        servers = [Serving(fleet, work) for _ in range(processes)]
        for server in servers:
            stack.callback(server.close)
            server.start()
        urls = [server.url for server in servers]
        send(urls, [_cut(path, slice(1)) for path in requests], connections=CONNECTIONS)
        return send(urls, [_cut(path, slice(1, None)) for path in requests], connections=CONNECTIONS)


def _cut(path: Path, part: slice) -> Path:
    """Write some of a device's requests into a file of their own."""
    cut = path.with_suffix(f".{part.start or 0}")
    cut.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[part]))
    return cut


def send(urls: list[str], requests: list[Path], *, connections: int) -> dict[str, float]:
    """Let a client of its own process send files of requests; gives its seconds and what it waited for answers."""
    command = [sys.executable, CLIENT, str(connections), ",".join(urls), *requests]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names = ("seconds", "p50_ms", "p99_ms")
    return dict(zip(names, map(float, done.stdout.split()), strict=True))


def latencies(served: dict[str, float]) -> dict[str, float]:
    """How long the client waited for an answer."""
    return {name: served[name] for name in ("p50_ms", "p99_ms")}
