"""What may happen in a simulated world, one step at a time, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim_faults import Plan
from sim_world import COPIES_MAX, DAY_S, HOUR_S, PIPELINE_MAX, Letter, World

from licensing_server.licenses import service as licenses
from licensing_server.pages import Page
from licensing_server.usage import deciding
from licensing_server.usage import service as usage
from licensing_server.usage.deciding import Resolution
from meterkit import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim_device import SimDevice


def run(world: World, device: SimDevice) -> None:
    """Use some units, in one record or a few, sometimes reported for an earlier window."""
    for _ in range(world.chance.choice([1, 1, 2, 4])):
        meter = world.chance.choice(list(device.license.grants))
        units = world.chance.choice([1, 7, 40, 150, 10**6 if device.left(meter) is not None else 900])
        ago = world.chance.choice([0, 0, 0, 1, 90])
        if device.run(meter, units, at=device.window_ago(ago)):
            world.tally["records"] += 1


def crash(world: World, device: SimDevice) -> None:
    """Lose power: what a lease covered is unsettled, and the cells are new."""
    device.reboot()
    device.run(world.chance.choice(list(device.license.grants)), 0, unsettled=world.chance.randint(1, 30))
    world.tally["crashes"] += 1


def sync(world: World, device: SimDevice) -> None:
    """Hand over what no receipt covers, now."""
    if device.entries:
        world.send(world.write(device, device.covered + 1, len(device.entries)), _fate(world))


def post(world: World, device: SimDevice) -> None:
    """Make a batch after the last one made, or one that overlaps it, and leave it to the network."""
    last = len(device.entries)
    if last and len(world.mail) < PIPELINE_MAX:
        first = world.chance.choice(
            [min(device.made, last) + 1, device.covered + 1, world.chance.randint(1, last)]
        )
        world.mail.append(world.write(device, first, max(world.chance.randint(first, last + 1) - 1, first - 1)))


def arrive(world: World, _: SimDevice) -> None:
    """Bring any letter in the mail, in whatever order; it may come again later."""
    if world.mail:
        at = world.chance.randrange(len(world.mail))
        letter = world.mail[at] if world.chance.random() < 0.3 else world.mail.pop(at)
        world.send(letter, _fate(world))


def lose(world: World, _: SimDevice) -> None:
    """Lose a letter, or a reply."""
    lost = world.chance.choice([world.mail, world.replies])
    if lost:
        lost.pop(world.chance.randrange(len(lost)))
        world.tally["lost"] += 1


def reply(world: World, _: SimDevice) -> None:
    """Hand a reply that waited to a copy of its device, not always to the one that asked."""
    if world.replies:
        asked, waiting = world.replies[world.chance.randrange(len(world.replies))]
        copies = [each for each in world.copies if each.id == asked.id]
        if copies:
            world.chance.choice(copies).take(waiting)


def race(world: World, device: SimDevice) -> None:
    """Two requests at once: the second is answered between the first one's judgement and its writing; or one
    request of both.
    """
    copies = [each for each in world.copies if each.id == device.id and each.entries]
    if copies:
        first, second = (world.chance.choice(copies) for _ in range(2))
        outer = world.write(first, first.covered + 1, len(first.entries))
        if world.chance.random() < 0.5:
            second.run(next(iter(second.license.grants)), 3)
        inner = world.write(second, second.covered + 1, len(second.entries))
        if world.chance.random() < 0.2:
            world.send(outer.with_(inner), _fate(world))
            return
        world.send(outer, Plan(between=lambda: _send_within(world, inner)))
        world.tally["races"] += 1


def _send_within(world: World, letter: Letter) -> None:
    world.send(letter, Plan(), arrives=False)


def fill_stick(world: World, device: SimDevice) -> None:
    """Collect the batches of a few devices on a stick."""
    others = world.chance.sample(world.copies, min(2, len(world.copies)))
    chosen = [each for each in (device, *others) if each.entries]
    world.sticks.append([world.write(each, each.covered + 1, len(each.entries)) for each in chosen])


def bring_stick(world: World, _: SimDevice) -> None:
    """Bring a stick: late, or once more, or never, if it is stolen."""
    if world.sticks:
        stick = world.sticks.pop(world.chance.randrange(len(world.sticks)))
        fate = world.chance.random()
        if fate < 0.2:
            world.tally["stolen"] += 1
            return
        if fate < 0.6:
            world.sticks.append(stick)
        for letter in stick:
            world.send(letter, _fate(world))


def activate(world: World, device: SimDevice) -> None:
    """Ask for a token with a code, wherever the ledger is; sometimes with another license's."""
    licenses = list(world.model.licenses.values())
    moved = world.chance.random() < 0.4
    asked = world.ask(device, world.chance.choice(licenses) if moved else device.license)
    world.send(asked, _fate(world))
    if world.chance.random() < 0.2:
        world.mail.append(asked)


def wait(world: World, _: SimDevice) -> None:
    """Let time pass."""
    seconds = world.chance.choice([60, 900, HOUR_S, 6 * HOUR_S, DAY_S, 4 * DAY_S])
    world.fleet.clock.advance(seconds)
    world.tell(f"{seconds} s pass")


def clone(world: World, device: SimDevice) -> None:
    """Copy a device while it runs on."""
    if len(world.copies) < COPIES_MAX:
        world.model.dishonest.add(device.id)
        world.copies.append(device.copied(device.name + "'"))
        world.tell(f"{device.name} is cloned")
        world.tally["clones"] += 1


def image(world: World, device: SimDevice) -> None:
    """Take a snapshot of a device."""
    world.images.append(device.copied(device.name))


def restore(world: World, _: SimDevice) -> None:
    """Put a snapshot in the place of the device as it is."""
    if world.images:
        saved = world.chance.choice(world.images)
        for at, each in enumerate(world.copies):
            if each.id == saved.id and each.name == saved.name:
                world.model.dishonest.add(saved.id)
                world.copies[at] = saved.copied(saved.name)
                world.tell(f"{saved.name} is restored to {len(saved.entries)}")
                world.tally["restores"] += 1
                return


def reset(world: World, device: SimDevice) -> None:
    """Set the ledger aside, or forget it and all else but the key; forgetting gains nothing."""
    if device.id not in world.model.license_of:
        return
    aside = world.write(device, device.covered + 1, len(device.entries)) if device.entries else None
    if world.chance.random() < 0.6:
        device.reset()
    else:
        device.forget_everything()
    world.tell(f"{device.name} starts {device.epoch}")
    world.tally["resets"] += 1
    fate = world.chance.random()
    if aside is not None and device.entries and fate < 0.2:
        world.send(aside.with_(world.write(device, 1, len(device.entries))), _fate(world))
    elif aside is not None and fate < 0.7:
        world.mail.append(aside)
    for _ in range(world.chance.choice([0, 2, 3])):
        sync(world, device)


def lie(world: World, device: SimDevice) -> None:
    """Sign usage that no token allows: under one that nobody gave, or more than there was time for."""
    world.model.dishonest.add(device.id)
    if world.chance.random() < 0.5:
        device.lie(world.chance.choice([1, 10**6]))
    meter = next(iter(device.license.grants))
    if device.token is not None and device.entries:
        device.write(meter, world.chance.choice([1, 50, limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S + 1]))
        world.tally["lies"] += 1


def decide(world: World, device: SimDevice) -> None:
    """What people do: suspend a license or resume it, or resolve a fork."""
    held = [each for each in world.copies if each.id in world.model.held]
    device = world.chance.choice(held) if held else device
    license_ = device.license
    if license_.suspended or world.chance.random() < 0.3:
        license_.suspended = not license_.suspended
        licenses.change_state(world.fleet.server, license_.id, "suspended" if license_.suspended else "active")
        world.tell(f"{license_.id} suspended: {license_.suspended}")
        return
    items = usage.page_exceptions(world.fleet.server, Page(limit=200), device=device.id, state="open")["items"]
    forks = sorted(item["id"] for item in items if item["kind"] == "fork")
    if forks:
        deciding.resolve(world.fleet.server, world.chance.choice(forks), Resolution(how="seen"), who="sim")
        if len(forks) == 1:
            world.model.held.discard(device.id)
        world.tell(f"a fork of {device.name} is resolved")


def bill(world: World, _: SimDevice) -> None:
    """The vendor bills what it knows of; its server may die of it at any statement."""
    dies = world.chance.random() < 0.2 * world.troubles
    came = world.books.bill(Plan(dies_at=world.chance.randint(1, 150)) if dies else Plan())
    world.tally["runs"] += 1
    world.tell(f"billed: {came}")


def _fate(world: World) -> Plan:
    """What befalls a request: mostly nothing."""
    fate = world.chance.random()
    if fate < 0.08 * world.troubles:
        return Plan(dies_at=world.chance.randint(1, 40))
    if fate < 0.16 * world.troubles:
        return Plan(commit=world.chance.choice(["fails before", "fails after", "dies before", "dies after"]))
    return Plan()


ORDINARY: dict[Callable[[World, SimDevice], None], int] = {
    run: 30,
    sync: 20,
    post: 10,
    arrive: 12,
    reply: 5,
    wait: 12,
    bill: 4,
}
MISHAPS: dict[Callable[[World, SimDevice], None], int] = {
    crash: 4,
    lose: 4,
    race: 5,
    fill_stick: 3,
    bring_stick: 4,
    activate: 3,
    clone: 1,
    image: 1,
    restore: 2,
    reset: 4,
    lie: 1,
    decide: 3,
}
NEEDS = {
    arrive: "mail",
    reply: "replies",
    bring_stick: "sticks",
    restore: "images",
}  # what of the world each needs
