"""What the ledger writes: disk syncs per million inferences, and how large it is in a year."""

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import device_models
import numpy as np
from device_site import Site
from harness import Row, timed
from vendor import item_model
from world import add_model, licensed_device, options, sessions

from device_sdk import LicensedSession
from device_sdk.keeper import tick
from device_sdk.ledger_transaction import Transaction
from meterkit import limits

CALLS = 1_000_000
PACES = {"add": 4 * CALLS, "magika": 5_000, "squeezenet": 3_000}
PROGRAM = """
import sys
sys.path[:0] = {path!r}
from functools import partial
from world import licensed_device, sessions
with licensed_device() as device:
    _, gated, feed = sessions(device, "add")
    gated.run(None, feed)
    step = partial(gated.run, None, feed)
    print("begin", flush=True)
    for _ in range({calls}):
        step()
    print("end", flush=True)
"""
DAY_S = 86_400
FRAMES = {"frames": np.ones((20_000, 4), np.float32), "scale": np.ones(4, np.float32)}
VALUES = {"X": np.ones(20_000, np.float32)}
MODELS = {"door-detector": (device_models.rows(), FRAMES), "door-classifier": (add_model("N"), VALUES)}
MEMORY = Path("/dev/shm")  # noqa: S108 - it is the size that counts here, not the disk


def rows() -> list[Row]:
    """All of them; where strace is missing, no syncs."""
    return [*([] if shutil.which("strace") is None else [syncs()]), *map(lease_commits, PACES), year()]


def syncs() -> Row:
    """Disk syncs while a million inferences run, counted from outside."""
    path = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "support")]
    with tempfile.TemporaryDirectory() as folder:
        program, trace = Path(folder, "program.py"), Path(folder, "trace")
        program.write_text(PROGRAM.format(path=path, calls=CALLS))
        watched = "trace=fsync,fdatasync,msync,write"
        command = ["strace", "-f", "-e", watched, "-s", "8", "-o", trace, sys.executable, program]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = trace.read_text().splitlines()
    begin = next(place for place, line in enumerate(lines) if 'write(1, "begin' in line)
    end = next(place for place, line in enumerate(lines) if 'write(1, "end' in line)
    counted = [match[1] for line in lines[begin:end] if (match := re.search(r"\b(fsync|fdatasync|msync)\(", line))]
    syncs = sum(name != "msync" for name in counted)
    values = {"msync": float(len(counted) - syncs)}
    return Row("disk syncs per million inferences, add", float(syncs), None, 1, "syncs", values)


def lease_commits(model: str) -> Row:
    """The share of the time that is spent on leases, at full pace, until half of a limit is used.

    It is the keeper that waits for the disk, and no call; `cpu_percent` is what it computes meanwhile.
    """
    calls = PACES[model]
    with licensed_device(limit=2 * calls) as device:
        _, gated, feed = sessions(device, model)
        took: list[int] = []
        computed: list[int] = []
        write = device.counter.store.write

        @contextmanager
        def timed_write() -> Iterator[Transaction]:
            start, start_cpu = time.perf_counter_ns(), time.thread_time_ns()
            with write() as tx:
                yield tx
            took.append(time.perf_counter_ns() - start)
            computed.append(time.thread_time_ns() - start_cpu)

        device.counter.store.write = timed_write  # type: ignore[method-assign]
        start = time.perf_counter_ns()
        timed(partial(gated.run, None, feed), calls)
        passed = time.perf_counter_ns() - start
        values = {
            "commits": float(len(took)),
            "median_ms": statistics.median(took) / 1e6,
            "cpu_percent": 100 * sum(computed) / passed,
            "pace_per_s": calls * 1e9 / passed,
        }
        return Row(
            f"time on leases until half of a limit is used, {model}",
            100 * sum(took) / passed,
            None,
            1,
            "percent",
            values,
        )


def year() -> Row:
    """How large the ledger is at most in a year in which two models never rest, receipted every 31 days."""
    terms = [
        item_model(name, device_models.digest(model), next(iter(feed))) for name, (model, feed) in MODELS.items()
    ]
    sizes = []
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        site = Site(Path(folder, "device"))
        device = site.activated(*terms, life_s=40 * DAY_S)
        running = [
            partial(LicensedSession(model, options(), device=device, model=name).run, None, feed)
            for name, (model, feed) in MODELS.items()
        ]
        for second in range(0, 365 * DAY_S, limits.WINDOW_S):
            if second and second % (31 * DAY_S) == 0:
                site.sync(device, *terms, life_s=40 * DAY_S)
            for run in running:
                run()
            tick(device.counter)
            sizes.append(Path(device.vault.ledger).stat().st_size)
            site.time.run_on(limits.WINDOW_S)
        with device.counter.transaction() as tx:
            ((kept, made),) = tx.rows("SELECT COUNT(*), MAX(seq) FROM records")
        device.close()
    values = {"records": float(made), "kept": float(kept)}
    return Row("ledger of two models, a year, receipted monthly", max(sizes) / 1e6, None, 1, "MB", values)
