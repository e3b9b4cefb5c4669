r"""A hash chain of records: append, follow and judge it, find where two of them part.

`hash = SHA-256("mk-record/1\n" ‖ previous hash ‖ canonical bytes)`, so no record can be changed, left out or
moved without changing every hash after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from meterkit import limits
from meterkit.canonical import digest, to_bytes
from meterkit.errors import LedgerError, MeterkitError
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.tuples import NamedTuple
from meterkit.usage import read_record, record_shape


class Entry(NamedTuple):
    """One record in its chain: its place, the hash before it, its own hash, its bytes, and what they say."""

    seq: int
    prev: str
    hash: str
    body: bytes
    claims: dict[str, Any]


class TokenRef(NamedTuple):
    """The token that a chain says was installed last."""

    jti: str
    serial: int
    iat: int
    license_id: str


class Total(NamedTuple):
    """Units and unsettled units of one meter, from an epoch's genesis on."""

    units: int = 0
    unsettled: int = 0

    def plus(self, units: int, unsettled: int) -> Total:
        """The total after one more record."""
        return Total(self.units + units, self.unsettled + unsettled)


_NOTHING = Total()
_NO_TOTALS: Mapping[Meter, Total] = MappingProxyType({})


class Chain(NamedTuple):
    """What is known of a chain at one position: enough to judge what may follow."""

    device: str
    position: Position
    token: TokenRef | None = None
    totals: Mapping[Meter, Total] = _NO_TOTALS


def record_hash(prev: str, body: bytes) -> str:
    """Hash one record onto the hash before it."""
    return digest("mk-record", bytes.fromhex(prev), body).hex()


def record_hashes(prev: str, bodies: Iterable[bytes]) -> list[str]:
    """Hash records onto the hash before them, each onto the one before it."""
    head, hashes = bytes.fromhex(prev), []
    for body in bodies:
        head = digest("mk-record", head, body)
        hashes.append(head.hex())
    return hashes


def append(position: Position, members: dict[str, Any], *, time: int, boot: str) -> Entry:
    """Make the record that follows a position. `members` are its kind and what its kind says."""
    claims = {"v": 1, **members, "seq": position.seq + 1, "time": time, "boot": boot}
    record_shape(claims, "record")
    body = to_bytes(claims)
    made = record_hash(position.head, body)
    return Entry(seq=claims["seq"], prev=position.head, hash=made, body=body, claims=claims)


def after(position: Position, entry: Entry) -> Position:
    """The position once the entry stands."""
    return Position(epoch=position.epoch, seq=entry.seq, head=entry.hash)


def read(position: Position, body: bytes) -> Entry:
    """Read the bytes of the record that should follow a position, and hash them; judges form and place."""
    return _read(position.seq + 1, position.head, body)


def read_all(position: Position, bodies: Iterable[bytes]) -> list[Entry]:
    """Read the records that should follow a position, one after the other; whether they may stand there, it does
    not judge.
    """
    seq, head, entries = position.seq, position.head, []
    for body in bodies:
        seq += 1
        entry = _read(seq, head, body)
        head = entry.hash
        entries.append(entry)
    return entries


def _read(seq: int, prev: str, body: bytes) -> Entry:
    claims = read_record(body, f"record {seq}")
    if claims["seq"] != seq:
        raise LedgerError("chain_broken", f"record {claims['seq']} where {seq} belongs")
    return Entry(seq, prev, record_hash(prev, body), body, claims)


def verify_chain(chain: Chain, bodies: Iterable[bytes]) -> tuple[Chain, list[Entry]]:
    """Follow records from a position on; each must fit the ones before it.

    It proves that the records are well formed and in order, and gives the head that they hash to. That they are
    the ones meant, only comparing that head with a signed one proves.

    Raises:
        LedgerError: `chain_broken` or `record_out_of_place`, naming the first record that does not fit.
        InputError: for a record that is not canonical or has not the members of its kind.
    """
    walk = _Walk(chain)
    entries = [walk.read(body) for body in bodies]
    return walk.chain(), entries


def follow(chain: Chain, entry: Entry) -> Chain:
    """The chain once the entry stands, if it may stand there."""
    walk = _Walk(chain)
    walk.place(entry)
    return walk.chain()


def follow_all(chain: Chain, entries: Iterable[Entry]) -> Chain:
    """The chain once these entries stand, one after the other, if they may."""
    walk = _Walk(chain)
    for entry in entries:
        walk.place(entry)
    return walk.chain()


class _Walk:
    """A chain while it is followed. A record that does not fit changes nothing."""

    def __init__(self, chain: Chain) -> None:
        self._device = chain.device
        self._epoch, self._seq, self._head = chain.position
        self._token = chain.token
        self._totals = dict(chain.totals)

    def chain(self) -> Chain:
        """What is known of the chain where it is now."""
        position = Position(self._epoch, self._seq, self._head)
        return Chain(self._device, position, self._token, self._totals)

    def read(self, body: bytes) -> Entry:
        """Read the next record, and place it."""
        entry = _read(self._seq + 1, self._head, body)
        self.place(entry)
        return entry

    def place(self, entry: Entry) -> None:
        """Let a record stand next, if it may."""
        claims = entry.claims
        kind = claims["kind"]
        if (kind == "genesis") != (entry.seq == 1):
            raise LedgerError("record_out_of_place", f"record {entry.seq}: a genesis stands first, and only there")
        if kind == "usage":
            self._count(claims)
        elif kind == "token":
            self._install(claims)
        elif kind == "genesis" and (claims["epoch"] != self._epoch or claims["device"] != self._device):
            raise LedgerError("record_out_of_place", "the genesis is another device's or epoch's")
        self._seq, self._head = entry.seq, entry.hash

    def _install(self, claims: dict[str, Any]) -> None:
        if self._token is not None and claims["serial"] <= self._token.serial:
            raise LedgerError("record_out_of_place", f"record {claims['seq']}: a token with no higher serial")
        self._token = TokenRef(claims["jti"], claims["serial"], claims["iat"], claims["license"])

    def _count(self, claims: dict[str, Any]) -> None:
        # A call admitted under the token before may be folded after the next one's record: it keeps that token's
        # name, and belongs to the license of the last `token` record, as BILLING §2 says.
        if self._token is None or claims["license"] != self._token.license_id:
            raise LedgerError(
                "record_out_of_place", f"record {claims['seq']}: usage of another license than the last token's"
            )
        meter = claims["model"], claims["unit"]
        total = self._totals.get(meter, _NOTHING).plus(claims["units"], claims["unsettled"])
        meters = len(self._totals) + (meter not in self._totals)
        if max(total) > limits.INTEGER_MAX or meters > limits.METERS_MAX:
            raise LedgerError("record_out_of_place", f"record {claims['seq']}: totals out of bounds")
        self._totals[meter] = total


def good_prefix(chain: Chain, bodies: Iterable[bytes]) -> tuple[Chain, list[Entry], MeterkitError | None]:
    """Follow records as far as they hold; gives the fault that ended it, or None at a sound end.

    Where the bodies themselves end in damage, what came before it still holds.

    Raises:
        LedgerError: `ledger_unwritable`, as the bodies do: what cannot be read now may hold all the same.
    """
    walk = _Walk(chain)
    entries: list[Entry] = []
    try:
        for body in bodies:
            entries.append(walk.read(body))  # noqa: PERF401 - what came before a fault is kept
    except MeterkitError as fault:
        if fault.code == "ledger_unwritable":
            raise
        return walk.chain(), entries, fault
    return walk.chain(), entries, None


def fork_point(left: Sequence[Entry], right: Sequence[Entry]) -> int | None:
    """The sequence number at which two chains of one epoch first differ, or None if one continues the other.

    Each side is a run of consecutive entries; they are compared where they overlap.
    """
    known = {entry.seq: entry.hash for entry in left}
    differing = (entry.seq for entry in right if known.get(entry.seq, entry.hash) != entry.hash)
    return min(differing, default=None)
