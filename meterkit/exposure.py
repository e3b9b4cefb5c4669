"""The most that a device can still report, as a billing run knows it by tokens and batches alone (DESIGN §4).

It is what an audit can prove: the tokens as they were signed, what was accepted at their anchors, and which of
them the device's own ledger says to have installed. That a vendor has written some of it off is a figure of its
pool, and changes nothing here; nor does a token's end, for it gives nothing back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from meterkit.attribution import Run
from meterkit.ledger import Chain, Total
from meterkit.licenses import Meter
from meterkit.replay import Replay
from meterkit.tokens import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What a token allows by one meter: `units_max` beyond `at_anchor`, the units accepted at its anchor.

    None for an anchor that no batch has reached, and for units without a bound.
    """

    serial: int
    at_anchor: int | None
    units_max: int | None


def spent(total: Total | None) -> int:
    """What counts against a limit: units, and unsettled units."""
    return 0 if total is None else total.units + total.unsettled


def beyond(granted: Iterable[Granted], installed: int, ends: Sequence[int]) -> int | None:
    """The most that one ledger can count by one meter beyond what is accepted of it; None where nothing bounds it.

    A token is usable unless the ledger says that a later one, with the serial `installed`, is. `ends` is what was
    accepted at the end of each branch: a token is measured by the branch that is least far beyond its anchor. One
    whose anchor is still to come begins, at the furthest, where those before it end.
    """
    most = 0
    for token in sorted(granted, key=lambda token: token.serial):
        if token.serial < installed:
            continue
        if token.units_max is None:
            return None
        if token.at_anchor is None:
            most += token.units_max
            continue
        nearest = min((at for at in ends if at >= token.at_anchor), default=token.at_anchor)
        most = max(most, token.at_anchor + token.units_max - nearest)
    return most


def add(one: int | None, two: int | None) -> int | None:
    """Both together, of several lives of a ledger; None where one of them has no bound."""
    return None if one is None or two is None else one + two


def of_device(tokens: Iterable[Token], replay: Replay, run: Run) -> dict[Meter, int | None]:
    """The most that a device can still report by each meter under one license, whose `tokens` for it these are."""
    by_epoch: dict[str, list[Token]] = {}
    for token in tokens:
        if token.iat < run.cut_off:
            by_epoch.setdefault(token.anchor.epoch, []).append(token)
    found: dict[Meter, int | None] = {}
    for epoch, own in by_epoch.items():
        for meter, most in _of_ledger(own, replay, replay.ends(epoch, run.acceptance_max), run).items():
            found[meter] = add(found.get(meter, 0), most)
    return found


def _of_ledger(tokens: list[Token], replay: Replay, ends: list[Chain], run: Run) -> dict[Meter, int | None]:
    installed = max((end.token.serial for end in ends if end.token), default=0)
    granted: dict[Meter, list[Granted]] = {}
    for token in tokens:
        totals = replay.totals_at(token.anchor, run.acceptance_max)
        for terms in token.models:
            at_anchor = None if totals is None else spent(totals.get(terms.meter))
            units_max = None if token.policy.limit == "flag" else terms.limit
            own = Granted(serial=token.serial, at_anchor=at_anchor, units_max=units_max)
            granted.setdefault(terms.meter, []).append(own)
    return {meter: beyond(each, installed, _spent_at(ends, meter)) for meter, each in granted.items()}


def _spent_at(ends: Iterable[Chain], meter: Meter) -> list[int]:
    return [spent(end.totals.get(meter)) for end in ends]
