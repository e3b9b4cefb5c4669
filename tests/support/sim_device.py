"""A simulated device: what the SDK would do with its ledger, its token and its clock, and what befalls it."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleet import DIGEST, MODEL, FakeDevice
from sim_model import ROOT, License, Model, Piece, Place

from meterkit import ids, limits
from meterkit.canonical import sha256_hex
from meterkit.positions import Position

if TYPE_CHECKING:
    from meterkit.exchange import Reply
    from meterkit.ledger import Entry
    from meterkit.licenses import Meter

CALLS: Meter = (MODEL, "call")
ITEMS: Meter = ("reader", "item")
DIGESTS = {CALLS: DIGEST, ITEMS: sha256_hex(b"another model")}


@dataclass(kw_only=True)
class SimDevice(FakeDevice):
    """One copy of a device: an image that was cloned makes a second one of the same key."""

    model: Model
    license: License
    name: str
    skew_s: int = 0  # how far its wall clock is off
    floor: int = 0  # the time that it knows to have passed
    covered: int = 0  # how far a receipt covers its ledger
    made: int = 0  # how far batches were made of its ledger
    cells: dict[Meter, tuple[str, int]] = field(default_factory=dict)

    def copied(self, name: str) -> SimDevice:
        """What a copied image is: the same key, and the same ledger so far, with fresh cells after its boot."""
        made = copy.copy(self)
        made.entries, made.name, made.cells = list(self.entries), name, {}
        return made

    @property
    def now(self) -> int:
        """Effective time: the wall clock, and never before what is known to have passed."""
        return max(self.fleet.clock.now + self.skew_s, self.floor)

    @property
    def place(self) -> Place:
        return self.position.seq, self.position.head

    # -- ledger

    def append(self, members: dict[str, Any], *, time: int | None = None) -> Entry:
        parent = self.place if self.entries else ROOT
        entry = super().append(members, time=self.now if time is None else time)
        self.model.sign((self.id, self.epoch), parent, (entry.seq, entry.hash), entry.claims)
        return entry

    def left(self, meter: Meter) -> int | None:
        """What the token in force leaves of its limit: nothing, if its anchor is not in this ledger."""
        if self.token is None:
            return 0
        limit = next((terms.limit for terms in self.token.models if terms.meter == meter), 0)
        if limit is None:
            return None
        anchor = self.token.anchor
        if anchor.epoch != self.epoch or anchor.seq > len(self.entries) or self.at(anchor.seq) != anchor:
            return 0
        since = (entry.claims for entry in self.entries[anchor.seq :] if entry.claims["kind"] == "usage")
        spent = (each["units"] + each["unsettled"] for each in since if (each["model"], each["unit"]) == meter)
        return max(0, limit - sum(spent))

    def run(self, meter: Meter, units: int, *, unsettled: int = 0, at: int | None = None) -> Entry | None:
        """Use units, or lose them unsettled, as far as the token allows; gives the record, if there is one."""
        if self.token is None or self.token.nbf > self.now or not self.entries:
            return None
        flags = ["recovered"] if unsettled else []
        if self.now >= self.token.exp + self.token.grace_s:
            if self.token.policy.expiry == "deny":
                return None
            flags.append("expired")
        elif self.now >= self.token.exp:
            flags.append("grace")
        left = self.left(meter)
        if left is not None and units + unsettled > left:
            if self.token.policy.limit == "flag":
                flags.append("over_limit")
            else:
                units = min(units, left)
                unsettled = min(unsettled, left - units)
        if units + unsettled == 0:
            return None
        return self.write(meter, units, unsettled=unsettled, flags=tuple(flags), at=at)

    def write(self, meter: Meter, units: int, **changed: Any) -> Entry:
        """Write a usage record, allowed or not."""
        cell, count = self.cells.get(meter) or (ids.make("cel", self.fleet.random(16)), 0)
        self.cells[meter] = (cell, count + units)
        at = changed.pop("at", None)
        named = {"model": meter[0], "unit": meter[1], "digest": DIGESTS[meter]}
        counts = {"cell": cell, "count_from": count, "count_to": count + units}
        return self.use(units, at=self.now if at is None else at, **named, **counts, **changed)

    def lie(self, serials: int) -> None:
        """Write the record of a token that nobody gave."""
        if self.token is not None and self.entries:
            self.serial += serials
            self.install(jti=ids.make("tok", self.fleet.random(16)), serial=self.serial)

    # -- mishaps

    def reboot(self) -> None:
        self.cells = {}

    def forget(self) -> None:
        """Lose the ledger: what was not sent of it is gone."""
        self.epoch = ids.make("ep", self.fleet.random(16))
        self.entries, self.cells = [], {}
        self.covered = self.made = 0

    def reset(self, **_: Any) -> None:
        """Set the ledger aside and start a new life of it, which names the old position."""
        previous = self.position if self.entries else None
        self.forget()
        self.begin(previous=previous)
        if self.token is not None:
            self.install()

    def forget_everything(self) -> None:
        """Be as it left the factory, but for its key."""
        self.forget()
        self.token, self.receipt, self.serial = None, None, 0

    # -- exchange

    def license_changes(self) -> list[int]:
        """Where a `token` record changes the license: a batch ends before it."""
        tokens = [entry for entry in self.entries if entry.claims["kind"] == "token"]
        pairs = itertools.pairwise(tokens)
        return [after.seq for before, after in pairs if before.claims["license"] != after.claims["license"]]

    def piece(self, first: int, last: int) -> tuple[str, Piece]:
        """A signed batch of its records, and what the model is to know of it."""
        start = self.at(first - 1)
        places = tuple((entry.seq, entry.hash) for entry in self.entries[first - 1 : last])
        return self.batch(first, last), Piece((self.id, self.epoch), (start.seq, start.head), places)

    def take(self, reply: Reply) -> Reply:
        """Keep what a reply brings, each part by itself; what is older than what is held is ignored."""
        for text in reply.receipts:
            receipt = self.open_receipt(text)
            at = receipt.position
            if at.seq > self.covered and at.seq <= len(self.entries) and self.at(at.seq) == at:
                self.receipt, self.covered = text, at.seq
                self.floor = max(self.floor, receipt.iat)
        if reply.token is not None:
            token = self.open_token(reply.token)
            if token.serial > self.serial:
                self.token, self.serial = token, token.serial
                self.license = self.model.licenses[token.license_id]
                self.floor = max(self.floor, token.iat)
                self.install()
        return reply

    def window_ago(self, windows: int) -> int:
        """An instant some windows back, but not before its token."""
        floor = self.token.iat if self.token else 0
        return max(self.now - windows * limits.WINDOW_S, floor)

    def has(self, position: Position) -> bool:
        """Whether a position lies in its ledger."""
        return (
            position.epoch == self.epoch
            and position.seq <= len(self.entries)
            and self.at(position.seq) == position
        )
