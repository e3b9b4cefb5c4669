"""One device's projections, worked out anew from what it signed. Pure: batches in, rows out, and what differs.

The batches go through the same judging as when they came in, one by one in the order of their acceptance.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from licensing_server.devices.ledger_store import Head
from licensing_server.usage import branches, records, repeats
from licensing_server.usage.branches import Taken, View
from licensing_server.usage.records import Finding, IssuedToken
from licensing_server.usage.store import StoredBatch, batch_row
from meterkit.errors import LedgerError
from meterkit.exchange import Batch
from meterkit.ledger import Chain
from meterkit.limits import INTEGER_MAX
from meterkit.positions import Position
from meterkit.receipts import Receipt

_BY_RECEIPTS = ("server_rollback", "records_gone")  # what proves these is no record
Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A batch as the device signed it, with what only the server knows of it: its number, and when it came."""

    acceptance: int
    received_at: int
    text: str
    batch: Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something that a person should have been shown, and when."""

    epoch: str
    at: int
    finding: Finding
    passing: bool = False  # nobody need have been shown it: what came later, maybe in one request, explained it


@dataclass(slots=True)
class Ledgers:
    """One device's ledgers in memory, as `branches.View` asks for them."""

    heads: dict[Position, Head] = field(default_factory=dict)
    batches: list[StoredBatch] = field(default_factory=list)

    def find(self, position: Position) -> Head | None:
        """The checkpoint at exactly this position."""
        return self.heads.get(position)

    def tips(self, epoch: str) -> Sequence[Head]:
        """The ends of an epoch's branches."""
        return [head for head in self.heads.values() if head.is_tip and head.position.epoch == epoch]

    def foundations(self, epoch: str) -> Sequence[Head]:
        """The receipts that stand for records that are gone."""
        own = (head for head in self.heads.values() if head.position.epoch == epoch)
        return sorted((head for head in own if not head.acceptance), key=lambda head: head.position.seq)

    def overlapping(self, epoch: str, seq_from: int, seq_to: int) -> Sequence[StoredBatch]:
        """The batches that first brought any of these records."""
        return [
            each
            for each in self.batches
            if each.batch.epoch == epoch and each.batch.seq_to >= seq_from and each.first_new <= seq_to
        ]

    def receipt_position(self, body: str) -> Position | None:  # noqa: ARG002 - judging does not ask
        """No receipt is given here."""
        return None

    def receipt_issued_at(self, position: Position) -> int | None:  # noqa: ARG002 - judging does not ask
        """No receipt is given here."""
        return None

    def has_other_epoch(self, epoch: str) -> bool:
        """Whether another life of the ledger is known."""
        return any(position.epoch != epoch for position in self.heads)


@dataclass(slots=True)
class Rebuilt:
    """What a device's batches come to."""

    device: str
    product: str
    known: Mapping[str, IssuedToken]
    anchors: Mapping[str, Position] = field(default_factory=dict)  # of its tokens
    foundations: Mapping[Position, Receipt] = field(default_factory=dict)  # receipts for records that are gone
    ledgers: Ledgers = field(default_factory=Ledgers)
    placements: dict[int, Row] = field(default_factory=dict)  # of batches, by acceptance
    records: list[Row] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    installed: dict[str, int] = field(default_factory=dict)  # by epoch: the highest serial known to be installed
    _heard: dict[str, int] = field(default_factory=dict)  # by epoch: when its last batch was received
    _arrived: dict[tuple[str, str], tuple[int, bool]] = field(default_factory=dict)

    def add(self, received: Received) -> None:
        """Judge the next batch, and note what it adds.

        Raises:
            MeterkitError: if it could not have been accepted, or adds nothing.
        """
        view = View(self.ledgers, self.device)
        foundation = self.foundations.get(received.batch.start)
        if foundation is not None and view.chain_at(received.batch.start) is None:
            view.adopt(received.batch, foundation)
        branches.judge(view, received.batch, received.text, product=self.product)
        if not view.taken:
            raise LedgerError("batch_gap", f"batch {received.acceptance} continues or adds nothing")
        (taken,) = view.taken
        self._place(taken, received)
        self._heard[received.batch.epoch] = received.received_at
        if taken.entries:
            self._attribute(taken, received)
        if taken.fork_at is not None:
            self._note(received, records.fork(taken, received.acceptance, None))
        if taken.filled is not None:
            self._explain_forks(taken.parent)
        for position, head in view.heads.items():
            number = received.acceptance if head.acceptance < 0 else head.acceptance
            self.ledgers.heads[position] = replace(head, acceptance=number)

    def _place(self, taken: Taken, received: Received) -> None:
        batch = received.batch
        first_new = taken.entries[0].seq if taken.entries else batch.seq_to + 1
        self.ledgers.batches.append(StoredBatch(acceptance=received.acceptance, first_new=first_new, batch=batch))
        placed = {"first_new": first_new, "parent": taken.parent}
        self.placements[received.acceptance] = {**batch_row(batch, device=self.device), **placed}

    def _attribute(self, taken: Taken, received: Received) -> None:
        named = {
            jti: self._as_known(jti, taken.batch.epoch) for jti in records.token_ids(taken) if jti in self.known
        }
        made = records.attribute(taken, named, received_at=received.received_at)
        if taken.is_parted:
            found = repeats.note(made.rows, taken, received.acceptance, self._known_batches(taken.batch.epoch))
            made.findings += [found] if found else []
        undecided = {"released_run": None, "dismissed_run": None}
        self.records += [{**row, "acceptance": received.acceptance, **undecided} for row in made.rows]
        epoch = taken.batch.epoch
        if made.serial is not None:
            self.installed[epoch] = max(made.serial, self.installed.get(epoch, 0))
        anchored = {(anchor.epoch, anchor.head) for anchor in self.anchors.values()}
        for entry in taken.entries:
            if (epoch, entry.hash) in anchored:
                self._arrived[epoch, entry.hash] = (received.received_at, entry is taken.entries[-1])
        for finding in (*made.findings, *([records.reset(taken)] if taken.is_reset else [])):
            self._note(received, finding)

    def _known_batches(self, epoch: str) -> repeats.Known:
        placed = {
            number: repeats.Placed(
                acceptance=number, parent=row["parent"], first_new=row["first_new"], to_seq=row["to_seq"]
            )
            for number, row in self.placements.items()
            if row["epoch"] == epoch and row["first_new"] <= row["to_seq"]
        }
        return repeats.Known(
            placed=placed,
            read=lambda numbers: (each for each in self.ledgers.batches if each.acceptance in numbers),
            standing=self._standing,
        )

    def _standing(self, numbers: Collection[int]) -> set[tuple[int, int]]:
        return {
            (row["acceptance"], row["seq"])
            for row in self.records
            if row["acceptance"] in numbers and not row["quarantined"] and row["dismissed_run"] is None
        }

    def _as_known(self, jti: str, epoch: str) -> IssuedToken:
        """A token as it was known then: how far this ledger may go under it, only once its anchor was accepted."""
        anchor = self.anchors[jti]
        settled = anchor.epoch == epoch and (anchor.seq == 0 or self.chain_at(anchor) is not None)
        return self.known[jti] if settled else replace(self.known[jti], reach={})

    def _explain_forks(self, parent: int | None) -> None:
        """What looked like a fork before was the beginning of records that had been gone."""
        joined = set()
        while parent is not None:
            joined.add(parent)
            parent = self.placements[parent]["parent"]
        self.found = [
            replace(each, passing=each.passing or each.finding.evidence.get("acceptance") in joined)
            for each in self.found
        ]

    def _note(self, received: Received, finding: Finding) -> None:
        self.found.append(Found(epoch=received.batch.epoch, at=received.received_at, finding=finding))

    def chain_at(self, position: Position) -> Chain | None:
        """The chain at a position, also inside a batch; None if it is not known."""
        head = View(self.ledgers, self.device).chain_at(position)
        return head.chain if head else None

    def is_settled(self, anchor: Position, issued_at: int) -> bool:
        """Whether it was noticed that an anchor is accepted: where a batch ends, or when its record came later.

        One inside of what had been accepted before is noticed with the next batch of its ledger.
        """
        if anchor.seq == 0:
            return True
        received_at, is_end = self._arrived.get((anchor.epoch, anchor.head), (0, False))
        return is_end or max(received_at, self._heard.get(anchor.epoch, 0)) > issued_at

    def release(self, kind: str, epoch: str, evidence: Mapping[str, Any], run: int) -> None:
        """Follow a decision to release what one batch's records were set aside for."""
        brought = min(
            (
                each.acceptance
                for each in self.ledgers.batches
                if each.batch.epoch == epoch
                and each.batch.head == evidence["head"]
                and each.first_new <= evidence["first"]
            ),
            default=None,
        )
        for row in self.records:
            why = row["quarantined_for"] or (repeats.KIND if row["repeated"] else None)
            if row["acceptance"] == brought and why == kind and row["released_run"] is None:
                row["released_run"] = run

    def dismiss(self, own: Iterable[tuple[str, str]], run: int) -> None:
        """Follow a decision to dismiss a branch, whose own records are given as (epoch, hash)."""
        names = set(own)
        for row in self.records:
            if (row["epoch"], row["hash"]) in names and row["dismissed_run"] is None:
                row["dismissed_run"] = run


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that is not what it was rebuilt to: in which table, and what stands there (None: nothing)."""

    table: str
    key: Key
    stored: Row | None
    rebuilt: Row | None

    def to_document(self) -> Row:
        """Show it to people: of a row that changed, only what did."""
        stored, rebuilt = self.stored or {}, self.rebuilt or {}
        changed = [name for name in stored.keys() | rebuilt.keys() if stored.get(name) != rebuilt.get(name)]
        return {
            "table": self.table,
            "key": list(self.key),
            "what": "missing" if self.stored is None else "unfounded" if self.rebuilt is None else "changed",
            "stored": {name: stored[name] for name in sorted(changed)} if self.stored and self.rebuilt else None,
            "rebuilt": {name: rebuilt[name] for name in sorted(changed)} if self.stored and self.rebuilt else None,
        }


def compare(table: str, stored: Mapping[Key, Row], rebuilt: Mapping[Key, Row]) -> list[Difference]:
    """Compare rows by their keys. Of a stored row only the columns count that were rebuilt."""
    found = []
    for key in stored.keys() | rebuilt.keys():
        one, two = stored.get(key), rebuilt.get(key)
        if one is not None and two is not None:
            one = {name: one[name] for name in two}
        if one != two:
            found.append(Difference(table=table, key=key, stored=one, rebuilt=two))
    return sorted(found, key=lambda each: tuple(map(str, each.key)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An exception as it is stored: what it is about, and when it waited for a person, as [from, to) instants."""

    id: str
    epoch: str
    kind: str
    license: str | None
    evidence: Row
    opened_at: int
    waiting: tuple[tuple[int, int], ...]


def compare_found(found: Iterable[Found], shown: Sequence[Shown]) -> tuple[list[Found], list[Shown]]:
    """Compare what should have been shown to people with what was: what is missing, and what has no ground.

    Of some kinds one open exception of a ledger says enough; a further one is missing only where none waited.
    """
    left = [own for own in shown if own.kind not in _BY_RECEIPTS]
    missing: list[Found] = []
    for each in found:
        same = next((own for own in left if _is_same(each, own)), None)
        if same is not None:
            left.remove(same)
        elif not each.passing and not (each.finding.kind in records.ONCE_OPEN and _waited(each, shown)):
            missing.append(each)
    return missing, left


def _is_same(found: Found, shown: Shown) -> bool:
    finding = found.finding
    about = (found.epoch, finding.kind, _unordered(finding.evidence), found.at)
    by_batch = finding.license is None or finding.license == shown.license
    return by_batch and about == (shown.epoch, shown.kind, _unordered(shown.evidence), shown.opened_at)


def _unordered(evidence: Row) -> Row:
    """Evidence, whatever order a fork's heads are named in: branches of one length have none."""
    if "heads" not in evidence:
        return evidence
    return {**evidence, "heads": sorted(evidence["heads"], key=lambda head: (head["seq"], head["head"]))}


def _waited(found: Found, shown: Sequence[Shown]) -> bool:
    return any(
        own.epoch == found.epoch and own.kind == found.finding.kind and begin <= found.at <= end
        for own in shown
        for begin, end in own.waiting
    )


def decided_state(decisions: Iterable[Any]) -> Row | None:
    """How an exception stands by all that was decided about it; None where that was before decisions were kept."""
    open_again = {"resolution": None, "outcome": None, "resolved_by": None, "resolved_at": None}
    state: Row = {"state": "open", "owner": None, "note": None, **open_again}
    decided = False
    for each in decisions:
        decided = True
        if each.action == "acknowledge":
            state["state"] = "acknowledged"
            state |= {name: getattr(each, name) for name in ("owner", "note") if getattr(each, name) is not None}
        elif each.action == "reopen":
            state |= {"state": "open", **open_again}
        else:
            closed = {"resolution": each.note, "outcome": each.outcome, "resolved_by": each.who}
            state |= {"state": "resolved", "resolved_at": each.at, **closed}
    return state if decided else None


def waiting(opened_at: int, resolved_at: int | None, decisions: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    """When an exception waited for a person, as intervals of instants."""
    found = []
    since: int | None = opened_at
    any_decision = False
    for each in decisions:
        any_decision = True
        if each.action == "resolve" and since is not None:
            found.append((since, each.at))
            since = None
        elif each.action == "reopen":
            since = each.at
    if not any_decision and resolved_at is not None:
        return ((opened_at, resolved_at),)
    return (*found, *(((since, INTEGER_MAX),) if since is not None else ()))
