"""Taking a reply, part by part, in FORMATS' order: verify, then persist, then act.

Each part stands alone: one refused undoes no other, one no newer than what is held is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from device_sdk import deciding, pruning, setting_aside, timekeeper
from device_sdk.counter import Counter
from device_sdk.holder import Holder
from device_sdk.ledger_transaction import SEQ_END
from device_sdk.vault import Vault
from meterkit.errors import MeterkitError, TransportError, refusal
from meterkit.exchange import Reply, read_reply
from meterkit.positions import Position
from meterkit.receipts import Receipt, check_covers

_Part = TypeVar("_Part")
_NO_NEWER = ("version_rollback", "serial_rollback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of one part of a reply: `taken`, `ignored` (no newer than what is held), or `refused`."""

    part: str
    state: str
    code: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an exchange came to: each part of the reply, and when the server wants to hear again."""

    taken: tuple[Taken, ...]
    next_sync_s: int | None
    records_sent: int = 0

    def check(self, part: str) -> None:
        """Return if this part came and was taken, or is held already; else raise why not."""
        found = [each for each in self.taken if each.part == part]
        if not found:
            raise TransportError("answer_refused", f"no {part} in the reply")
        for each in found:
            if each.state == "refused" and each.code is not None:
                raise refusal(each.code, each.detail)

    @property
    def refused(self) -> tuple[Taken, ...]:
        """The parts that were refused."""
        return tuple(each for each in self.taken if each.state == "refused")


class Inbox:
    """Takes what a server hands back, into the vault and the ledger."""

    def __init__(self, *, holder: Holder, counter: Counter, vault: Vault) -> None:
        self._holder = holder
        self._counter = counter
        self._vault = vault

    def take(self, data: bytes) -> Outcome:
        """Take a reply's parts in their order: keyrings, revocations, receipts, token.

        Raises:
            InputError: the reply's frame is not one; nothing was changed.
        """
        reply = read_reply(data)
        with self._counter.lock, self._vault.locked():
            return self._take(reply)

    def _take(self, reply: Reply) -> Outcome:
        self._holder.refresh()
        taken = [self._part("keyring", self._take_keyring, list(document)) for document in reply.keyrings]
        if reply.revocations is not None:
            taken.append(self._part("revocations", self._holder.take_revocations, reply.revocations))
        taken += [self._part("receipt", self._take_receipt, text) for text in reply.receipts]
        if reply.token is not None:
            taken.append(self._part("token", self._take_token, reply.token))
        self._counter.end_leases()
        return Outcome(taken=tuple(taken), next_sync_s=reply.next_sync_s)

    def _part(self, name: str, take: Callable[[_Part], None], value: _Part) -> Taken:
        try:
            take(value)
        except MeterkitError as fault:
            state = "ignored" if fault.code in _NO_NEWER else "refused"
            return Taken(part=name, state=state, code=fault.code, detail=fault.detail)
        return Taken(part=name, state="taken")

    def _take_keyring(self, document: list[str]) -> None:
        self._holder.take_keyring(document)

    def _take_receipt(self, text: str) -> None:
        receipt = self._holder.open_receipt(text)
        held = self._holder.receipt()
        with self._counter.transaction() as tx:
            if held is None or not _is_behind(receipt.position, held.position):
                timekeeper.raise_signed(tx, self._counter.clocks, receipt.iat)
            current = receipt.position.epoch == tx.epoch()
            here = current and receipt.position.seq >= tx.cut()
            if here:
                check_covers(receipt.position, tx.epoch(), tx.hash_at(receipt.position.seq))
                timekeeper.receipted(tx, receipt.position.seq)
                pruning.note_receipt(tx, receipt.position.seq, text)
        if not current:
            setting_aside.finish(self._vault, receipt.device, receipt.position)
        elif self._is_newer(receipt, here=here):
            self._holder.keep_receipt(text)

    def _is_newer(self, receipt: Receipt, *, here: bool) -> bool:
        """Whether it takes the place of the one held: it goes further, or a server that was restored from a
        backup asks to go on from further back, and what follows is still here.
        """
        held = self._holder.receipt()
        if held is None or not _covered(receipt.position, held.position):
            return True
        return here and receipt.iat > held.iat

    def _take_token(self, text: str) -> None:
        """Every cell is folded first: what was admitted under the token before is recorded before it."""
        with self._counter.fold_everything() as (tx, now, _):
            named = tx.token_before(SEQ_END)
            genuine = self._holder.open_token(text, serial_min=named.serial if named else 0)
            token = genuine.token
            deciding.check_serial(named, token)
            self._holder.keep_token(genuine)
            deciding.install(tx, token, self._counter.clocks, now)


def _is_behind(position: Position, held: Position) -> bool:
    """Whether a receipt was given before the one held. What time it names is old, or was wrong and is mended."""
    return position.epoch == held.epoch and position.seq < held.seq


def _covered(position: Position, held: Position) -> bool:
    return position.epoch == held.epoch and position.seq <= held.seq
