"""Exposure, as the server knows it and as it is: never less than what a usable token lets a ledger reach."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sim_judging import DifferenceError, must, same, spent
from sim_model import ROOT, LedgerKey, Token

from licensing_server.database import read
from licensing_server.devices import token_store

if TYPE_CHECKING:
    from fleet import Fleet
    from sim_model import Model

    from meterkit.licenses import Meter


class Exposures:
    """Compares what one server says of exposure with one model."""

    def __init__(self, fleet: Fleet, model: Model) -> None:
        self.fleet = fleet
        self.model = model

    def device(self, device: str) -> None:
        """Compare the exposure of every life of a device's ledger."""
        table = token_store.exposures
        with read(self.fleet.server) as connection:
            rows = connection.execute(sa.select(table).where(table.c.device == device)).all()
        exposed = {(row.epoch, row.license, row.model, row.unit): row for row in rows}
        for epoch in self.model.epochs(device):
            key = (device, epoch)
            for token in self.model.usable(key):
                for meter, limit in token.limits.items():
                    row = exposed.get((epoch, token.license, *meter))
                    if row is None:
                        raise DifferenceError(f"no exposure for token {token.serial} of {device}")
                    if limit is None or token.flagged:
                        must("an exposure without end is called bounded", row.unbounded)
                    elif not row.unbounded:
                        self._covers(key, token, meter, limit=limit, exposure=row.units)
            self._is_exact(key, exposed)

    def _is_exact(self, key: LedgerKey, exposed: dict[tuple[str, ...], Any]) -> None:
        """Where all is known of a ledger, its exposure is what its tokens let it reach, and no more."""
        ledger, usable = self.model.ledgers[key], self.model.usable(key)
        anchors = [(token.anchor.seq, token.anchor.head) for token in usable]
        known = all(place == ROOT or place in ledger.reached for place in anchors)
        if key[0] in self.model.dishonest | self.model.unseen or not known:
            return
        (leaf,) = ledger.leaves()
        reaches: Counter[tuple[str, ...]] = Counter()
        for token, place in zip(usable, anchors, strict=True):
            for meter, limit in token.limits.items():
                beyond = (
                    spent(ledger.totals(place).get(meter)) + (limit or 0) - spent(ledger.totals(leaf).get(meter))
                )
                at = (key[1], token.license, *meter)
                reaches[at] = max(reaches[at], beyond)
        for at, units in reaches.items():
            same("the exposure of an honest ledger", exposed[at].units, units)

    def _covers(self, key: LedgerKey, token: Token, meter: Meter, *, limit: int, exposure: int) -> None:
        """Accepted and exposure together are at least what the token lets a branch reach that it is good for."""
        ledger = self.model.ledgers[key]
        place = (token.anchor.seq, token.anchor.head)
        if place != ROOT and place not in ledger.reached:
            self._covers_ahead(key, token, meter, limit=limit, exposure=exposure)
            return
        reach = spent(ledger.totals(place).get(meter)) + limit
        for leaf in ledger.leaves():
            if place in ledger.path(leaf):
                accepted = spent(ledger.totals(leaf).get(meter))
                why = f"exposure understated: {accepted} accepted, {exposure} exposed, {reach} can be reached"
                must(why, accepted + exposure >= reach)

    def _covers_ahead(self, key: LedgerKey, token: Token, meter: Meter, *, limit: int, exposure: int) -> None:
        """The same for a token whose anchor is still to come, and what was used under its license up to there."""
        if key[0] in self.model.dishonest:
            return  # what a clone or a liar used ahead of what came, no token bounds
        ledger = self.model.ledgers[key]
        ahead = [at for at in ledger.path((token.anchor.seq, token.anchor.head)) if at not in ledger.reached]
        claims = [ledger.nodes[at].claims for at in ahead if at != ROOT and ledger.nodes[at].meter == meter]
        own = sum(each["units"] + each["unsettled"] for each in claims if each["license"] == token.license)
        must(f"exposure understated: {exposure} exposed, {own} + {limit} to come", exposure >= own + limit)
