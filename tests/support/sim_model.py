"""What is true in a simulated run, kept beside the server and never read from it.

Every record that a device signs is noted here with its place in the tree of its ledger. What reached the server
is a part of that tree, closed towards its root, and all that the server says must follow from it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from meterkit import limits
from meterkit.ledger import Total
from meterkit.licenses import Meter, Policy
from meterkit.positions import ZERO, Position

Place = tuple[int, str]  # a record's seq and hash
LedgerKey = tuple[str, str]  # a device's id and the epoch of one life of its ledger
ROOT: Place = (0, ZERO)
ZONE = ZoneInfo("Europe/Berlin")


class Node(NamedTuple):
    """One signed record, and what its branch says up to it."""

    place: Place
    parent: Place
    claims: dict[str, Any]
    token: dict[str, Any] | None  # the `token` record in force here
    totals: dict[Meter, Total]
    meter: Meter | None = None


class Grant(NamedTuple):
    """What a license grants on one meter."""

    units_max: int | None
    pool: int | None
    per: str


@dataclass
class License:
    """A license as it was granted, and what was made of it since."""

    id: str
    code: str
    grants: dict[Meter, Grant]
    policy: Policy
    fork_policy: str
    devices_max: int
    suspended: bool = False


class Piece(NamedTuple):
    """One batch as the model sees it: which places it brings, in order, and what they continue."""

    key: LedgerKey
    start: Place
    places: tuple[Place, ...]

    @property
    def end(self) -> Place:
        return self.places[-1] if self.places else self.start


@dataclass
class Ledger:
    """One life of a device's ledger: all that was signed in it, and when what of it reached the server."""

    nodes: dict[Place, Node] = field(default_factory=dict)
    reached: dict[Place, int] = field(default_factory=dict)  # received at
    rows: dict[Place, dict[str, Any]] = field(default_factory=dict)  # what the usage among it must become
    children: Counter[Place] = field(default_factory=Counter)
    is_reset: bool = False

    def totals(self, place: Place) -> dict[Meter, Total]:
        return {} if place == ROOT else self.nodes[place].totals

    def path(self, place: Place) -> list[Place]:
        """From a place back to the root."""
        found = [place]
        while place != ROOT:
            place = self.nodes[place].parent
            found.append(place)
        return found

    def leaves(self) -> list[Place]:
        return [place for place in self.reached if not self.children[place]] or [ROOT]

    def forks(self) -> Counter[Place]:
        """How many branches more than one go on from each place."""
        return Counter({place: count - 1 for place, count in self.children.items() if count > 1})


class Token(NamedTuple):
    """A token that the server gave, as far as it binds."""

    jti: str
    serial: int
    iat: int
    license: str
    anchor: Position
    limits: dict[Meter, int | None]
    flagged: bool
    text: str


class Model:
    """The truth of one run."""

    def __init__(self) -> None:
        self.licenses: dict[str, License] = {}
        self.ledgers: dict[LedgerKey, Ledger] = defaultdict(Ledger)
        self.tokens: dict[str, list[Token]] = defaultdict(list)
        self.receipts: dict[tuple[str, Position], str] = {}
        self.license_of: dict[str, str] = {}
        self.users: dict[str, set[str]] = defaultdict(set)  # the devices that were ever a license's
        self.activations: set[str] = set()
        self.dishonest: set[str] = set()  # clones, restored images and liars: no token bounds what they use
        self.unseen: set[str] = set()  # devices that were given tokens, or anchors, which the model did not see
        self.held: set[str] = set()
        self.spent: Counter[tuple[str, Meter]] = Counter()  # all that was ever signed, wherever it is now

    def epochs(self, device: str) -> list[str]:
        return [epoch for owner, epoch in self.ledgers if owner == device]

    # -- what devices do

    def sign(self, key: LedgerKey, parent: Place, place: Place, claims: dict[str, Any]) -> None:
        """Note a record that a device has signed."""
        ledger = self.ledgers[key]
        if place in ledger.nodes:
            return  # two copies wrote the same: it is one record
        before = ledger.nodes.get(parent)
        token = before.token if before else None
        totals = dict(before.totals) if before else {}
        meter = None
        if claims["kind"] == "token":
            token = claims
        elif claims["kind"] == "usage":
            meter = (claims["model"], claims["unit"])
            totals[meter] = totals.get(meter, Total()).plus(claims["units"], claims["unsettled"])
            self.spent[claims["license"], meter] += claims["units"] + claims["unsettled"]
        ledger.nodes[place] = Node(place, parent, claims, token, totals, meter)

    # -- what reaches the server

    def activate(self, device: str, license_id: str, text: str) -> None:
        """An activation request was taken; one that was taken before moves nothing."""
        if text not in self.activations:
            self.activations.add(text)
            self.license_of[device] = license_id
            self.users[license_id].add(device)

    def is_bounded(self, license_: License) -> bool:
        """Whether a license's pools must hold: no clone, restored image or liar was ever among its devices."""
        return not self.users[license_.id] & self.dishonest

    def is_moved_to(self, license_: License) -> bool:
        """Whether any of a license's devices ever had another one."""
        others = (users for each, users in self.users.items() if each != license_.id)
        return any(users & self.users[license_.id] for users in others)

    def take(self, piece: Piece, now: int) -> bool:
        """A batch came in, and its transaction was committed; tells whether it continued what is known."""
        ledger = self.ledgers[piece.key]
        if piece.start != ROOT and piece.start not in ledger.reached:
            return False
        forked = False
        for place in piece.places:
            if place in ledger.reached:
                continue
            node = ledger.nodes[place]
            if node.parent == ROOT and not ledger.reached:
                ledger.is_reset = self._is_reset(piece.key, node)
            forked = forked or bool(ledger.children[node.parent])
            ledger.children[node.parent] += 1
            ledger.reached[place] = now
            if node.meter is not None and node.token is not None:
                ledger.rows[place] = self._row(piece.key[0], node, now)
        if forked:
            self._fork_policy(piece.key[0])
        return True

    def _is_reset(self, key: LedgerKey, genesis: Node) -> bool:
        others = (self.ledgers[key[0], epoch] for epoch in self.epochs(key[0]) if epoch != key[1])
        return genesis.claims["previous"] is not None or any(other.reached for other in others)

    def _fork_policy(self, device: str) -> None:
        license_ = self.licenses[self.license_of[device]]
        if license_.fork_policy == "hold":
            self.held.add(device)
        elif license_.fork_policy == "suspend":
            license_.suspended = True

    # -- what follows from it

    def is_ours(self, device: str, record: dict[str, Any] | None) -> bool:
        """Whether a `token` record tells the truth about a token that the server gave to the device."""
        if record is None:
            return False
        told = (record["jti"], record["serial"], record["iat"], record["license"])
        return any(told == (each.jti, each.serial, each.iat, each.license) for each in self.tokens[device])

    def quarantine(self, device: str, node: Node) -> str | None:
        named = {each.jti for each in self.tokens[device]}
        if not self.is_ours(device, node.token) or node.claims["token"] not in named:
            return "unknown_token"
        spent = node.claims["units"] + node.claims["unsettled"]
        return "implausible_rate" if spent > limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S else None

    def _row(self, device: str, node: Node, received_at: int) -> dict[str, Any]:
        """What a usage record is to be known as: attributed to an instant, and judged."""
        start = node.claims["window"] * limits.WINDOW_S
        return {
            "license": node.token["license"],
            "meter": node.meter,
            "units": node.claims["units"],
            "unsettled": node.claims["unsettled"],
            "service_at": min(max(start, node.token["iat"]), received_at),
            "quarantined": self.quarantine(device, node),
        }

    def usage_rows(self, device: str) -> dict[tuple[str, int, str], dict[str, Any]]:
        """Every usage record of a device that reached the server, as it must be known there."""
        return {
            (epoch, *place): row
            for epoch in self.epochs(device)
            for place, row in self.ledgers[device, epoch].rows.items()
        }

    def accepted(
        self, license_id: str
    ) -> tuple[dict[Meter, Total], dict[Meter, int], dict[tuple[Meter, str], int]]:
        """What a license's devices used: accepted, quarantined, and accepted per month where they were used."""
        totals: dict[Meter, Total] = {}
        aside: Counter[Meter] = Counter()
        months: Counter[tuple[Meter, str]] = Counter()
        for ledger in self.ledgers.values():
            for row in (row for row in ledger.rows.values() if row["license"] == license_id):
                meter, spent = row["meter"], row["units"] + row["unsettled"]
                if row["quarantined"]:
                    aside[meter] += spent
                else:
                    totals[meter] = totals.get(meter, Total()).plus(row["units"], row["unsettled"])
                    months[meter, month(row["service_at"])] += spent
        return totals, dict(aside), dict(months)

    def usable(self, key: LedgerKey) -> list[Token]:
        """The tokens anchored in a ledger that no record which reached the server has superseded."""
        device, epoch = key
        ledger = self.ledgers[key]
        installed = [ledger.nodes[place].claims for place in ledger.reached]
        told = [claims for claims in installed if claims["kind"] == "token" and self.is_ours(device, claims)]
        newest = max((claims["serial"] for claims in told), default=0)
        return [token for token in self.tokens[device] if token.anchor.epoch == epoch and token.serial >= newest]


def month(at: int) -> str:
    """The month, as the customer's calendar has it, in which an instant lies."""
    return datetime.fromtimestamp(at, UTC).astimezone(ZONE).strftime("%Y-%m")
