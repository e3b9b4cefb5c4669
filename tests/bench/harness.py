"""Measuring as ratios: two ways of one thing, interleaved in one process, and plain against plain beside them.

One sample is worth nothing on a shared machine; the median of many pairs is. Each pair is ABBA, so that a machine
that speeds up or slows down meanwhile favors neither.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

Step = Callable[[], object]
BATCH_NS = 2_000_000


@dataclass
class Row:
    """One figure: the ratio's median, the null test's beside it, and the spread of the middle half."""

    name: str
    ratio: float
    null: float | None
    runs: int
    unit: str = "ratio"
    values: dict[str, float] = field(default_factory=dict)


def timed(step: Step, count: int) -> int:
    """Nanoseconds for so many steps."""
    clock = time.perf_counter_ns
    steps = range(count)
    start = clock()
    for _ in steps:
        step()
    return clock() - start


def batch_size(step: Step) -> int:
    """How many steps take about two milliseconds."""
    timed(step, 20)
    return max(1, int(BATCH_NS * 50 / max(1, timed(step, 50))))


def pair_ratios(plain: Step, other: Step, pairs: int) -> list[float]:
    """The ratio other ÷ plain of each ABBA pair."""
    count = batch_size(plain)
    ratios = []
    gc.disable()
    try:
        for _ in range(pairs):
            first, second = timed(plain, count), timed(other, count)
            third, fourth = timed(other, count), timed(plain, count)
            ratios.append((second + third) / (first + fourth))
            gc.collect(0)
    finally:
        gc.enable()
    return ratios


def compare(name: str, plain: Step, again: Step, other: Step, *, pairs: int = 150) -> Row:
    """Measure other ÷ plain, and a second plain ÷ plain as the null test, in turns."""
    ratios: list[float] = []
    nulls: list[float] = []
    rounds = max(1, pairs // 10)
    for _ in range(rounds):
        ratios += pair_ratios(plain, other, 10)
        nulls += pair_ratios(plain, again, 10)
    low, _, high = statistics.quantiles(ratios, n=4)
    null_low, _, null_high = statistics.quantiles(nulls, n=4)
    spread = {"q1": low, "q3": high, "null_q1": null_low, "null_q3": null_high}
    return Row(name, statistics.median(ratios), statistics.median(nulls), len(ratios), values=spread)


def show(rows: list[Row]) -> str:
    """A table for people."""
    lines = [f"{'what':<58} {'median':>9} {'null':>7} {'runs':>6}  spread"]
    for row in rows:
        null = "" if row.null is None else f"{row.null:7.3f}"
        spread = " ".join(f"{name}={value:.4g}" for name, value in row.values.items())
        lines.append(f"{row.name:<58} {row.ratio:>9.4g} {null:>7} {row.runs:>6}  {row.unit} {spread}")
    return "\n".join(lines)


def write(rows: list[Row], path: Path) -> None:
    """Write the rows as JSON, for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
