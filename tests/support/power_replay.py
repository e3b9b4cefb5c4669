"""Replaying a recorded life up to a moment, and losing the power there."""

from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import NamedTuple

from power_check import Promises
from power_disk import Disk, Rename, SyncBegins, SyncEnds, Tree, everything, nothing, only, some
from power_trace import Event, Told

_TURNS = (SyncBegins, SyncEnds, Rename)  # what is certain, or may be found, changes at these


class Crash(NamedTuple):
    """One state of the disk after a power loss: when it came, and what of the unsynced had reached the disk."""

    at: int
    how: str
    tree: Tree
    promises: Promises

    def __str__(self) -> str:
        return f"power lost after event {self.at}; of what was not synced, {self.how} had reached the disk"


def crashes(events: list[Event], chance: Random, *, subsets: int = 1, every: bool = False) -> Iterator[Crash]:
    """States of the disk: right before and after every sync and every name that changes, or after `every` event.

    At each moment nothing, or all of what was not synced has reached the disk, and before such a turn, when most
    is open, so many random parts of it; and of names that change, each by itself before all that came earlier.
    States that are found twice under the same promises are given once.
    """
    disk, promises = Disk(), Promises()
    seen: set[int] = set()
    for at, event in enumerate(events):
        if isinstance(event, Told):
            promises.take(event)
        else:
            disk.do(event)
        before = every or isinstance(events[min(at + 1, len(events) - 1)], _TURNS)
        if not before and not isinstance(event, _TURNS):
            continue
        parts = [("nothing", nothing), ("all", everything)]
        if isinstance(event, Rename):
            parts.append(("this alone", only(event)))
        if before:
            parts += [("some", some(chance)) for _ in range(subsets)]
        for how, reached in parts:
            tree = disk.after_power_loss(reached)
            key = hash((tuple(tree.items()), promises.key()))
            if key not in seen:
                seen.add(key)
                yield Crash(at, how, tree, deepcopy(promises))
