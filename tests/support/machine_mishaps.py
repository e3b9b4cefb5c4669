"""What befalls a simulated device's files: deleted, damaged, put back, or not yet on the disk at a power loss."""

from collections import Counter as Tally
from pathlib import Path

from device_damage import flip, set_body
from machine_world import Process, World


class Mishaps(World):
    """Whatever the files lose, it is noted what the device can know no more."""

    def lose_cells(self, process: Process) -> None:
        """A process is killed, and its cell file deleted: in the same boot its lease's rest counts as used."""
        self.kill(process)
        if process.file is None or not Path(process.file.path).exists() or "tampered" in self.happened:
            return
        self.faults.clear()
        file = process.file.name
        unfolded = self.unfolded_by_file().get(file, Tally())
        for name in {row.model for row in self.view.cells if row.file == file}:
            self.extra[name] += self.view.leased(name, {file}) - unfolded[name]
        Path(process.file.path).unlink()
        self.happened.add("cell lost")
        other = self.processes[0] if self.processes else self.open()
        other.device.status()

    def lose_ledger(self, how: str) -> None:
        """The ledger is deleted, or replaced by an earlier copy, or a record is altered."""
        path = self.site.path / "ledger.sqlite"
        if how == "damaged":
            usage = [record["seq"] for record in self.view.usage]
            if not usage:
                return
            for process in self.processes:  # what is in a connection's memory would outlive the damage
                process.device._store.drop()
            set_body(self.site, usage[len(usage) // 2], flip)
        elif how == "deleted":
            path.unlink(missing_ok=True)
            path.with_name("ledger.sqlite-journal").unlink(missing_ok=True)
        else:
            path.with_name("image").write_bytes(self._image)
            path.with_name("image").replace(path)
        self.happened |= {how, "tampered"}

    def lose_power(self, off_s: float, picks: list[int]) -> None:
        """Every process is gone; of each cell, some state since its last flush is on the disk."""
        strict = {each.file.name for each in [*self.processes, *self.closing] if each.strict and each.file}
        self.disk.note(self.cell_files())
        before = self.unfolded_by_file()
        for process in [*self.processes, *self.closing]:
            self.kill(process)
        for place, path in enumerate(self.cell_files()):
            self.disk.revert(path, picks[place:] + picks[:place])
        if "tampered" not in self.happened:
            self._note_lost(before, self.unfolded_by_file(), strict)
            self.view.note_power_loss()
        self.happened.add("power lost")
        self.time.reboot(off_s)

    def _note_lost(self, before: dict, after: dict, strict: set[str]) -> None:
        for file, meters in before.items():
            for name, units in meters.items():
                missing = units - after[file][name]
                assert not (missing and file in strict), "a unit counted strictly was not durable"
                self.lost[name] += missing
