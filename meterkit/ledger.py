r"""A hash chain of records: append, follow and judge it, find where two of them part.

`hash = SHA-256("mk-record/1\n" ‖ previous hash ‖ canonical bytes)`, so no record can be changed, left out or
moved without changing every hash after it.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from meterkit import limits
from meterkit.canonical import digest, from_canonical, to_bytes
from meterkit.errors import LedgerError, MeterkitError
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.usage import UsageRecord, record_shape


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

    def plus(self, units: int, unsettled: int) -> "Total":
        """The total after one more record."""
        return Total(units=self.units + units, unsettled=self.unsettled + unsettled)


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
    claims = from_canonical(body, bytes_max=limits.RECORD_BYTES_MAX)
    record_shape(claims, f"record {position.seq + 1}")
    if claims["seq"] != position.seq + 1:
        raise LedgerError("chain_broken", f"record {claims['seq']} where {position.seq + 1} belongs")
    made = record_hash(position.head, body)
    return Entry(seq=claims["seq"], prev=position.head, hash=made, body=body, claims=claims)


def verify_chain(chain: Chain, bodies: Iterable[bytes]) -> tuple[Chain, list[Entry]]:
    """Follow records from a position on; each must fit the ones before it.

    It proves that the records are well formed and in order, and gives the head that they hash to. That they are
    the ones meant, only comparing that head with a signed one proves.

    Raises:
        LedgerError: `chain_broken` or `record_out_of_place`, naming the first record that does not fit.
        InputError: for a record that is not canonical or has not the members of its kind.
    """
    entries: list[Entry] = []
    for body in bodies:
        entry = read(chain.position, body)
        chain = follow(chain, entry)
        entries.append(entry)
    return chain, entries


def follow(chain: Chain, entry: Entry) -> Chain:
    """The chain once the entry stands, if it may stand there."""
    claims = entry.claims
    at = after(chain.position, entry)
    if (claims["kind"] == "genesis") != (entry.seq == 1):
        raise LedgerError("record_out_of_place", f"record {entry.seq}: a genesis stands first, and only there")
    if claims["kind"] == "genesis":
        if claims["epoch"] != at.epoch or claims["device"] != chain.device:
            raise LedgerError("record_out_of_place", "the genesis is another device's or epoch's")
    elif claims["kind"] == "token":
        named = TokenRef(
            jti=claims["jti"], serial=claims["serial"], iat=claims["iat"], license_id=claims["license"]
        )
        if chain.token is not None and named.serial <= chain.token.serial:
            raise LedgerError("record_out_of_place", f"record {entry.seq}: a token with no higher serial")
        return chain._replace(position=at, token=named)
    elif claims["kind"] == "usage":
        return _follow_usage(chain._replace(position=at), claims)
    return chain._replace(position=at)


def _follow_usage(chain: Chain, claims: dict[str, Any]) -> Chain:
    # A call admitted under the token before may be folded after the next one's record: it keeps that token's
    # name, and belongs to the license of the last `token` record, as BILLING §2 says.
    if chain.token is None or claims["license"] != chain.token.license_id:
        raise LedgerError(
            "record_out_of_place", f"record {claims['seq']}: usage of another license than the last token's"
        )
    record = UsageRecord.from_claims(claims)
    total = chain.totals.get(record.meter, Total()).plus(record.units, record.unsettled)
    totals = {**chain.totals, record.meter: total}
    if max(total.units, total.unsettled) > limits.INTEGER_MAX or len(totals) > limits.METERS_MAX:
        raise LedgerError("record_out_of_place", f"record {claims['seq']}: totals out of bounds")
    return chain._replace(totals=totals)


def good_prefix(chain: Chain, bodies: Iterable[bytes]) -> tuple[Chain, list[Entry], MeterkitError | None]:
    """Follow records as far as they hold; gives the fault that ended it, or None at a sound end."""
    entries: list[Entry] = []
    for body in bodies:
        try:
            entry = read(chain.position, body)
            chain = follow(chain, entry)
        except MeterkitError as fault:
            return chain, entries, fault
        entries.append(entry)
    return chain, entries, None


def fork_point(left: Sequence[Entry], right: Sequence[Entry]) -> int | None:
    """The sequence number at which two chains of one epoch first differ, or None if one continues the other.

    Each side is a run of consecutive entries; they are compared where they overlap.
    """
    known = {entry.seq: entry.hash for entry in left}
    differing = (entry.seq for entry in right if known.get(entry.seq, entry.hash) != entry.hash)
    return min(differing, default=None)
