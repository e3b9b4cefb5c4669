"""What a power loss leaves of cell files: any state that each cell had since it was written to the disk."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from device_sdk.cells import CellFile
from meterkit import limits

PAGE_BYTES = 4_096  # the cells of a process that has no more than 64
_STATES_MAX = 6
_GONE = 7


class Disk:
    """Knows which state of each cell file is durable, and which the system may have written by itself since."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._durable: dict[str, bytes] = {}
        self._since: dict[str, list[bytes]] = {}
        for name in ("flush_slot", "flush_changed"):
            monkeypatch.setattr(CellFile, name, self._noting(getattr(CellFile, name)))

    def _noting(self, flush):
        def noted(file: CellFile, *args):
            answer = flush(file, *args)
            self._durable[file.name], self._since[file.name] = bytes(file.words)[:PAGE_BYTES], []
            return answer

        return noted

    def note(self, paths: Iterable[Path]) -> None:
        """Note what the files hold now: it may come to be on the disk."""
        for path in paths:
            kept = self._since.setdefault(path.name, [])
            kept.append(path.read_bytes()[:PAGE_BYTES])
            del kept[:-_STATES_MAX]

    def revert(self, path: Path, picks: list[int]) -> None:
        """Put each cell back to one of its states, as picked: 0 is the last. A file may be gone altogether."""
        durable = self._durable.get(path.name, bytes(PAGE_BYTES))
        states = [durable, *self._since.get(path.name, [])]
        if path.name not in self._durable and picks[0] == _GONE:
            path.unlink()
            return
        with path.open("r+b") as file:
            for slot in range(PAGE_BYTES // limits.CELL_SLOT_BYTES):
                state = states[-1 - picks[slot % len(picks)] % len(states)]
                file.seek(at := slot * limits.CELL_SLOT_BYTES)
                file.write(state[at : at + limits.CELL_SLOT_BYTES])
