"""One seed, one run: a world is made, steps are taken, and after each of them everything must still hold."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim_actions import MISHAPS, NEEDS, ORDINARY, bill
from sim_world import World

if TYPE_CHECKING:
    from fleet import Fleet

STEPS = 50
TOLD_LINES = 20
BILLED = 4  # in one world of so many the vendor bills: auditing all of it takes as long as the rest


@dataclass
class Run:
    """What became of one seed."""

    seed: int
    steps: int = 0
    difference: str | None = None
    trace: str = ""
    digest: str = ""
    story: list[str] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)

    def explain(self) -> str:
        """Say what differed, after which steps, and how to see it again."""
        last = "\n".join(f"  {line}" for line in self.story[-TOLD_LINES:])
        replay = f"python tests/simulator.py {self.seed}"
        return f"seed {self.seed}, step {self.steps}: {self.difference}\n{last}\nto replay it: {replay}"


def play(fleet: Fleet, seed: int, *, steps: int = STEPS) -> Run:
    """Play one seed on a fresh server. The same seed is the same run, to the byte."""
    made = Run(seed)
    world = World(fleet, seed)
    weights = dict(ORDINARY)
    for mishap, weight in MISHAPS.items():  # each seed has mishaps of its own: some worlds know no clones
        weights[mishap] = weight * world.chance.choice([0, 0, 1, 2])
    if seed % BILLED:
        del weights[bill]
    try:
        world.begin()
        for made.steps in range(1, steps + 1):
            possible = [each for each in weights if each not in NEEDS or getattr(world, NEEDS[each])]
            (action,) = world.chance.choices(possible, [weights[each] for each in possible])
            device = world.chance.choice(world.copies)
            world.tell(f"{made.steps}. {action.__name__} {device.name}")
            action(world, device)
            world.check()
        world.drain()
    except Exception as error:  # noqa: BLE001 - whatever it was, the seed must be told
        made.difference = f"{type(error).__name__}: {error}"
        made.trace = traceback.format_exc()
    made.digest, made.story, made.tally = world.digest, world.story, world.tally
    made.tally["forks"] = sum(sum(ledger.forks().values()) for ledger in world.model.ledgers.values())
    made.tally["resets found"] = sum(ledger.is_reset for ledger in world.model.ledgers.values())
    rows = [row for ledger in world.model.ledgers.values() for row in ledger.rows.values()]
    made.tally["units"] = sum(row["units"] for row in rows if row["quarantined"] is None)
    made.tally["records"] = len(rows)
    return made
