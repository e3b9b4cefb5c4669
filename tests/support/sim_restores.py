"""A fleet whose server is put back from a backup, again and again: nothing is lost, doubled, or taken for a clone.

Devices are honest and keep all their records; replies are lost. In the end every device brings its whole ledger on
a stick, and what is accepted must be what was used, whatever the server had forgotten in between.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim_judging import must, same

from licensing_server.database import read
from licensing_server.pages import Page
from licensing_server.reconciliation import service as reconciliation
from licensing_server.usage import gone_store
from licensing_server.usage import service as usage
from licensing_server.usage.rebuild import rebuild

if TYPE_CHECKING:
    from fleet import FakeDevice, Fleet

STEPS = 60
HOUR_S = 3_600
ROUNDS = 5  # a device that comes that often has brought all that it is asked for


@dataclass
class Restores:
    """One run: the fleet, what each device has used, and the backup."""

    fleet: Fleet
    seed: int
    used: dict[str, int] = field(default_factory=dict)
    restores: int = 0
    backup: str | None = None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311 - a replay needs no secret
        self.devices: list[FakeDevice] = []
        for _ in range(self.chance.randint(1, 2)):
            license_id = self.fleet.grant(token_units_max=None, fork_policy=self.chance.choice(["flag", "hold"]))
            for _ in range(self.chance.randint(1, 2)):
                self.devices.append(self.fleet.device(license_id))

    def step(self) -> None:
        """Let something happen to one device, or to the server."""
        device = self.chance.choice(self.devices)
        acts = (self.use, self.sync, self.lose, self.wait, self.take_backup, self.put_back)
        (act,) = self.chance.choices(acts, [6, 6, 3, 2, 1, 1])
        act(device)

    def use(self, device: FakeDevice) -> None:
        units = self.chance.randint(1, 50)
        device.use(units)
        self.used[device.id] = self.used.get(device.id, 0) + units

    def sync(self, device: FakeDevice, *, lost: bool = False) -> None:
        """Hand over what the newest receipt does not cover; the reply may be lost."""
        self.fleet.clock.advance(1)
        before = device.token
        reply = self.fleet.exchange(device.batch())
        if not lost:
            device.take(reply)
            if device.token is not before:
                device.install()

    def lose(self, device: FakeDevice) -> None:
        self.sync(device, lost=True)

    def wait(self, _: FakeDevice) -> None:
        self.fleet.clock.advance(self.chance.choice([60, HOUR_S, 24 * HOUR_S]))

    def take_backup(self, _: FakeDevice) -> None:
        self.backup = self.fleet.take_backup()

    def put_back(self, _: FakeDevice) -> None:
        if self.backup is not None:
            self.restores += 1
            self.fleet.put_back(self.backup)

    def finish(self) -> None:
        """Let every device report, and bring its whole ledger; then all must be there, once."""
        for device in self.devices:
            for _ in range(ROUNDS):
                self.sync(device)
            self.fleet.exchange(device.batch(1))
        self.check()

    def check(self) -> None:
        asked = Page(limit=200)
        kinds = {each["kind"] for each in self.fleet.exceptions() if each["state"] != "resolved"}
        must(f"exceptions of {kinds}", kinds <= {"server_rollback", "unknown_token"})
        items = usage.sum_usage(self.fleet.server)["items"]
        same("units", sum(each["units"] + each["quarantined"] for each in items), sum(self.used.values()))
        with read(self.fleet.server) as connection:
            same("what only receipts stand for", list(gone_store.read(connection)), [])
        must("it does not add up", reconciliation.page(self.fleet.server, reconciliation.Asked(), asked)["holds"])
        same("what a rebuild finds", rebuild(self.fleet.server, check=True)["items"], [])


def play(fleet: Fleet, seed: int, *, steps: int = STEPS) -> Restores:
    """Play one seed on a fresh server; raises where something differs."""
    run = Restores(fleet, seed)
    for _ in range(steps):
        run.step()
    run.finish()
    return run
