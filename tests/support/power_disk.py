"""A disk that can lose its power: what was synced is there afterwards, and of the rest any part.

It promises no more than POSIX does. A change of a file or a directory is certainly there once a sync of that file
or directory has ended which began after the change. Until then each change may have reached the disk or not,
whatever became of those before and after it: a name without its content, a content without its name, a later
write without an earlier one. A long write may have reached it in part, sector by sector; a directory's change
(create, rename, link, unlink) is whole. Pure: operations in, trees of files out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import NamedTuple

ROOT = 0  # the directory that everything is in
SECTOR_BYTES = 512


class Write(NamedTuple):
    """Bytes that are stored in a file, by a system call or through a memory map."""

    node: int
    offset: int
    data: bytes


class Resize(NamedTuple):
    """A file that is cut, or made longer with zeros."""

    node: int
    size: int


class Rename(NamedTuple):
    """Names in one directory that come, go or change together: create, mkdir, link, unlink and rename."""

    node: int
    names: dict[str, int | None]


class MakeDirectory(NamedTuple):
    """A node that is a directory. Its name in another one is a `Rename` of its own."""

    node: int


class SyncBegins(NamedTuple):
    """fsync, fdatasync, or msync of a part of a file, begins: it syncs what was changed before."""

    sync: int
    node: int
    start: int = 0
    end: int = 2**62


class SyncEnds(NamedTuple):
    """It has returned without an error."""

    sync: int


Change = Write | Resize | Rename
Operation = Change | MakeDirectory | SyncBegins | SyncEnds
Reached = Callable[[Change], list[Change]]
Tree = dict[str, bytes | None]  # path → content; None is a directory


class Disk:
    """What certainly is on the disk, and the changes that may be."""

    def __init__(self) -> None:
        self._directories: dict[int, dict[str, int]] = {ROOT: {}}
        self._files: defaultdict[int, bytes] = defaultdict(bytes)
        self._pending: defaultdict[int, list[Change]] = defaultdict(list)
        self._syncing: dict[int, SyncBegins] = {}
        self._covered: dict[int, list[Change]] = {}

    def do(self, operation: Operation) -> None:
        """Take in what a program did next."""
        if isinstance(operation, MakeDirectory):
            self._directories[operation.node] = {}
        elif isinstance(operation, SyncBegins):
            self._syncing[operation.sync] = operation
            self._covered[operation.sync] = [
                change for change in self._pending[operation.node] if _is_within(change, operation)
            ]
        elif isinstance(operation, SyncEnds):
            self._make_certain(self._syncing.pop(operation.sync).node, self._covered.pop(operation.sync))
        else:
            self._pending[operation.node].append(operation)

    def _make_certain(self, node: int, changes: list[Change]) -> None:
        still = [change for change in changes if any(change is each for each in self._pending[node])]
        self._pending[node] = [
            change for change in self._pending[node] if not any(change is each for each in still)
        ]
        if node in self._directories:
            self._directories[node] = _renamed(self._directories[node], still)
        else:
            self._files[node] = _written(self._files[node], still)

    def pending(self) -> int:
        """How many changes may have reached the disk, or not."""
        return sum(map(len, self._pending.values()))

    def after_power_loss(self, reached: Reached) -> Tree:
        """The files that are found afterwards, if of each change that which `reached` gives was still written."""
        came = {
            node: [part for change in changes for part in reached(change)]
            for node, changes in self._pending.items()
        }
        return dict(self._walk(ROOT, "", came))

    def _walk(self, node: int, at: str, came: dict[int, list[Change]]) -> Iterator[tuple[str, bytes | None]]:
        for name, inner in sorted(_renamed(self._directories[node], came.get(node, [])).items()):
            path = f"{at}{name}"
            if inner in self._directories:
                yield path, None
                yield from self._walk(inner, f"{path}/", came)
            else:
                yield path, _written(self._files[inner], came.get(inner, []))


def _is_within(change: Change, sync: SyncBegins) -> bool:
    """A sync of a part of a file covers the writes there, and always the file's size."""
    return not isinstance(change, Write) or (
        change.offset < sync.end and change.offset + len(change.data) > sync.start
    )


def _written(held: bytes, changes: list[Change]) -> bytes:
    content = bytearray(held)
    for change in changes:
        if isinstance(change, Resize):
            del content[change.size :]
            content.extend(bytes(change.size - len(content)))
        elif isinstance(change, Write):
            content.extend(bytes(max(0, change.offset - len(content))))
            content[change.offset : change.offset + len(change.data)] = change.data
    return bytes(content)


def _renamed(held: dict[str, int], changes: list[Change]) -> dict[str, int]:
    names: dict[str, int | None] = dict(held)
    for change in changes:
        if isinstance(change, Rename):
            names.update(change.names)
    return {name: node for name, node in names.items() if node is not None}


def nothing(_change: Change) -> list[Change]:
    """Nothing that was not synced has reached the disk."""
    return []


def everything(change: Change) -> list[Change]:
    """All of it has: what the files looked like when the power went."""
    return [change]


def only(one: Change) -> Reached:
    """One change has reached it, before all that came earlier."""
    return lambda change: [change] if change is one else []


def some(chance: Random) -> Reached:
    """Any part of it: changes at random, and of a long write sectors at random."""
    share = chance.choice((0.1, 0.5, 0.9))

    def reached(change: Change) -> list[Change]:
        return [part for part in _sectors(change) if chance.random() < share]

    return reached


def _sectors(change: Change) -> Iterator[Change]:
    if not isinstance(change, Write):
        yield change
        return
    start, end = change.offset, change.offset + len(change.data)
    cuts = [start, *range(start // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, end, SECTOR_BYTES), end]
    for left, right in pairwise(cuts):
        yield Write(change.node, left, change.data[left - start : right - start])
