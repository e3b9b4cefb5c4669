"""What the gate costs: gated `run()` ÷ plain `run()`, one and more threads, the tail, and the gate alone."""

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from harness import Row, Step, compare, timed
from world import licensed_device, options, sessions

from device_sdk.gate import call_gate

TAIL_CALLS = 40_000
TAIL_ROUNDS = 9


def ratios() -> list[Row]:
    """One thread, each model."""
    rows = []
    with licensed_device() as device:
        for model, pairs in (("add", 300), ("items", 300), ("squeezenet", 60), ("magika", 60)):
            plain, gated, feed = sessions(device, model)
            steps = [partial(session.run, None, feed) for session in (plain, plain, gated)]
            rows.append(compare(f"gated run() ÷ plain, {model}, 1 thread", *steps, pairs=pairs))
    return rows


def threaded() -> list[Row]:
    """Two and eight threads on one session: calls a second, plain ÷ gated, in turns."""
    rows = []
    with licensed_device() as device:
        plain, gated, feed = sessions(device, "add")
        for threads in (2, 8):
            ratios, nulls = [], []
            for _ in range(25):
                first, second = (
                    in_threads(partial(session.run, None, feed), threads) for session in (plain, gated)
                )
                third = in_threads(partial(plain.run, None, feed), threads)
                ratios.append(2 * second / (first + third))
                nulls.append(third / first)
            low, _, high = statistics.quantiles(ratios, n=4)
            name = f"gated run() ÷ plain, add, {threads} threads"
            values = {"q1": low, "q3": high}
            rows.append(Row(name, statistics.median(ratios), statistics.median(nulls), len(ratios), values=values))
    return rows


def in_threads(step: Step, threads: int, calls: int = 20_000) -> int:
    """Nanoseconds until all threads have done so many calls each."""
    barrier = threading.Barrier(threads + 1)

    def work() -> None:
        timed(step, 50)
        barrier.wait()
        timed(step, calls)
        barrier.wait()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter_ns()
    barrier.wait()
    took = time.perf_counter_ns() - start
    for worker in workers:
        worker.join()
    return took


def tail() -> list[Row]:
    """The p99.9 of single calls, lease refills included."""
    with licensed_device() as device:
        plain, gated, feed = sessions(device, "add")
        timed(partial(gated.run, None, feed), 20_000)
        kinds: dict[str, list[float]] = {"plain": [], "again": [], "gated": []}
        for _ in range(TAIL_ROUNDS):
            for name, session in (("plain", plain), ("gated", gated), ("again", plain)):
                kinds[name].append(percentile(partial(session.run, None, feed)))
        ratios = [gated / plain for gated, plain in zip(kinds["gated"], kinds["plain"], strict=True)]
        nulls = [again / plain for again, plain in zip(kinds["again"], kinds["plain"], strict=True)]
        values = {"min": min(ratios), "max": max(ratios), "plain_us": statistics.median(kinds["plain"]) / 1000}
        return [
            Row(
                "p99.9 of a gated call ÷ plain, add",
                statistics.median(ratios),
                statistics.median(nulls),
                TAIL_ROUNDS,
                values=values,
            )
        ]


def percentile(step: Step) -> float:
    """The p99.9 of so many single calls, in nanoseconds."""
    clock = time.perf_counter_ns
    took = np.empty(TAIL_CALLS, np.int64)
    for place in range(TAIL_CALLS):
        start = clock()
        step()
        took[place] = clock() - start
    return float(np.percentile(took, 99.9))


def alone() -> list[Row]:
    """The gate around a callee that does nothing: nanoseconds that it adds, and those of the one look at the boot
    clock among them: machines differ most in that.
    """

    def nothing(_names: object, _feed: object, _options: object) -> None:
        return None

    with licensed_device() as device:
        _, session, _ = sessions(device, "add")
        count = device.counter.meter(("add", "call"))
        gate: Callable[..., object] = call_gate(device.counter, count, session._model_digest, nothing)
        bare, gated = partial(nothing, None, None, None), partial(gate, None, None, None)
        timed(gated, 200_000)
        added = [(timed(gated, 500) - timed(bare, 500)) / 500 for _ in range(1_000)]
        low, middle, high = statistics.quantiles(added, n=4)
        whole = [(timed(gated, 100_000) - timed(bare, 100_000)) / 100_000 for _ in range(10)]
        clock = statistics.median(timed(device.counter.clocks.boot_ns, 10_000) / 10_000 for _ in range(100))
        values = {"q1": low, "q3": high, "refills_included": statistics.median(whole), "boot_clock": clock}
        return [Row("gate alone around a trivial callee", middle, None, len(added), "ns", values)]


def rows() -> list[Row]:
    """All of them."""
    options()
    return [*ratios(), *threaded(), *tail(), *alone()]
