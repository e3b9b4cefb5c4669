"""Billing a fleet's month: a whole run beside the bare GROUP BY license, meter, period over the same records.

The bare statement adds up all records once and knows nothing: no limits of a run, no decisions, which ledger tells
of what. *Cold* is a run that finds nothing added up, and sums up all records; *warm* is one that finds it kept.
Both work out and store the drafts of every customer. What adding up takes after a cold run, and what a run's
process holds at most, is told beside it.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import billed_fleet
import ingest
import sqlalchemy as sa
from fleet import Fleet
from harness import Row

from licensing_server.billing import service
from licensing_server.database import read, write

ROUNDS = 3
_APART = """
import pathlib, sys
from licensing_server.cli import cli
cli(sys.argv[1:], standalone_mode=False)
status = pathlib.Path("/proc/self/status").read_text().split()
print(status[status.index("VmHWM:") + 1], file=sys.stderr)
"""
_BARE = """
    SELECT r.license, r.model, r.unit, p.start_at, sum(r.units)
    FROM usage_records r JOIN license_periods p
      ON p.license = r.license AND p.interval = 'month' AND p.start_at <= r.service_at AND r.service_at < p.end_at
    GROUP BY r.license, r.model, r.unit, p.start_at
"""


def rows() -> list[Row]:
    """Both databases."""
    return [row for name in ("sqlite", "postgresql") for row in measure(name)]


def measure(name: str) -> list[Row]:
    """Cold runs and warm ones, in turns with the bare statement."""
    size = billed_fleet.sizes()
    with ingest.fleet_on(name) as (fleet, _):
        count = billed_fleet.build(fleet, size)
        cut_offs = iter(range(fleet.clock.now - 100, fleet.clock.now))
        found: dict[str, list[float]] = {"bare": [], "cold": [], "warm": []}
        adding: list[float] = []
        forget(fleet)
        peak = run_apart(fleet, next(cut_offs))
        analyze(fleet)
        for _ in range(ROUNDS):
            found["bare"].append(bare(fleet))
            forget(fleet)
            found["cold"].append(run(fleet, next(cut_offs)))
            adding.append(timed_once(partial(service.add_up, fleet.server)))
            found["warm"] += [run(fleet, next(cut_offs)) for _ in range(2)]
    base = statistics.median(found["bare"])
    return [
        Row(
            f"{kind} billing run ÷ bare GROUP BY, {name}, {count} records",
            statistics.median(found[kind]) / base,
            None,
            len(found[kind]),
            values={
                **spread(kind, found[kind]),
                **spread("bare", found["bare"]),
                **({"adding_up_med_s": statistics.median(adding)} if kind == "cold" else {}),
                "first_peak_mb": peak,
            },
        )
        for kind in ("cold", "warm")
    ]


def analyze(fleet: Fleet) -> None:
    """Let the database know of the periods, too: else it plans the bare statement as if there were none."""
    with write(fleet.server) as connection:
        connection.exec_driver_sql("ANALYZE")


def bare(fleet: Fleet) -> float:
    """Seconds for the bare statement, its rows fetched."""
    with read(fleet.server) as connection:
        started = time.perf_counter()
        found = connection.exec_driver_sql(_BARE).all()
        seconds = time.perf_counter() - started
    assert found
    return seconds


def timed_once(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(fleet: Fleet, cut_off: int) -> float:
    """Seconds for a whole run, every draft stored."""
    started = time.perf_counter()
    made = service.run(fleet.server, cut_off=cut_off)
    seconds = time.perf_counter() - started
    assert (made["state"], made["failed"]) == ("done", [])
    assert len(made["invoices"]) == billed_fleet.sizes()["customers"]
    return seconds


def run_apart(fleet: Fleet, cut_off: int) -> float:
    """The most that a process of its own holds while it runs, in MB."""
    command = [sys.executable, "-c", _APART, "--directory", fleet.server.directory, "billing", "run"]
    done = subprocess.run(
        [*map(str, command), "--cut-off", str(cut_off)], check=True, capture_output=True, env=fleet.environment
    )
    return int(done.stderr.split()[-1]) / 1024


def forget(fleet: Fleet) -> None:
    """Leave no rollups, as in a database that comes from an older version."""
    names = {"license_spans", "usage_rollups", "run_sums"}
    with write(fleet.server) as connection:
        for name in names & set(sa.inspect(connection).get_table_names()):
            connection.exec_driver_sql(f"DELETE FROM {name}")  # noqa: S608


def spread(name: str, seconds: list[float]) -> dict[str, float]:
    """Least, middle and most."""
    measured = (min(seconds), statistics.median(seconds), max(seconds))
    return {f"{name}_{what}_s": each for what, each in zip(("min", "med", "max"), measured, strict=True)}
