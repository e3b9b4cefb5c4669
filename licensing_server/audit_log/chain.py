r"""The audit log as a hash chain. Pure: entries in, the first one that does not hold out.

`hash = SHA-256("mk-audit-log/1\n" ‖ previous hash ‖ canonical bytes)`, of all members but the hashes, so no entry
can be changed, left out or moved without changing every hash after it. Whoever may rewrite the whole database
can rewrite the whole chain: only a (seq, hash) that was noted elsewhere shows that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from meterkit.canonical import digest, to_bytes
from meterkit.errors import InputError
from meterkit.positions import ZERO

COMMAND = "command"  # whoever may run commands in the server's directory
SERVER = "server"  # by a rule that a person set before, as a license's fork policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One decision: its place, when, by whom (an API key's id, `command` or `server`), what, and about what."""

    seq: int
    at: int
    who: str
    action: str
    subject: str
    body: Any
    prev: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A place in the chain: how many entries, and the hash of the last of them."""

    seq: int = 0
    hash: str = ZERO

    def to_document(self) -> dict[str, Any]:
        """Show it to people; noted elsewhere, it proves later what stood here."""
        return {"seq": self.seq, "hash": self.hash}


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The first entry that does not hold, and why not."""

    seq: int
    what: str

    def to_document(self) -> dict[str, Any]:
        """Show it to people."""
        return {"seq": self.seq, "what": self.what}


def make(last: Link, *, at: int, who: str, action: str, subject: str, body: Any) -> Entry:
    """Make the entry that follows a place in the chain."""
    members = {"at": at, "who": who, "action": action, "subject": subject, "body": body}
    seq = last.seq + 1
    return Entry(seq=seq, **members, prev=last.hash, hash=_hash(last.hash, {"seq": seq, **members}))


def _hash(prev: str, members: dict[str, Any]) -> str:
    return digest("mk-audit-log", bytes.fromhex(prev), to_bytes(members)).hex()


class Walk:
    """A walk along the chain from its first entry on, which remembers the first one that does not hold."""

    def __init__(self, known: Link | None = None) -> None:
        self.last = Link()
        self.broken: Broken | None = None
        self._known = known

    def follow(self, entries: Iterable[Entry]) -> None:
        """Follow the next entries, in their order."""
        for entry in entries:
            if self.broken is None:
                self._step(entry)

    def _step(self, entry: Entry) -> None:
        known = self._known
        if entry.seq != self.last.seq + 1:
            self._break(self.last.seq + 1, "it is missing")
        elif entry.prev != self.last.hash:
            self._break(entry.seq, "it does not follow the entry before it")
        elif entry.hash != self._hash_of(entry):
            self._break(entry.seq, "it is not what was logged")
        elif known is not None and known.seq == entry.seq and known.hash != entry.hash:
            self._break(entry.seq, "it is not the entry that was noted")
        else:
            self.last = Link(seq=entry.seq, hash=entry.hash)

    def _hash_of(self, entry: Entry) -> str | None:
        members = ("seq", "at", "who", "action", "subject", "body")
        try:
            return _hash(entry.prev, {name: getattr(entry, name) for name in members})
        except (InputError, ValueError):
            return None  # what was logged can be hashed

    def end(self, count: int) -> None:
        """Judge the end of the chain: `count` entries were logged, and the one noted was among them."""
        least = max(count, self._known.seq if self._known else 0)
        if self.broken is None and self.last.seq < least:
            self._break(self.last.seq + 1, "it is missing")

    def _break(self, seq: int, what: str) -> None:
        self.broken = Broken(seq=seq, what=what)
