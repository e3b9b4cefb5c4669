"""What must hold of a device after every step, whatever happened to it, and at the end."""

import itertools
from collections import Counter as Tally
from collections import defaultdict
from pathlib import Path

from machine_life import Life, terms
from machine_world import METERS, Process

from meterkit import limits


class Checks:
    """Compares what truly happened with what the ledger says. It remembers what must not go back."""

    def __init__(self, world: Life) -> None:
        self.world = world
        self.view = world.view
        self._floor_ns = 0
        self._epoch = self.view.epoch
        self._bounds: dict[tuple[str, str], int] = {}

    def check(self) -> None:
        self.view.read()
        tampered = "tampered" in self.world.happened
        self._check_leases(tampered=tampered)
        if not tampered:
            assert self.view.epoch == self._epoch
            self._check_records()
            self._check_counts()
            self._check_limits()
            self._check_clock()
            self.view.check_settled()
        self.view.remember()
        self.view.fresh.clear()
        self.world.disk.note(self.world.cell_files())

    # -- records

    def _check_records(self) -> None:
        happened = self.world.happened
        for record in self.view.fresh:
            if record["kind"] == "usage":
                self._check_usage(record)
            elif record["kind"] == "recovery":
                assert {"power_lost": "power lost", "cell_lost": "cell lost"}[record["code"]] in happened
            elif record["kind"] == "clock":
                assert not self.world.clock_right or record["reason"] in ("forward", "mended")

    def _check_usage(self, record: dict) -> None:
        token = self.world.tokens[record["token"]]
        allowed = {"recovered"} if "power lost" in self.world.happened else set()
        if "cell lost" in self.world.happened:
            allowed.add("cell_lost")
        for policy, flags in (("limit", ["over_limit"]), ("expiry", ["expired"]), ("clock", ["clock"])):
            if getattr(token.policy, policy) == "flag":
                allowed.update(flags)
        start_s = record["window"] * limits.WINDOW_S
        leased_before = not record["units"]  # a lease's rest stands in the window in which it was settled
        if start_s + limits.WINDOW_S > token.exp or leased_before:
            allowed.add("grace")
        assert set(record["flags"]) <= allowed, record
        assert record["units"] or record["unsettled"]
        if record["units"] and token.policy.expiry == "deny" and "cell_lost" not in record["flags"]:
            assert start_s < token.exp + token.grace_s, record
        if record["units"] and "cell_lost" not in record["flags"]:
            for seq, through in self.world.promises:
                assert record["seq"] <= seq or start_s >= through, (record, through)

    def check_cells(self) -> None:
        """Records of one cell continue each other: nothing in it was folded twice, nothing left out."""
        by_cell = defaultdict(list)
        for record in self.view.usage:
            if record["from"] != record["to"]:
                by_cell[record["cell"]].append(record)
        for found in by_cell.values():
            for before, after in itertools.pairwise(found):
                assert after["from"] == before["to"]

    # -- counts

    def _check_counts(self) -> None:
        world = self.world
        unfolded: Tally[str] = Tally()
        for found in world.unfolded_by_file().values():
            unfolded += found
        for name in METERS:
            recorded = self.view.units()[name] + unfolded[name]
            true = world.counted[name] - world.lost[name] + world.extra[name]
            assert recorded == true, (name, recorded, true)
        alive = world.alive_files()
        for row in self.view.cells:
            if row.file in alive:
                assert row.mark <= world.word(row).count, "a mark beyond its cell"

    def _check_leases(self, *, tampered: bool) -> None:
        assert all(lease.units >= 0 for lease in self.view.leases), self.view.leases
        if tampered:
            return
        for process in self.world.processes:
            counter = process.device.counter
            if counter.own.file is None:
                continue
            for name, meter in METERS.items():
                count = counter.meter(meter)
                if count.sure and count.connections == counter.store.connections:
                    held = count.unused() + count.returned + self._unfolded(counter.own.file.name, name)
                    assert self.view.leased(name, {counter.own.file.name}) == held, name

    def _unfolded(self, file: str, name: str) -> int:
        """Units of a living process that are in no record yet: counted, or in flight."""
        rows = [row for row in self.view.cells if (row.file, row.model) == (file, name)]
        words = [(self.world.word(row), row.mark) for row in rows]
        return sum(max(0, word.count + word.in_flight - mark) for word, mark in words)

    # -- limits and time

    def _check_limits(self) -> None:
        """Recorded and leased units stay within the limit; what was beyond it when a token came grows no more."""
        named = self.view.token
        token = self.world.tokens[named["jti"]]
        for name in METERS:
            key = named["jti"], name
            if key not in self._bounds:
                limit = token.terms(name).limit
                deny = limit is not None and token.policy.limit == "deny"
                self._bounds[key] = max(limit, self.view.used_before(name, named["anchor"])) if deny else -1
            if self._bounds[key] >= 0:
                assert self.view.used(name, named["anchor"]) <= self._bounds[key], (name, self._bounds[key])

    def _check_clock(self) -> None:
        if not self.world.floor_may_fall:
            assert self.view.floor_ns >= self._floor_ns
        self._floor_ns = self.view.floor_ns
        self.world.floor_may_fall = False

    # -- after a fold, and at the end

    def check_folded(self) -> None:
        """Only living processes hold cells and leases; nothing that they counted is in no record."""
        self.view.read()
        held = {row.file for row in self.view.cells} | {row.file for row in self.view.leases}
        assert held <= self.world.alive_files()
        assert not any(sum(found.values()) for found in self.world.unfolded_by_file().values())

    def check_end(self) -> None:
        world = self.world
        world.faults.clear()
        for process in list(world.processes):
            world.close(process)
        for process in list(world.closing):
            world.kill(process)
        last = world.open()
        assert last is not None
        batches = world.hand_over(last)
        assert batches is not None
        self.check()
        if "tampered" in world.happened:
            self._check_goes_on(last, batches)
            return
        self.check_folded()
        assert not [path for path in world.cell_files() if last.file is None or path != Path(last.file.path)]
        self.check_cells()
        self._check_billed(batches)
        self._check_last_units(last, batches)

    def _check_goes_on(self, last: Process, batches: list[str]) -> None:
        """Whatever became of the ledger: what is left is handed over, and a new token is good for all of it."""
        if "restored" not in self.world.happened:
            self._check_last_units(last, batches)

    def _check_billed(self, batches: list[str]) -> None:
        """The vendor is told what truly happened, once."""
        world = self.world
        world.answer(batches, None)
        assert world.vendor.chains[self.view.epoch].totals == self.view.totals
        for name in METERS:
            assert world.vendor.units(name) == world.counted[name] - world.lost[name] + world.extra[name]
            assert world.delivered[name] <= world.vendor.units(name) + self.view.unsettled()[name]
        self._check_windows()

    def _check_windows(self) -> None:
        """A unit belongs to the window in which it was admitted."""
        recorded: Tally[tuple[str, int]] = Tally()
        for record in self.view.usage:
            recorded[record["model"], record["window"]] += record["units"]
        for name in METERS:
            if not self.world.lost[name] and "cell lost" not in self.world.happened:
                told, true = (
                    {window: units for (of, window), units in tally.items() if of == name and units}
                    for tally in (recorded, self.world.windows)
                )
                assert told == true, (name, told, true)

    def _check_last_units(self, last: Process, batches: list[str]) -> None:
        """Whatever processes held is free again: all of a limit can be used, and no more."""
        world = self.world
        if not world.clock_right:
            return
        world.take(last, world.answer(batches, terms(7, 5)))
        other = world.open()
        assert [world.call(last, "mul", 0, 1) for _ in range(3)] == [None] * 3
        codes = [world.call(each, "mul", 1, 1) for each in (other, last) * 6]
        assert codes.count(None) == 4, codes
        assert set(codes) <= {None, "limit_reached"}
        assert world.call(other, "rows", 0, 6) == "limit_reached"
        assert world.call(last, "rows", 0, 5) is None
