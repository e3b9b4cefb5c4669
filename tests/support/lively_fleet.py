"""A fleet that does what fleets do: it forks, resets, lies, comes late, changes licenses, and is decided about."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any

from licensing_server.customers import service as customers
from licensing_server.devices import service as devices
from licensing_server.usage import deciding
from licensing_server.usage.deciding import Resolution
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from fleet import FakeDevice, Fleet

DAY = 86_400
IMPLAUSIBLE = 10**6 * 900


def lively(fleet: Fleet, seed: int, *, steps: int = 60) -> tuple[random.Random, list[FakeDevice]]:
    """Play some weeks of six devices of two customers on three licenses."""
    chance = random.Random(seed)  # noqa: S311 - a test's, on purpose
    other = customers.create(fleet.server, name="=1+1", time_zone="Asia/Tokyo")["id"]
    pool = {"pool_units": 10**7, "pool_per": "period"}
    granted = [fleet.grant(), fleet.grant(token_units_max=None), fleet.grant(customer=other, **pool)]
    made = [fleet.device(chance.choice(granted)) for _ in range(6)]
    for _ in range(steps):
        device = chance.choice(made)
        _step(fleet, chance, device, granted)
        if chance.random() < 0.07:
            made.append(device.clone())
    for device in made:
        hand_over(device, 1)
    return chance, made


def _step(fleet: Fleet, chance: random.Random, device: FakeDevice, granted: list[str]) -> None:
    happens = chance.random()
    if happens < 0.06:
        device.reset()
    elif happens < 0.13:
        use(device, IMPLAUSIBLE + chance.randint(1, 9))
    elif happens < 0.17:
        use(device, 5, token="tok_" + "a" * 26, flags=("over_limit",))
    elif happens < 0.2:
        _install(device, iat=5)  # it lies about its token
    elif happens < 0.28:
        _move(fleet, device, chance.choice(granted))
    elif happens < 0.31:
        devices.revoke(fleet.server, "token", device.token.jti)
    elif happens < 0.65:
        at = fleet.clock.now - chance.randint(0, 9 * DAY)
        flags = ("clock",) if happens > 0.62 else ()
        use(device, chance.randint(0, 50), at=at, unsettled=int(happens > 0.5), flags=flags)
    else:
        fleet.clock.advance(chance.randint(0, 2 * DAY))
        hand_over(device, chance.choice([1, 1, None]))


def use(device: FakeDevice, units: int, **named: Any) -> None:
    """Use units under the token that the ledger names, which has to be installed first."""
    if not device.entries or _license_at(device, len(device.entries)) != device.token.license_id:
        _install(device)
    device.use(units, **named)


def _install(device: FakeDevice, **changed: Any) -> None:
    """Install the newest token, if the ledger has not got it."""
    known = [each.claims["serial"] for each in device.entries if each.claims["kind"] == "token"]
    if not known or known[-1] < device.token.serial:
        device.install(**changed)


def _move(fleet: Fleet, device: FakeDevice, license_id: str) -> None:
    """Activate, anchored ahead of what is accepted, and maybe on another license."""
    use(device, 3)
    with contextlib.suppress(MeterkitError):  # a fork may hold it
        device.activate(fleet.code(license_id))
    _install(device)


def _license_at(device: FakeDevice, seq: int) -> str | None:
    named = [each.claims["license"] for each in device.entries[:seq] if each.claims["kind"] == "token"]
    return named[-1] if named else None


def hand_over(device: FakeDevice, first: int | None) -> None:
    """Send records from `first` on, or from the last receipt on, cut where the license changes."""
    device.begin()
    last = len(device.entries)
    covered = 0
    if device.receipt is not None:
        position = device.open_receipt(device.receipt).position
        covered = position.seq if position.epoch == device.epoch else 0
    start = first or covered + 1
    for seq in range(start, last + 1):
        if seq == last or _license_at(device, seq + 1) != _license_at(device, seq):
            device.sync(first=start, last=seq)
            start = seq + 1


def decide_all(fleet: Fleet, chance: random.Random) -> None:
    """Resolve every exception that waits, one way or another; some are opened again."""
    for found in [each for each in fleet.exceptions() if each["state"] != "resolved"]:
        if chance.random() < 0.3:
            deciding.acknowledge(fleet.server, found["id"], owner="Ada", note="seen")
        outcome, branch = None, None
        if found["kind"] in deciding.QUARANTINES:
            outcome = chance.choice(["keep", "release"])
        if found["kind"] == "fork":
            shown = deciding.show(fleet.server, found["id"])["branches"]
            open_ = [each["head"] for each in shown if not each["dismissed"]]
            if len(open_) > 1:
                outcome, branch = "dismiss_branch", chance.choice(open_)
        deciding.resolve(fleet.server, found["id"], Resolution(how="x", outcome=outcome, branch=branch))
