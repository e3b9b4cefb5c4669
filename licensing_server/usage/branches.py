"""Judging batches against what is known of their device's ledgers. Pure: the view answers, nothing is written.

A batch continues the branch whose head is its `prev`. What of it is known already is counted once; what is new
continues a branch, opens one (a fork), or starts an epoch (DESIGN §6).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from licensing_server.devices.ledger_store import Head
from licensing_server.usage.store import StoredBatch
from meterkit.errors import LedgerError
from meterkit.exchange import Batch, check_batch_for
from meterkit.ledger import Chain, Entry, TokenRef, Total, record_hash, verify_chain
from meterkit.licenses import Meter
from meterkit.positions import ZERO, Position
from meterkit.receipts import Receipt

Place = tuple[int, str]  # a record's seq and hash


class Stored(Protocol):
    """What a database knows of one device's ledgers."""

    def find(self, position: Position) -> Head | None:
        """The checkpoint at exactly this position."""

    def tips(self, epoch: str) -> Sequence[Head]:
        """The ends of an epoch's branches."""

    def foundations(self, epoch: str) -> Sequence[Head]:
        """The forgotten receipts from which branches of an epoch go on (`View.adopt`)."""

    def overlapping(self, epoch: str, seq_from: int, seq_to: int) -> Sequence[StoredBatch]:
        """The batches that first brought any of these records."""

    def receipt_position(self, body: str) -> Position | None:
        """Where a receipt that this server gave stands."""

    def receipt_issued_at(self, position: Position) -> int | None:
        """When the receipt for exactly this position was given, if one was."""

    def has_other_epoch(self, epoch: str) -> bool:
        """Whether another life of the ledger is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one batch adds: its new records, where they attach, and whether that forks or resets the ledger.

    `acceptance` is a stand-in below zero until the batch is stored; so may `parent` be.
    """

    acceptance: int
    parent: int | None
    batch: Batch
    text: str
    before: Chain
    after: Chain
    entries: tuple[Entry, ...]
    fork_of: tuple[Position, ...] = ()
    fork_at: Position | None = None
    is_reset: bool = False
    is_parted: bool = False  # its epoch has other branches
    filled: Position | None = None  # up to here were the records gone that it brings after all


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """A forgotten receipt that a branch goes on from, the batch that brought it, and the chain known before."""

    batch: Batch
    receipt: Receipt
    before: Chain

    @property
    def gone(self) -> dict[Meter, Total]:
        """What was used in the records that are gone."""
        known = self.before.totals
        return {
            meter: total.plus(-known.get(meter, Total()).units, -known.get(meter, Total()).unsettled)
            for meter, total in self.receipt.totals.items()
            if total != known.get(meter, Total())
        }


class View:
    """One device's ledgers as they are known while a request is judged: stored, and taken from it so far."""

    def __init__(self, stored: Stored, device: str) -> None:
        self.device = device
        self._stored = stored
        self.heads: dict[Position, Head] = {}
        self.taken: list[Taken] = []
        self.adopted: list[Adopted] = []

    def find(self, position: Position) -> Head | None:
        """The checkpoint at this position; before the first record there always is one."""
        if position.seq == 0:
            if position.head != ZERO:
                raise LedgerError("chain_broken", "before the first record the head is zeros")
            return self._beginning(position.epoch)
        return self.heads.get(position) or self._stored.find(position)

    def _beginning(self, epoch: str) -> Head:
        chain = Chain(device=self.device, position=Position(epoch=epoch))
        return Head(chain=chain, acceptance=0, is_tip=False)

    def was_asked_in_vain(self, batch: Batch, receipt: Receipt) -> bool:
        """Whether a device that continues a forgotten receipt was asked for all before it, and has it no more.

        What was made before it was asked, and is only sent again, does not say so.
        """
        if batch.start != receipt.position or batch.license_id is None or len(self.tips(batch.epoch)) > 1:
            return False
        asked_at = self._stored.receipt_issued_at(Position(epoch=batch.epoch))
        return asked_at is not None and receipt.iat < asked_at < batch.made_at

    def adopt(self, batch: Batch, receipt: Receipt) -> None:
        """Let a branch go on from a forgotten receipt, whose totals are trusted for what is gone (DESIGN §6).

        Which token was in force there is gone too: what follows is set aside up to the next `token` record.
        """
        before = next(iter(self.tips(batch.epoch)), self._beginning(batch.epoch))
        token = TokenRef(jti="", serial=0, iat=0, license_id=batch.license_id or "")
        chain = Chain(device=self.device, position=receipt.position, token=token, totals=receipt.totals)
        if before.position.seq:
            self.heads[before.position] = replace(before, is_tip=False)
        self.heads[receipt.position] = Head(chain=chain, acceptance=0, is_tip=True, through=before.through)
        self.adopted.append(Adopted(batch=batch, receipt=receipt, before=before.chain))

    def tips(self, epoch: str) -> list[Head]:
        """The ends of an epoch's branches, shortest first."""
        known = {head.position: head for head in self._stored.tips(epoch)}
        known |= {position: head for position, head in self.heads.items() if position.epoch == epoch}
        return sorted((head for head in known.values() if head.is_tip), key=lambda head: head.position.seq)

    def foundations(self, epoch: str) -> list[Head]:
        """The forgotten receipts from which branches of an epoch go on."""
        adopted = [self.heads[each.receipt.position] for each in self.adopted if each.batch.epoch == epoch]
        return [*adopted, *self._stored.foundations(epoch)]

    def is_end(self, position: Position) -> bool:
        """Whether what follows this position continues a branch and opens none."""
        tips = [tip.position for tip in self.tips(position.epoch)]
        return position in tips or (position.seq == 0 and not tips)

    def places(self, epoch: str, seq_from: int, seq_to: int) -> dict[Place, StoredBatch]:
        """Every known record in a range, and the batch that first brought it."""
        own = [
            StoredBatch(acceptance=each.acceptance, first_new=each.entries[0].seq, batch=each.batch)
            for each in self.taken
            if each.entries and each.batch.epoch == epoch
        ]
        found: dict[Place, StoredBatch] = {}
        for stored in (*self._stored.overlapping(epoch, seq_from, seq_to), *own):
            head = stored.batch.prev
            for seq, body in enumerate(stored.batch.bodies, stored.batch.seq_from):
                head = record_hash(head, body)
                if seq >= stored.first_new:
                    found[seq, head] = stored
        return found

    def chain_at(self, position: Position) -> Head | None:
        """The chain as known at a position, also inside an accepted batch; None if it is not known."""
        head = self.find(position)
        if head is not None:
            return head
        place = (position.seq, position.head)
        holding = self.places(position.epoch, position.seq, position.seq).get(place)
        if holding is None:
            return None
        start = self.find(holding.batch.start)
        if start is None:
            raise RuntimeError("an accepted batch starts at no checkpoint")
        count = position.seq - holding.batch.seq_from + 1
        chain, _ = verify_chain(start.chain, holding.batch.bodies[:count])
        return Head(chain=chain, acceptance=holding.acceptance, is_tip=False)

    def go_on_from(self, batch: Batch, *, asked_since: int | None = None) -> Head:
        """Where a device is to go on from whose batch continues nothing that is known.

        Behind a gap that is the end of the branch. Where the device may be on a branch that is not known, it
        is its own newest receipt, or else the beginning. `asked_since` is when a receipt was signed that this
        server forgot: where the end of the branch was asked for since then, and in vain, it is the beginning.
        """
        tips = self.tips(batch.epoch)
        if len(tips) == 1 and tips[0].position.seq < batch.start.seq:
            asked_at = self._stored.receipt_issued_at(tips[0].position) or 0
            if asked_since is None or asked_at <= asked_since:
                return tips[0]
        own = self._stored.receipt_position(batch.has.receipt) if batch.has.receipt else None
        known = self.chain_at(own) if own is not None and own.epoch == batch.epoch else None
        return known or self._beginning(batch.epoch)

    def reached(self, end: Chain) -> Chain:
        """How far the branch is accepted that an accepted position lies on; itself, if the branches are many."""
        tips = self.tips(end.position.epoch)
        return tips[0].chain if len(tips) == 1 else end

    def has_other_epoch(self, epoch: str) -> bool:
        """Whether another life of the ledger is known."""
        return self._stored.has_other_epoch(epoch) or any(each.batch.epoch != epoch for each in self.taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One batch of a request, judged: the accepted chain at its end, or None behind a gap.

    `forgotten` is a receipt in it that proves that this server has lost what it knew (`usage.rollbacks`).
    """

    batch: Batch
    end: Chain | None
    forgotten: Receipt | None = None


def judge(view: View, batch: Batch, text: str, *, product: str) -> Judged:
    """Judge a batch and, if it adds anything, take it into the view.

    Raises:
        LedgerError: `chain_broken`, `record_out_of_place`; nothing of the batch is taken then.
        InputError, TrustError: for a record that is none, and a batch of another product.
    """
    if batch.product != product:
        check_batch_for(batch, product=product, licenses=())
    start = view.chain_at(batch.start)
    if start is None:
        return Judged(batch=batch, end=None)
    after, entries = verify_chain(start.chain, batch.bodies)
    if after.position != batch.end:
        raise LedgerError("chain_broken", "its head is not the hash of its last record")
    check_batch_for(batch, product=product, licenses=_licenses(batch, after, entries))
    places = {} if view.is_end(batch.start) else view.places(batch.epoch, batch.seq_from, batch.seq_to)
    known = next((n for n, each in enumerate(entries) if (each.seq, each.hash) not in places), len(entries))
    if known < len(entries):
        parent = start.acceptance
        if known:
            parent = places[entries[known - 1].seq, entries[known - 1].hash].acceptance
        filled = _filled(view, batch, entries[known:])
        if filled is not None:
            return _fill(view, batch, text, start=start, entries=entries[known:], filled=filled, parent=parent)
        _take(view, batch, text, start=start, after=after, entries=entries[known:], parent=parent)
    else:
        _cover(view, batch, text, start=start, after=after)
    return Judged(batch=batch, end=after)


def _licenses(batch: Batch, after: Chain, entries: list[Entry]) -> list[str | None]:
    """The licenses that a batch's own records name; where none does, the one in force, or none."""
    named = [entry.claims["license"] for entry in entries if entry.claims["kind"] in ("token", "usage")]
    if named or batch.license_id is None:
        return named
    return [after.token.license_id if after.token else None]


def _take(
    view: View, batch: Batch, text: str, *, start: Head, after: Chain, entries: list[Entry], parent: int
) -> None:
    first = entries[0]
    attached = Position(epoch=batch.epoch, seq=first.seq - 1, head=first.prev)
    number = -1 - len(view.taken)
    through = batch.through
    forked = not view.is_end(attached)
    tips = tuple(tip.position for tip in view.tips(batch.epoch))
    before = view.chain_at(attached)
    if before is None:
        raise RuntimeError("what is new attaches to nothing that is known")
    if batch.seq_from > 1 and view.find(batch.start) is None:
        view.heads[batch.start] = replace(start, is_tip=False)
    if not forked and attached.seq:
        through = max(through, before.through)
        view.heads[attached] = replace(before, is_tip=False)
    view.heads[batch.end] = Head(chain=after, acceptance=number, is_tip=True, through=through)
    taken = Taken(
        acceptance=number,
        parent=parent or None,
        batch=batch,
        text=text,
        before=before.chain,
        after=after,
        entries=tuple(entries),
        fork_of=tips if forked else (),
        fork_at=attached if forked else None,
        is_parted=forked or len(tips) > 1,
        is_reset=first.seq == 1 and not forked and _is_reset(view, batch.epoch, first),
    )
    view.taken.append(taken)


def _filled(view: View, batch: Batch, entries: list[Entry]) -> Head | None:
    """The forgotten receipt that new records lead up to: they are those that were gone. None if they do not."""
    if view.is_end(batch.start) and len(view.tips(batch.epoch)) < 2:
        return None
    places = {(entry.seq, entry.hash) for entry in entries}
    found = (head for head in view.foundations(batch.epoch) if _place(head.position) in places)
    return next(found, None)


def _place(position: Position) -> Place:
    return position.seq, position.head


def _fill(
    view: View, batch: Batch, text: str, *, start: Head, entries: list[Entry], filled: Head, parent: int
) -> Judged:
    """Take records in that were gone: no branch of their own, but the one that goes on from the receipt.

    What follows the receipt in the batch is known, or is asked for again.
    """
    new = entries[: filled.position.seq - entries[0].seq + 1]
    attached = Position(epoch=batch.epoch, seq=new[0].seq - 1, head=new[0].prev)
    before = view.chain_at(attached)
    if before is None:
        raise RuntimeError("what is new attaches to nothing that is known")
    if attached.seq and before.is_tip:
        view.heads[attached] = replace(before, is_tip=False)
    if batch.seq_from > 1 and view.find(batch.start) is None:
        view.heads[batch.start] = replace(start, is_tip=False)
    reached, _ = verify_chain(before.chain, [entry.body for entry in new])
    view.heads[filled.position] = replace(filled, chain=reached)
    taken = Taken(
        acceptance=-1 - len(view.taken),
        parent=parent or None,
        batch=batch,
        text=text,
        before=before.chain,
        after=reached,
        entries=tuple(new),
        is_parted=True,
        filled=filled.position,
    )
    view.taken.append(taken)
    return Judged(batch=batch, end=reached)


def _is_reset(view: View, epoch: str, genesis: Entry) -> bool:
    return genesis.claims["previous"] is not None or view.has_other_epoch(epoch)


def _cover(view: View, batch: Batch, text: str, *, start: Head, after: Chain) -> None:
    """Keep a batch without new records if it says that its branch has reported through a later instant."""
    tip = view.find(batch.end)
    if tip is None or not tip.is_tip or batch.through <= tip.through:
        return
    if batch.seq_from > 1 and view.find(batch.start) is None:
        view.heads[batch.start] = replace(start, is_tip=False)
    view.heads[batch.end] = replace(tip, through=batch.through)
    taken = Taken(
        acceptance=-1 - len(view.taken),
        parent=tip.acceptance or None,
        batch=batch,
        text=text,
        before=after,
        after=after,
        entries=(),
    )
    view.taken.append(taken)
