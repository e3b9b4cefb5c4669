"""The ledger as it lies on the disk, read beside the product, and what must hold of it at every moment."""

import json
import sqlite3
from collections import Counter as Tally
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from meterkit import limits
from meterkit.ledger import Chain, verify_chain
from meterkit.positions import ZERO, Position

_CELLS = "SELECT cell, file, slot, model, unit, boot, mark FROM cells ORDER BY cell"
_LEASES = "SELECT file, model, unit, units, boot FROM leases"


class Row(NamedTuple):
    """A cell's row: how far it is folded."""

    cell: str
    file: str
    slot: int
    model: str
    unit: str
    boot: str
    mark: int


class Word(NamedTuple):
    """A cell's first two words."""

    word: int
    started: int

    @property
    def count(self) -> int:
        return self.word & limits.CELL_COUNT_MAX

    @property
    def in_flight(self) -> int:
        return max(self.started - self.word, 0)


class Lease(NamedTuple):
    """A row of what one process holds on lease of one meter."""

    file: str
    model: str
    unit: str
    units: int
    boot: str


class Owed(NamedTuple):
    """What a power loss left to be settled for one file and model: its lease, and the cells that it is for."""

    units: int
    cells: frozenset[str]
    seq: int


class LedgerView:
    """Reads what is committed. Records are followed one by one, as a server does, and kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.epoch = ""
        self.records: list[dict] = []
        self.cells: list[Row] = []
        self.leases: list[Lease] = []
        self.floor_ns = 0
        self.owed: dict[tuple[str, str], Owed] = {}
        self._chain: Chain | None = None
        self._bodies: dict[tuple[str, int], bytes] = {}  # also of what was pruned since
        self.fresh: list[dict] = []
        self.read()
        self.remember()

    def read(self) -> None:
        path = self._directory / "ledger.sqlite"
        if not path.exists():  # connecting would make one
            self.cells, self.leases = [], []
            return
        connection = sqlite3.connect(path)
        try:
            self._read(connection)
        finally:
            connection.close()

    def _read(self, connection: sqlite3.Connection) -> None:
        state = dict(connection.execute("SELECT name, value FROM state").fetchall())
        if "epoch" not in state:  # it was deleted under a living process, which takes no new one for it
            self.cells, self.leases = [], []
            return
        epoch = json.loads(state["epoch"])
        found = connection.execute("SELECT seq, hash, body FROM records").fetchall()
        hashes = {seq: hash_ for seq, hash_, _ in found}
        self._bodies |= {(epoch, seq): body for seq, _, body in found}
        self._check_pruned(hashes, connection)
        if epoch != self.epoch or not self._continues(hashes):
            self.epoch, self.records = epoch, []
            device = json.loads(self._bodies[epoch, 1])["device"]
            self._chain = Chain(device=device, position=Position(epoch=epoch))
        new = range(len(self.records) + 1, max(hashes) + 1)
        self._chain, entries = verify_chain(self._chain, [self._bodies[epoch, seq] for seq in new])
        assert all(hashes.get(entry.seq, entry.hash) == entry.hash for entry in entries)
        self.records += [entry.claims | {"hash": entry.hash} for entry in entries]
        self.fresh += [entry.claims for entry in entries]
        self.cells = [Row(*row) for row in connection.execute(_CELLS)]
        self.leases = [Lease(*row) for row in connection.execute(_LEASES)]
        self.floor_ns = json.loads(state["clock"])["floor_ns"]

    def _continues(self, hashes: dict[int, str]) -> bool:
        known = len(self.records)
        return not known or hashes.get(known) == self.records[-1]["hash"]

    @staticmethod
    def _check_pruned(hashes: dict[int, str], connection: sqlite3.Connection) -> None:
        """What is gone is before the oldest receipt that is kept."""
        (cut,) = connection.execute("SELECT MIN(seq) FROM receipts").fetchone()
        gone = set(range(1, max(hashes))) - hashes.keys()
        assert all(cut is not None and seq < cut for seq in gone)

    @property
    def totals(self) -> dict:
        return self._chain.totals

    @property
    def usage(self) -> list[dict]:
        return [record for record in self.records if record["kind"] == "usage"]

    @property
    def token(self) -> dict:
        return [record for record in self.records if record["kind"] == "token"][-1]

    def units(self) -> Tally[str]:
        found: Tally[str] = Tally()
        for (model, _), total in self._chain.totals.items():
            found[model] += total.units
        return found

    def unsettled(self) -> Tally[str]:
        found: Tally[str] = Tally()
        for (model, _), total in self._chain.totals.items():
            found[model] += total.unsettled
        return found

    def leased(self, model: str, files: set[str] | None = None) -> int:
        return sum(row.units for row in self.leases if row.model == model and (files is None or row.file in files))

    def is_anchored(self, anchor: dict) -> bool:
        if anchor["epoch"] != self.epoch or anchor["seq"] > len(self.records):
            return False
        return anchor["head"] == (self.records[anchor["seq"] - 1]["hash"] if anchor["seq"] else ZERO)

    def used(self, model: str, anchor: dict) -> int:
        """What counts against a limit: recorded after the anchor, or leased by any process."""
        if not self.is_anchored(anchor):
            return self.leased(model)
        after = [record for record in self.usage if record["seq"] > anchor["seq"] and record["model"] == model]
        return sum(record["units"] + record["unsettled"] for record in after) + self.leased(model)

    def remember(self) -> None:
        """Keep what is leased and recorded now: what a token that comes next finds used."""
        self._before = len(self.records), self.leases

    def used_before(self, model: str, anchor: dict) -> int:
        seq, leases = self._before
        after = [each for each in self.usage if anchor["seq"] < each["seq"] <= seq and each["model"] == model]
        leased = sum(lease.units for lease in leases if lease.model == model)
        return leased + sum(each["units"] + each["unsettled"] for each in after)

    # -- what a power loss leaves

    def note_power_loss(self) -> None:
        """From now on each lease is owed: as units that its cells prove, and as unsettled ones, once."""
        cells: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in self.cells:
            cells[row.file, row.model].add(row.cell)
        for lease in self.leases:
            key = lease.file, lease.model
            if key not in self.owed and cells[key]:
                self.owed[key] = Owed(lease.units, frozenset(cells[key]), len(self.records))

    def check_settled(self) -> None:
        """Each lease that is settled now was settled whole, and its unsettled part named once."""
        here = {row.file for row in self.leases} | {row.file for row in self.cells}
        for key, owed in list(self.owed.items()):
            if key[0] in here:
                continue
            del self.owed[key]
            found = [each for each in self.usage if each["cell"] in owed.cells and each["seq"] > owed.seq]
            assert sum(each["units"] + each["unsettled"] for each in found) == owed.units
            assert sum(each["unsettled"] > 0 for each in found) <= 1
            assert all("recovered" in each["flags"] for each in found)
