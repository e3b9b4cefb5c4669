"""A simulated world: devices and their copies, what is in the mail, on sticks, and a server that may fail."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fleet import PRODUCT
from sim_billing import Books
from sim_checks import Checks
from sim_device import CALLS, DIGESTS, ITEMS, SimDevice
from sim_faults import Died, Faults, Plan
from sim_judging import must
from sim_model import Grant, License, Model, Piece

from licensing_server.catalog import service as catalog
from licensing_server.devices import service as devices
from licensing_server.usage import service as usage
from meterkit import ids
from meterkit.canonical import digest
from meterkit.errors import MeterkitError
from meterkit.keys import SigningKey
from meterkit.licenses import Policy
from meterkit.positions import Position

if TYPE_CHECKING:
    from fleet import Fleet

    from meterkit.exchange import Reply

HOUR_S, DAY_S = 3_600, 86_400
COPIES_MAX = 12
PIPELINE_MAX = 40  # letters on their way at once


@dataclass(frozen=True)
class Letter:
    """A request on its way to the server, by whatever road."""

    device: SimDevice  # as it was when it wrote; only its keys are used
    texts: tuple[str, ...]
    pieces: tuple[Piece, ...] = ()
    serial: int = 0
    asks_at: Position | None = None  # an activation request, made at this position
    license: License | None = None  # and for this license

    def with_(self, other: Letter) -> Letter:
        """One request of both."""
        return replace(
            self,
            texts=self.texts + other.texts,
            pieces=self.pieces + other.pieces,
            serial=max(self.serial, other.serial),
        )

    def __str__(self) -> str:
        if self.asks_at is not None:
            return f"{self.device.name} asks for a token at {self.asks_at.seq}"
        runs = ", ".join(f"{piece.start[0] + 1}..{piece.end[0]}" for piece in self.pieces)
        return f"{self.device.name} sends {runs}"


class World:
    """Everything that happens in one run, and the means to make it happen. All chance comes from the seed."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.chance = random.Random(seed)  # noqa: S311 - a replay needs no secret
        self.model = Model()
        self.checks = Checks(fleet, self.model)
        self.faults = Faults(fleet.server.engine)
        self.books = Books(fleet, self.model, self.faults, self.chance)
        self.tally: Counter[str] = Counter()
        self.story: list[str] = []
        self.digest = ""
        self.copies: list[SimDevice] = []
        self.images: list[SimDevice] = []
        self.mail: list[Letter] = []
        self.sticks: list[list[Letter]] = []
        self.replies: list[tuple[SimDevice, Reply]] = []
        self.troubles = self.chance.choice([0, 1, 2])  # how often the server fails
        self._touched: list[str] = []

    def tell(self, line: str) -> None:
        """Add a line to the story; its digest tells whether two runs were the same."""
        self.story.append(line)
        self.digest = digest("mk-simulated", (self.digest + line).encode()).hex()

    # -- the beginning

    def begin(self) -> None:
        """Found the catalog, grant the licenses, and activate their devices."""
        self._found_models()
        for number in range(self.chance.randint(2, 3)):
            self._grant(number)

    def _found_models(self) -> None:
        name, unit = ITEMS
        axis = {"input": "frames", "dim": 0}
        catalog.create_model(
            self.fleet.server, product=PRODUCT, name=name, unit=unit, axis=axis, sha256=[DIGESTS[ITEMS]]
        )

    def _grant(self, number: int) -> None:
        chance = self.chance
        meters = chance.choice([(CALLS,), (CALLS,), (CALLS, ITEMS)])
        grants = {meter: self._grant_of_meter() for meter in meters}
        policy = Policy(
            expiry=chance.choice(["deny", "deny", "flag"]),
            limit=chance.choice(["deny", "deny", "deny", "flag"]),
        )
        count = chance.randint(1, 3)
        terms = {
            "plan": self.books.plan(),
            "models": tuple(
                {"name": name, "token_units_max": each.units_max, "pool_units": each.pool, "pool_per": each.per}
                for (name, _), each in grants.items()
            ),
            "policy": policy,
            "fork_policy": chance.choice(["flag", "flag", "hold", "suspend"]),
            "devices_max": max(1, count - chance.choice([0, 0, 0, 1])),
            "token_life_s": chance.choice([2 * HOUR_S, 2 * DAY_S, 10 * DAY_S, 30 * DAY_S]),
            "grace_s": chance.choice([0, HOUR_S, DAY_S, 7 * DAY_S]),
        }
        license_id = self.fleet.grant(**terms)
        license_ = License(
            id=license_id,
            code=self.fleet.code(license_id),
            grants=grants,
            policy=policy,
            fork_policy=terms["fork_policy"],
            devices_max=terms["devices_max"],
        )
        self.model.licenses[license_id] = license_
        for letter in "abc"[:count]:
            self._make_device(license_, f"{number}{letter}")

    def _grant_of_meter(self) -> Grant:
        units_max = self.chance.choice([None, 60, 500, 500, 2_000])
        pool = self.chance.choice([None, None, 300, 1_000, 1_000, 5_000])
        return Grant(units_max=units_max, pool=pool, per=self.chance.choice(["license", "license", "period"]))

    def _make_device(self, license_: License, name: str) -> None:
        device = SimDevice(
            fleet=self.fleet,
            key=SigningKey(self.fleet.random(32)),
            epoch=ids.make("ep", self.fleet.random(16)),
            model=self.model,
            license=license_,
            name=name,
            skew_s=self.chance.choice([0, 0, 0, -2 * HOUR_S, 3 * HOUR_S, 2 * DAY_S]),
        )
        self.copies.append(device)
        if self.chance.random() < 0.3:
            self.images.append(device.copied(name))
        self.send(self.ask(device, license_), Plan(), arrives=True)

    # -- letters

    def ask(self, device: SimDevice, license_: License) -> Letter:
        """An activation request."""
        text = device.request(license_.code)
        return Letter(device.copied(device.name), (text,), asks_at=device.position, license=license_)

    def write(self, device: SimDevice, first: int, last: int) -> Letter:
        """Batches of a run of records, in one request, cut anywhere."""
        cuts = sorted(
            {self.chance.randint(first, max(first, last)) for _ in range(self.chance.choice([0, 0, 1, 2]))}
        )
        cuts = sorted({*cuts, *device.license_changes()})
        edges = [*(cut for cut in cuts if first < cut <= last), last + 1]
        parts, start = [], first
        for edge in edges:
            parts.append(device.piece(start, edge - 1))
            start = edge
        device.made = max(device.made, last)
        texts, pieces = zip(*parts, strict=True)
        self.tally["batches"] += len(texts)
        return Letter(device.copied(device.name), texts, pieces, device.serial)

    # -- the server

    def send(self, letter: Letter, plan: Plan, *, arrives: bool | None = None) -> Reply | None:
        """Bring a letter to the server, under what befalls it; its reply arrives, waits, or is lost."""
        self.tally["requests"] += 1
        reply, outcome, told = None, "answered", ""
        try:
            with self.faults.planned(plan):
                reply = self._answer(letter)
        except Died:
            outcome = "died"
            self.tally["deaths"] += 1
        except MeterkitError as error:
            outcome, told = error.code, str(error)
        self.tell(f"{letter}: {outcome}{' (committed)' if plan.committed and reply is None else ''}")
        if reply is not None or plan.committed:
            self._taken(letter, reply)
        elif plan.is_quiet:
            self._refused(letter, outcome, told)
        self._touched.append(letter.device.id)
        if reply is not None:
            self._return(letter, reply, arrives=arrives)
        elif plan.committed:
            self.tally["lost replies"] += 1
        return reply

    def _answer(self, letter: Letter) -> Reply:
        if letter.asks_at is not None:
            return devices.activate(self.fleet.server, letter.texts[0])
        return usage.exchange(self.fleet.server, list(letter.texts))

    def _taken(self, letter: Letter, reply: Reply | None) -> None:
        device = letter.device
        if reply is None or self._asks_late(letter):
            self.model.unseen.add(device.id)
        if letter.asks_at is not None and letter.license is not None:
            self.model.activate(device.id, letter.license.id, letter.texts[0])
            if reply is not None:
                self.checks.activation(device, reply, letter.asks_at)
            return
        held_before = len(self.model.held)
        taken = [piece for piece in letter.pieces if self.model.take(piece, self.fleet.clock.now)]
        self.tally["holes"] += len(letter.pieces) - len(taken)
        self.tally["held"] += len(self.model.held) - held_before
        if reply is not None:
            self.checks.reply(device, reply, taken, told=letter.serial)

    def _asks_late(self, letter: Letter) -> bool:
        """Whether an activation names a position that its ledger has long passed, in what came."""
        at = letter.asks_at
        if at is None or at.seq == 0:
            return False
        ledger = self.model.ledgers[letter.device.id, at.epoch]
        return (at.seq, at.head) in ledger.reached and (at.seq, at.head) not in ledger.leaves()

    def _refused(self, letter: Letter, code: str, told: str) -> None:
        """Only an activation may be refused: usage that happened is always recorded."""
        device = letter.device
        now_of = self.model.license_of.get(device.id)
        asked = [letter.license, self.model.licenses[now_of] if now_of else None]
        licenses = [each for each in asked if each is not None]
        reasons = {
            "state_conflict": device.id in self.model.held,
            "license_inactive": any(each.suspended for each in licenses),
            "code_used_up": any(len(self.model.users[each.id]) >= each.devices_max for each in licenses),
        }
        must(f"{letter}: {told}", letter.asks_at is not None and reasons.get(code))
        self.tally["refusals"] += 1

    def _return(self, letter: Letter, reply: Reply, *, arrives: bool | None) -> None:
        fate = self.chance.random() if arrives is None else 1.0 - arrives
        self.digest = digest("mk-simulated", self.digest.encode(), reply.to_bytes()).hex()
        writers = [each for each in self.copies if each.name == letter.device.name and each.id == letter.device.id]
        if fate < 0.6 and writers:
            writers[0].take(reply)
        elif fate < 0.85:
            self.replies.append((letter.device, reply))
        else:
            self.tally["lost replies"] += 1

    # -- judging

    def check(self) -> None:
        """Hold every invariant on what the last step touched."""
        touched, self._touched = sorted(set(self._touched)), []
        for device in touched:
            self.checks.device(device)
        names = {self.model.license_of[device] for device in touched if device in self.model.license_of}
        for license_id in sorted(names):
            self.checks.license(self.model.licenses[license_id])

    def drain(self) -> None:
        """The end: every copy reports, everything that is still on its way arrives, and all is compared."""
        known = [device for device in self.copies if device.id in self.model.license_of and device.entries]
        for device in known:
            self.send(self.write(device, device.covered + 1, len(device.entries)), Plan(), arrives=False)
        for letter in (*self.mail, *(each for stick in self.sticks for each in stick)):
            self.send(letter, Plan(), arrives=False)
        for device in known:
            reached = self.model.ledgers[device.id, device.epoch].reached
            lacking = [entry.seq for entry in device.entries if (entry.seq, entry.hash) not in reached]
            must(f"{device.name} could not report {lacking}", not lacking)
        self.checks.everything()
        if self.tally["runs"]:
            self.books.close()
        self.tally["documents"] = self.books.documents
