"""Usual batches: usage with nothing odd about it, behind the few records with which a ledger or a token begins.

That is nearly every batch. Its records are read in one go, and judged by the few things that they tell; the rules
are those of `meterkit.ledger` and `usage.records`, which judge record by record. What is not usual is not refused
here: it is left to them, and what is usual comes to the same there.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from licensing_server.usage import records
from licensing_server.usage.records import IssuedToken, Used, Uses
from meterkit import ledger, limits, shapes, usage
from meterkit.errors import InputError
from meterkit.ledger import Chain, Entry, TokenRef, Total
from meterkit.positions import Position
from meterkit.tuples import NamedTuple

_KIND = b'"kind":"usage"'
_Count = Annotated[int, msgspec.Meta(ge=0, le=limits.INTEGER_MAX)]


class Usage(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A usual record. Its members stand here as they do in canonical JSON: so it is written as it was read."""

    boot: str
    cell: str
    digest: str
    flags: tuple[()]
    count_from: _Count = msgspec.field(name="from")
    kind: Literal["usage"]
    license: str
    model: str
    provisional: bool
    seq: _Count
    time: Annotated[int, msgspec.Meta(ge=0, le=limits.TIME_MAX_S)]
    count_to: _Count = msgspec.field(name="to")
    token: str
    unit: Literal["call", "item"]
    units: Annotated[int, msgspec.Meta(ge=0, le=records.PLAUSIBLE_UNITS_MAX)]
    unsettled: Literal[0]
    v: Literal[1]
    window: Annotated[int, msgspec.Meta(ge=0, le=limits.CELL_WINDOW_MAX)]


class Run(NamedTuple):
    """Usual records that follow each other, the hash of each, and what they name and come to.

    `uses` are by token, model, unit and window.
    """

    records: list[Usage]
    hashes: list[str]
    licenses: frozenset[str]
    uses: dict[tuple[str, str, str, int], Used]

    @property
    def tokens(self) -> set[str]:
        """The tokens that they name."""
        return {token for token, _, _, _ in self.uses}


class Judged(NamedTuple):
    """A usual batch where it stands: the chain after it, its rows but for their number, and what they come to."""

    after: Chain
    rows: list[tuple[Any, ...]]
    uses: Uses


_DECODER = msgspec.json.Decoder(Usage)
_ENCODER = msgspec.json.Encoder()
_TEXTS = {
    "boot": shapes.BOOT,
    "cell": usage.CELL,
    "digest": shapes.HASH,
    "license": shapes.LICENSE,
    "model": shapes.NAME,
    "token": shapes.TOKEN,
}
_LICENSE, _UNITS = attrgetter("license"), attrgetter("units")


def read(start: Position, bodies: Sequence[bytes]) -> tuple[list[Entry], Run] | None:
    """Read the records that should follow a position: the few of other kinds, then the usual ones, if they are.

    Raises:
        InputError, LedgerError: for a record among the first few, as `ledger.read_all` does.
    """
    first = next((place for place, body in enumerate(bodies) if _KIND in body), len(bodies))
    found = _read_usual(bodies[first:])
    if not found or found[0].seq == 1:
        return None
    entries = ledger.read_all(start, bodies[:first])
    at = ledger.after(start, entries[-1]) if entries else start
    if [each.seq for each in found] != list(range(at.seq + 1, at.seq + 1 + len(found))):
        return None
    alike: dict[tuple[str, str, str, int], list[Usage]] = {}
    for each in found:
        alike.setdefault((each.token, each.model, each.unit, each.window), []).append(each)
    uses = {key: Used(sum(map(_UNITS, some)), 0, some[0].seq, some[-1].seq) for key, some in alike.items()}
    hashes = ledger.record_hashes(at.head, bodies[first:])
    return entries, Run(found, hashes, frozenset(map(_LICENSE, found)), uses)


def _read_usual(bodies: Sequence[bytes]) -> list[Usage] | None:
    """Read records; None unless each is a usual one and in canonical form.

    What is written of what was read can only be the same bytes if these were canonical, and told nothing else.
    """
    lines = b"\n".join(bodies)
    try:
        found = _DECODER.decode_lines(lines)
        if _ENCODER.encode_lines(found) != lines + b"\n":
            return None
        for name, shape in _TEXTS.items():
            for value in set(map(attrgetter(name), found)):
                shape(value, name)
    except (msgspec.MsgspecError, InputError, UnicodeError):
        return None
    return found if all(each.count_to - each.count_from == each.units for each in found) else None


def judge(chain: Chain, run: Run, known: Mapping[str, IssuedToken], *, received_at: int) -> Judged | None:
    """Let a run stand next, if it may and a person need not look at any of it; else None."""
    token, after = chain.token, _follow(chain, run)
    if token is None or after is None or not records.is_ours(token, known):
        return None
    for jti, model, unit, window in run.uses:
        claims = {"token": jti, "model": model, "unit": unit, "window": window, "flags": ()}
        if jti not in known or records.suspicions(claims, known[jti], after.totals[model, unit]):
            return None
    starts = {window: records.service_at(window, token, received_at) for _, _, _, window in run.uses}
    uses: Uses = {}
    for (_, model, unit, window), used in run.uses.items():
        key = token.license_id, model, unit, starts[window]
        uses[key] = uses[key].plus(used) if key in uses else used
    return Judged(after, _rows(chain, token, run, starts), uses)


def _follow(chain: Chain, run: Run) -> Chain | None:
    """The chain once they stand, as `ledger.follow_all` gives it; None if one of them may not stand there."""
    if chain.token is None or run.licenses != {chain.token.license_id}:
        return None
    totals = dict(chain.totals)
    for (_, model, unit, _), used in run.uses.items():
        totals[model, unit] = totals.get((model, unit), Total()).plus(used.units, used.unsettled)
    if len(totals) > limits.METERS_MAX or any(max(total) > limits.INTEGER_MAX for total in totals.values()):
        return None
    position = Position(chain.position.epoch, run.records[-1].seq, run.hashes[-1])
    return Chain(chain.device, position, chain.token, totals)


def _rows(chain: Chain, token: TokenRef, run: Run, starts: Mapping[int, int]) -> list[tuple[Any, ...]]:
    """What is stored of them, as `store.record_values` has it; SQLite binds 0 and 1 with less ado than truths."""
    device, epoch, license_id = chain.device, chain.position.epoch, token.license_id
    return [
        (
            *(device, epoch, each.seq, own, prev, license_id, each.token, each.model, each.unit, each.digest),
            *(each.units, 0, each.window, int(each.provisional), starts[each.window]),
            *(int(starts[each.window] != each.window * limits.WINDOW_S), "[]", each.time, 0, None, 0),
        )
        for each, (prev, own) in zip(run.records, pairwise((chain.position.head, *run.hashes)), strict=True)
    ]
