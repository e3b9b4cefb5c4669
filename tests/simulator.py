"""Play a fleet against the real server, by seed: `python tests/simulator.py 7`, or a range, `1000..2000`.

With `--restores` it plays honest devices whose server is put back from its backups, and ends at the first seed in
which something differs.

A range prints a table of what happened in it; a seed in which something differs prints its last steps. A run
is replayed by its seed, exactly.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

import sim_restores
from fleet import Fleet
from sim_run import STEPS, Run, play

_MEMORY = Path("/dev/shm")  # noqa: S108 - commits to memory: many more seeds in the same time
COLUMNS = (
    "steps", "requests", "batches", "records", "units", "forks", "clones", "restores", "resets", "races",
    "lost replies", "deaths", "crashes", "holes", "held", "refusals", "runs", "documents",
)  # fmt: skip


def play_all(seeds: range, steps: int) -> Iterator[Run]:
    """Play seeds one after another, each on a copy of one fresh server."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        first = Fleet.start(Path(directory))
        first.close()
        for seed in seeds:
            path = Path(directory) / str(seed)
            path.mkdir()
            fleet = first.copy(path, seed=seed)
            try:
                yield play(fleet, seed, steps=steps)
            finally:
                fleet.close()


def play_restores(seeds: range) -> int:
    """Play seeds in which the server is put back from its backups; gives how often it was."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        first = Fleet.start(Path(directory))
        first.close()
        restores = 0
        for seed in seeds:
            path = Path(directory) / str(seed)
            path.mkdir()
            fleet = first.copy(path, seed=seed)
            try:
                restores += sim_restores.play(fleet, seed).restores
            except Exception:
                print(f"seed {seed}: python tests/simulator.py {seed} --restores")
                raise
            finally:
                fleet.close()
        return restores


def play_some(steps: int, seeds: range) -> list[Run]:
    """One process's share of a range."""
    return list(play_all(seeds, steps))


def play_range(seeds: range, steps: int) -> list[Run]:
    """Play a range on all processors."""
    shares = [seeds[at : at + 25] for at in range(0, len(seeds), 25)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return [run for runs in pool.map(partial(play_some, steps), shares) for run in runs]


def show(runs: list[Run], seconds: float) -> None:
    """Print what happened in all of them."""
    total: Counter[str] = Counter()
    for run in runs:
        total.update(run.tally)
        total["steps"] += run.steps
    failed = [run for run in runs if run.difference]
    for run in failed[:10]:
        print(run.explain(), end="\n\n")
    print(f"{'seeds':<14}{len(runs):>12,}")
    for name in COLUMNS:
        print(f"{name:<14}{total[name]:>12,}")
    print(f"{'differences':<14}{len(failed):>12,}   {' '.join(str(run.seed) for run in failed)}")
    print(f"{seconds:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", help="one seed, or a range: 1000..2000 (its end not included)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--restores", action="store_true", help="put the server back from backups")
    parser.add_argument("--story", action="store_true", help="of one seed: print every step")
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("..")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    if asked.restores:
        print(f"{len(seeds)} seeds, {play_restores(seeds)} restores, no differences")
        return 0
    start = time.monotonic()
    runs = play_range(seeds, asked.steps) if len(seeds) > 1 else list(play_all(seeds, asked.steps))
    if asked.story:
        print("\n".join(runs[0].story))
    show(runs, time.monotonic() - start)
    if len(runs) == 1:
        print(runs[0].trace or f"digest {runs[0].digest}")
    return int(any(run.difference for run in runs))


if __name__ == "__main__":
    sys.exit(main())
