"""Cells: live counts in memory-mapped files, one file a process, one 64-byte slot a cell.

A slot's first word is the cell: its window in the high 24 bits, its count in the low 40. The second word says
how far calls were *started*: where the two differ, a call is in flight. The third is the instant on the boot
clock until which calls may still be admitted in the cell's window. A cell has one writer, its thread; anyone
may read it. While its process lives, the file is locked; a free lock means that the owner is gone.

A call of one unit changes the low half of a word only: half as long a number is counted and stored faster. A cell
is therefore left for another slot long before its low half is full.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections import deque
from contextlib import suppress

from device_sdk.files import remove_file, sync_directory
from meterkit import ids, limits
from meterkit.errors import DeviceError, LedgerError
from meterkit.tuples import NamedTuple

WORDS_PER_SLOT = limits.CELL_SLOT_BYTES // 8
FILE_BYTES = limits.CELL_SLOTS * limits.CELL_SLOT_BYTES
HALF = 2**32 - 1  # the low half of a word
_SWEEPS_MAX = 32  # so many in a row, each just then, would be no chance
_COUNT_BITS = 40
_SLOT_WORDS = struct.Struct("=QQQ")


class Standing(NamedTuple):
    """What a unit counted now is recorded as: its window, its token, its flags.

    `connection` numbers the connection to the ledger that it was stated through. Behind another one there may be
    another ledger, which does not know the cell: every cell comes to an edge there.
    """

    window: int
    token: str
    flags: tuple[str, ...]
    provisional: bool
    connection: int


class Word(NamedTuple):
    """What a cell says: how many units, counted in which window; how many more calls in flight may add to
    them, and until when (boot clock) calls may be admitted in that window.
    """

    window: int
    count: int  # type: ignore[assignment] # the tuple's own way to count its items is not missed
    in_flight_units: int
    open_until_ns: int


def pack(window: int, count: int) -> int:
    """Make the 64-bit word of a window and a count."""
    return window << _COUNT_BITS | count


def unpack(word: int, started: int, open_until_ns: int) -> Word:
    """Take a slot's words apart."""
    return Word(
        window=word >> _COUNT_BITS,
        count=word & limits.CELL_COUNT_MAX,
        in_flight_units=max(started - word, int(started != word)),
        open_until_ns=open_until_ns,
    )


class CellFile:
    """The cell file of this process. Slots are handed out to threads, and again when a thread has ended.

    A slot that is handed out again keeps its count: the next cell in it starts from there.
    """

    def __init__(self, directory: str) -> None:
        try:
            self._make_named(directory)
        except OSError as fault:
            raise LedgerError("ledger_unwritable", f"cells: {fault.strerror}") from None
        self.words = memoryview(self._map).cast("Q")
        self.halves = memoryview(self._map).cast("I")
        self._unused = iter(range(limits.CELL_SLOTS))
        self._free: deque[int] = deque()
        self._flushed = b""
        self._name_is_durable = False

    def _make_named(self, directory: str) -> None:
        """Make it, under another name each time that `folding.sweep`, before it was locked, took it for one whose
        owner is gone: a sweep unlinks only what it has listed before.
        """
        for _ in range(_SWEEPS_MAX):
            with suppress(BlockingIOError, FileNotFoundError):
                return self._make(directory)
        return self._make(directory)

    def _make(self, directory: str) -> None:
        """Make it under a hidden name, locked and at its full size before it can be seen under its own."""
        self.name = ids.make("cells", os.urandom(16))
        self.path = os.path.join(directory, self.name)
        hidden = os.path.join(directory, f".{self.name}")
        self._handle = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._handle, 0, FILE_BYTES)
            # A map keeps the file that it was made from open: it must not be the one that holds the lock.
            with open(hidden, "r+b") as unlocked:
                self._map = mmap.mmap(unlocked.fileno(), FILE_BYTES)
            os.rename(hidden, self.path)
        except BaseException:
            os.close(self._handle)
            remove_file(hidden)
            raise

    def take_slot(self) -> int:
        """A slot that no living thread writes to; raises `cells_exhausted` where all are in use."""
        try:
            return self._free.popleft()
        except IndexError:
            slot = next(self._unused, None)
        if slot is None:
            raise DeviceError("cells_exhausted")
        return slot

    def count_at(self, slot: int) -> int:
        """The count that a new cell in this slot starts from."""
        return self.words[slot * WORDS_PER_SLOT] & limits.CELL_COUNT_MAX

    def unprepare(self, slot: int) -> None:
        """Say that no call is in flight in a slot after all."""
        at = slot * WORDS_PER_SLOT
        self.words[at + 1] = self.words[at]

    def is_worn(self, slot: int) -> bool:
        """Whether a slot's count, or its low half, has come so far that another slot should go on."""
        count = self.count_at(slot)
        return count > limits.CELL_COUNT_MAX // 2 or count & HALF > HALF // 2

    def free_slot(self, slot: int) -> None:
        """Give a slot back, once its last cell is folded and forgotten. If its low half was worn, the next cell
        starts at the next higher half; if the whole count is, the slot is not used again.
        """
        if self.is_worn(slot):
            count = (self.count_at(slot) | HALF) + 1
            self.words[slot * WORDS_PER_SLOT] = min(count, limits.CELL_COUNT_MAX)
        if not self.is_worn(slot):
            self._free.append(slot)

    def read(self, slot: int) -> Word:
        """Read one cell of this process."""
        at = slot * WORDS_PER_SLOT
        return unpack(*self.words[at : at + 3])

    def prepare(self, slot: int, window: int) -> None:
        """Say that a call is in flight in a slot, before the row of its new cell is committed."""
        at = slot * WORDS_PER_SLOT
        word = pack(window, self.count_at(slot))
        self.words[at + 1] = word + 1
        self.words[at] = word

    def flush_changed(self) -> bool:
        """Write the counts to disk, so that a power loss unsettles less; tells whether any had changed."""
        counts = bytes(self.words)
        if counts == self._flushed:
            return False
        try:
            self._flush(0, FILE_BYTES)
        except OSError as fault:
            raise LedgerError("ledger_unwritable", f"cells: {fault.strerror}") from None
        self._flushed = counts
        return True

    def flush_slot(self, slot: int) -> None:
        """Write one cell to disk."""
        page = slot * limits.CELL_SLOT_BYTES // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            self._flush(page, min(mmap.PAGESIZE, FILE_BYTES - page))
        except OSError as fault:
            raise LedgerError("ledger_unwritable", f"cells: {fault.strerror}") from None

    def _flush(self, start: int, size: int) -> None:
        """Write a part of the file to disk, and the first time its name: without it the counts are not found."""
        self._map.flush(start, size)
        if not self._name_is_durable:
            sync_directory(os.path.dirname(self.path))
            self._name_is_durable = True

    def disown(self) -> None:
        """After fork(), in the child: close the inherited lock, so that it ends with the parent."""
        os.close(self._handle)

    def remove(self) -> None:
        """Unlink the file and free its lock; the mapping lives on for threads that still hold it.

        Where it cannot be unlinked, the next keeper sweeps it.
        """
        with suppress(OSError):
            remove_file(self.path)
        os.close(self._handle)


class Retired(NamedTuple):
    """A cell that nobody will write again: to be folded once more, then its slot can be reused."""

    cell: str
    slot: int


class Cell:
    """One thread's live count of one meter under one token. Only that thread may write it."""

    __slots__ = ("_retired", "at", "halves", "id", "slot", "standing", "words")

    def __init__(
        self, cell: str, slot: int, file: CellFile, retired: deque[Retired], *, standing: Standing
    ) -> None:
        self.id = cell
        self.slot = slot
        self.words = file.words
        self.halves = file.halves
        self.at = slot * WORDS_PER_SLOT
        self._retired = retired
        self.restate(standing)

    @property
    def word(self) -> int:
        """The cell itself: its window and its count in one number."""
        return self.words[self.at]

    def restate(self, standing: Standing) -> None:
        """Go on in another window or under other flags, after the cell was folded. It is on the way of a call,
        which stays in flight throughout.
        """
        self.standing = standing
        word = pack(standing.window, self.words[self.at] & limits.CELL_COUNT_MAX)
        self.words[self.at + 1] = word + 1
        self.words[self.at] = word

    def start(self, units: int) -> None:
        """Say that a call of so many units is in flight; 0 says that none is."""
        self.words[self.at + 1] = self.words[self.at] + units

    def admit(self, units: int, until_ns: int) -> None:
        """Say that a call is in flight, and until when more may follow it in this window."""
        self.words[self.at + 2] = until_ns
        self.start(units)

    def count(self, units: int) -> None:
        """Count an answer that is about to be delivered."""
        self.words[self.at] = self.words[self.at] + units

    def __del__(self) -> None:
        # A finalizer may run in any thread, inside any lock: it only leaves a note.
        self._retired.append(Retired(self.id, self.slot))


class ForeignCells:
    """The cell file of another process, or of one that is gone: to be read, never written."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._handle = os.open(
                path, os.O_RDWR | os.O_CLOEXEC
            )  # some file systems lock only what one may write
        except OSError as fault:
            if fault.errno != errno.EROFS:
                raise
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def owner_is_gone(self) -> bool:
        """Try to take the lock: it is free only when the owner is gone, and then it stays taken here."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self, slot: int) -> Word | None:
        """Read one cell, or None where the file is too short to hold it."""
        data = os.pread(self._handle, _SLOT_WORDS.size, slot * limits.CELL_SLOT_BYTES)
        return unpack(*_SLOT_WORDS.unpack(data)) if len(data) == _SLOT_WORDS.size else None

    def close(self) -> None:
        """Close the file, and free its lock if it was taken."""
        os.close(self._handle)
