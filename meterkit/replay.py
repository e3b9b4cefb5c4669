"""A device's batches, followed again from genesis: every chain, every branch, every total.

What comes out are the records that a bill is made of, each with the license and the instant that its own
chain and its batch give it, and with the branch on which it is cited.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from meterkit import ledger, limits, repeats
from meterkit.attribution import Record, service_time
from meterkit.errors import LedgerError
from meterkit.exchange import Batch
from meterkit.ledger import Chain, Entry, TokenRef, Total
from meterkit.licenses import Meter
from meterkit.positions import ZERO, Position
from meterkit.receipts import Receipt
from meterkit.repeats import Dismissal, Link, Name, Repeat
from meterkit.tokens import Token
from meterkit.usage import UsageRecord

_NOTHING: Mapping[Name, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One record of a chain, with the chain once it stands, and the batch that brought it first."""

    entry: Entry
    chain: Chain
    acceptance: int
    received_at: int


class Replay:
    """The chains of one device, built up batch by batch in the order of acceptance."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.reports: list[tuple[int, int]] = []  # acceptance, and the instant through which it had reported then
        self._nodes: dict[Name, Node] = {}
        self._foundations: dict[Position, Receipt] = {}
        self._founded: dict[Position, Chain] = {}

    def stand_on(self, receipt: Receipt) -> None:
        """Let a chain go on from a receipt where no batch reaches its position: the records before are gone.

        That the server gave it is the caller's to check. What follows is under no known token up to the next
        `token` record.
        """
        self._foundations[receipt.position] = receipt

    @property
    def is_founded(self) -> bool:
        """Whether a chain does so whose records before have not come after all."""
        return any((at.epoch, at.head) not in self._nodes for at in self._founded)

    def _found(self, batch: Batch) -> Chain | None:
        receipt = self._foundations.get(batch.start)
        if receipt is None:
            return None
        token = TokenRef(jti="", serial=0, iat=0, license_id=batch.license_id or "")
        chain = Chain(device=self._device, position=batch.start, token=token, totals=receipt.totals)
        return self._founded.setdefault(batch.start, chain)

    def add(self, batch: Batch, *, acceptance: int, received_at: int) -> None:
        """Follow one accepted batch. Its signature is the caller's to check.

        Raises:
            LedgerError: if it continues nothing known (`batch_gap`), does not hold (`chain_broken`,
                `record_out_of_place`), or does not reach the head that it names.
            InputError: for a record that has not the form of its kind.
        """
        chain = self._chain_at(batch.start) or self._found(batch)
        if chain is None:
            raise LedgerError("batch_gap", f"epoch {batch.epoch}, seq {batch.seq_from}")
        for body in batch.bodies:
            entry = ledger.read(chain.position, body)
            chain = ledger.follow(chain, entry)
            if entry.claims["kind"] == "usage" and entry.claims["license"] != batch.license_id:
                raise LedgerError("record_out_of_place", f"seq {entry.seq}: of another license than its batch")
            name = (batch.epoch, entry.hash)
            if name not in self._nodes:
                self._nodes[name] = Node(entry=entry, chain=chain, acceptance=acceptance, received_at=received_at)
        self.reports.append((acceptance, batch.through))
        if chain.position != batch.end:
            raise LedgerError("chain_broken", f"epoch {batch.epoch}: not the head that the batch names")

    def _chain_at(self, position: Position, acceptance_max: int = limits.INTEGER_MAX) -> Chain | None:
        if position.seq == 0 and position.head == ZERO:
            return Chain(device=self._device, position=Position(epoch=position.epoch))
        node = self._nodes.get((position.epoch, position.head))
        if node is not None and node.entry.seq == position.seq and node.acceptance <= acceptance_max:
            return node.chain
        return self._founded.get(position)

    def totals_at(
        self, position: Position, acceptance_max: int = limits.INTEGER_MAX
    ) -> Mapping[Meter, Total] | None:
        """The totals from the epoch's genesis to a position, or None if no batch accepted so far reaches it."""
        chain = self._chain_at(position, acceptance_max)
        return None if chain is None else chain.totals

    def ends(self, epoch: str, acceptance_max: int) -> list[Chain]:
        """The chains at the ends of an epoch's branches, by what was accepted up to a number."""
        nodes = self._known_in(epoch, acceptance_max)
        inner = {node.entry.prev for node in nodes.values()}
        return [node.chain for own, node in nodes.items() if own not in inner]

    def _known_in(self, epoch: str, acceptance_max: int) -> dict[str, Node]:
        return {
            own: node
            for (own_epoch, own), node in self._nodes.items()
            if own_epoch == epoch and node.acceptance <= acceptance_max
        }

    def seq_of(self, epoch: str, record_hash: str) -> int | None:
        """The sequence number of a record, or None if no batch brought it."""
        node = self._nodes.get((epoch, record_hash))
        return None if node is None else node.entry.seq

    def received_at(self, position: Position) -> int | None:
        """When the batch that first brought a position's record was received."""
        node = self._nodes.get((position.epoch, position.head))
        return None if node is None else node.received_at

    def suspects(self, license_ids: Collection[str], known: Mapping[str, Token]) -> frozenset[Name]:
        """The records of some licenses that are set aside until a person decides, as (epoch, hash).

        They were made under a token that was not issued to this device as its ledger says, or hold more units
        than their window has time for (DESIGN §7).
        """
        return frozenset(
            name
            for name, node in self._nodes.items()
            if node.entry.claims["kind"] == "usage"
            and node.entry.claims["license"] in license_ids
            and (self._is_unknown(node, known) or _is_implausible(UsageRecord.from_claims(node.entry.claims)))
        )

    def of_licenses(self, names: Collection[Name], license_ids: Collection[str]) -> frozenset[Name]:
        """Those of the named records that some licenses' usage is made of."""
        return frozenset(name for name in names if self._nodes[name].entry.claims.get("license") in license_ids)

    def _is_unknown(self, node: Node, known: Mapping[str, Token]) -> bool:
        used, told = UsageRecord.from_claims(node.entry.claims), node.chain.token
        named, issued = known.get(used.token), known.get(told.jti) if told else None
        if told is None or issued is None or named is None:
            return True
        return {issued.device, named.device} != {self._device} or (
            issued.license_id,
            issued.serial,
            issued.iat,
        ) != (told.license_id, told.serial, told.iat)

    def own_records(self, tip: Position, acceptance_max: int) -> frozenset[Name] | None:
        """The records that only one branch of a fork has, by what was accepted up to a number.

        None where the position was not the end of a branch then, or no other branch was known.
        """
        nodes = self._known_in(tip.epoch, acceptance_max)
        ends = nodes.keys() - {node.entry.prev for node in nodes.values()}
        if tip.head not in ends or len(ends) < 2 or nodes[tip.head].entry.seq != tip.seq:
            return None
        shared: set[str] = set()
        for end in ends - {tip.head}:
            _walk_back(nodes, end, shared)
        return frozenset((tip.epoch, own) for own in _walk_back(nodes, tip.head, shared))

    def fork_points(self, epoch: str) -> list[tuple[Position, int]]:
        """Where an epoch's branches part, and into how many."""
        following: dict[str, int] = {}
        for (own_epoch, _), node in self._nodes.items():
            if own_epoch == epoch:
                following[node.entry.prev] = following.get(node.entry.prev, 0) + 1
        return [
            (self._nodes[epoch, prev].chain.position if prev != ZERO else Position(epoch=epoch), count)
            for prev, count in following.items()
            if count > 1
        ]

    def repeats(self, aside: Collection[Name], dismissals: Sequence[Dismissal]) -> dict[Name, Repeat]:
        """The records that tell of counts that another branch told of before (`meterkit.repeats`).

        `aside` are those that the rule sets aside, whatever was decided since.
        """
        return repeats.find(map(_link, self._nodes.items()), aside, dismissals)

    def records(
        self,
        acceptance_max: int,
        quarantined: frozenset[Name],
        dismissed: frozenset[Name] = frozenset(),
        repeated: Mapping[Name, int] = _NOTHING,
    ) -> Iterator[Record]:
        """The usage records accepted up to a number, each on its branch as it stood then.

        `quarantined` and `dismissed` name records by (epoch, hash); `repeated` says how many units of which
        are counted on another branch.
        """
        nodes = {name: node for name, node in self._nodes.items() if node.acceptance <= acceptance_max}
        branches = _branches(nodes)
        for name, node in nodes.items():
            if node.entry.claims["kind"] == "usage":
                out = (name in quarantined, name in dismissed, repeated.get(name, 0))
                yield self._record(node, branches[name], out)

    def _record(self, node: Node, branch: str, out: tuple[bool, bool, int]) -> Record:
        used = UsageRecord.from_claims(node.entry.claims)
        token = node.chain.token
        if token is None:
            raise LedgerError("record_out_of_place", f"seq {used.seq}: usage before any token")
        return Record(
            license_id=token.license_id,
            device=self._device,
            epoch=node.chain.position.epoch,
            seq=used.seq,
            hash=node.entry.hash,
            branch=branch,
            meter=used.meter,
            units=used.units,
            unsettled=used.unsettled,
            service_at=service_time(used.start_s, token_iat=token.iat, received_at=node.received_at),
            acceptance=node.acceptance,
            quarantined=out[0],
            dismissed=out[1],
            repeated=out[2],
            received_at=node.received_at,
        )


def _link(item: tuple[Name, Node]) -> Link:
    name, node = item
    claims = node.entry.claims
    span = repeats.span_of(UsageRecord.from_claims(claims)) if claims["kind"] == "usage" else None
    return Link(name=name, prev=node.entry.prev, seq=node.entry.seq, acceptance=node.acceptance, span=span)


def _walk_back(nodes: Mapping[str, Node], end: str, shared: set[str]) -> set[str]:
    """Walk from a branch's end to what is shared already; add what was walked to it, and give it."""
    walked = set()
    at = end
    while at in nodes and at not in shared:
        shared.add(at)
        walked.add(at)
        at = nodes[at].entry.prev
    return walked


def _is_implausible(used: UsageRecord) -> bool:
    return used.units + used.unsettled > limits.UNITS_PER_SECOND_MAX * limits.WINDOW_S


def _branches(nodes: dict[tuple[str, str], Node]) -> dict[tuple[str, str], str]:
    """Name each record's branch by its head. What lies before a fork goes with the child accepted first."""
    heads: dict[tuple[str, str], str] = {}
    chosen: dict[tuple[str, str], tuple[int, str]] = {}  # of a parent: its child accepted first
    for name in sorted(nodes, key=lambda name: -nodes[name].entry.seq):
        epoch, own = name
        node = nodes[name]
        first = chosen.get(name)
        heads[name] = heads[epoch, first[1]] if first else own
        parent = (epoch, node.entry.prev)
        candidate = (node.acceptance, own)
        if parent not in chosen or candidate < chosen[parent]:
            chosen[parent] = candidate
    return heads
