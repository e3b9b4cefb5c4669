"""What must hold after every step of a simulated run: the server says what the model knows to be true."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sim_exposures import Exposures
from sim_judging import must, same, spent
from sim_model import ROOT, LedgerKey, Token, month

from licensing_server.database import read
from licensing_server.devices import token_store
from licensing_server.licenses.store import license_units
from licensing_server.pages import Page
from licensing_server.usage import service as usage
from licensing_server.usage import store
from meterkit import envelopes
from meterkit.exchange import read_batch
from meterkit.ledger import Total, record_hash
from meterkit.positions import Position

if TYPE_CHECKING:
    from fleet import Fleet
    from sim_device import SimDevice
    from sim_model import License, Model, Piece, Place

    from meterkit.exchange import Reply
    from meterkit.licenses import Meter

FLAGGED = ("over_limit", "clock", "unknown_token", "implausible_rate")


class Checks:
    """Compares one server with one model."""

    def __init__(self, fleet: Fleet, model: Model) -> None:
        self.fleet = fleet
        self.model = model
        self.exposures = Exposures(fleet, model)

    # -- one reply

    def reply(self, device: SimDevice, reply: Reply, taken: list[Piece], *, told: int) -> None:
        """Judge the reply to batches of which these were taken; `told` is the serial that they said was held."""
        reply.to_bytes()
        receipts = [self._receipt(device, text) for text in reply.receipts]
        for piece in taken:
            covering = (at for at in receipts if at.epoch == piece.key[1])
            must("no receipt covers what was accepted", any(self._is_behind(piece, at) for at in covering))
        if reply.token is not None:
            token = self._token(device, reply.token, told)
            must("a token is anchored where no receipt is", token.anchor in receipts)
        self._token_given(device, reply, anything_taken=bool(taken))

    def activation(self, device: SimDevice, reply: Reply, position: Position) -> None:
        reply.to_bytes()
        for text in reply.receipts:
            self._receipt(device, text)
        must("an activation brings no token", reply.token is not None)
        token = self._token(device, reply.token or "", 0)
        same("the anchor of a first token", token.anchor, position)
        must("a held device was given a token", device.id not in self.model.held)

    def _is_behind(self, piece: Piece, at: Position) -> bool:
        place = (at.seq, at.head)
        return place[0] >= piece.end[0] and piece.end in self.model.ledgers[piece.key].path(place)

    def _receipt(self, device: SimDevice, text: str) -> Position:
        receipt = device.open_receipt(text)
        at, ledger = receipt.position, self.model.ledgers[device.id, receipt.position.epoch]
        place = (at.seq, at.head)
        must(f"a receipt claims {at}, which never came", place == ROOT or place in ledger.reached)
        same("the totals of a receipt", dict(receipt.totals), ledger.totals(place))
        must("a receipt is dated ahead of its server", receipt.iat <= self.fleet.clock.now)
        first = self.model.receipts.setdefault((device.id, at), text)
        same("the receipt for a position that has one", text, first)
        return at

    def _token(self, device: SimDevice, text: str, told: int) -> Token:
        read_token = device.open_token(text)
        given = self.model.tokens[device.id]
        token = Token(
            jti=read_token.jti,
            serial=read_token.serial,
            iat=read_token.iat,
            license=read_token.license_id,
            anchor=read_token.anchor,
            limits={terms.meter: terms.limit for terms in read_token.models},
            flagged=read_token.policy.limit == "flag",
            text=text,
        )
        same("the license of a token", token.license, self.model.license_of[device.id])
        must(f"serial {token.serial} is not above {told}, which the device holds", token.serial > told)
        if given and given[-1].text == text:
            return given[-1]
        must("a serial did not rise", not given or token.serial > given[-1].serial)
        for meter, limit in token.limits.items():
            most = self.model.licenses[token.license].grants[meter].units_max
            must("a token allows more than its license", most is None or (limit is not None and limit <= most))
        given.append(token)
        return token

    def _token_given(self, device: SimDevice, reply: Reply, *, anything_taken: bool) -> None:
        license_ = self.model.licenses[self.model.license_of[device.id]]
        barred = license_.suspended or device.id in self.model.held or not anything_taken
        if reply.token is not None:
            must("a token was given to a device that gets receipts only", not barred)
        elif not barred:
            sharing = len(self.model.users[license_.id])
            must("no token was given, for no reason", sharing > license_.devices_max)

    # -- one device

    def device(self, device: str) -> None:
        """Compare all that the server says of a device: its records, its exceptions, its exposure."""
        self._records(device)
        self._exceptions(device)
        self.exposures.device(device)

    def _records(self, device: str) -> None:
        with read(self.fleet.server) as connection:
            table = store.usage_records
            rows = connection.execute(sa.select(table).where(table.c.device == device)).all()
        true = self.model.usage_rows(device)
        found = Counter((row.epoch, row.seq, row.hash) for row in rows)
        same("usage records, each once", found, Counter(dict.fromkeys(true, 1)))
        for row in rows:
            known = true[row.epoch, row.seq, row.hash]
            told = {
                "license": row.license,
                "meter": (row.model, row.unit),
                "units": row.units,
                "unsettled": row.unsettled,
                "service_at": row.service_at,
                "quarantined": known["quarantined"] if row.quarantined else None,
            }
            same(f"record {row.seq} of {device}", told, known)

    def _exceptions(self, device: str) -> None:
        asked = Page(limit=200)
        items = usage.page_exceptions(self.fleet.server, asked, device=device)["items"]
        must("one page holds a device's exceptions", len(items) < 200)
        for epoch in self.model.epochs(device):
            ledger = self.model.ledgers[device, epoch]
            of_ledger = [item for item in items if item["epoch"] == epoch]
            forks = [item["evidence"]["fork_at"] for item in of_ledger if item["kind"] == "fork"]
            same("forks", Counter((at["seq"], at["head"]) for at in forks), ledger.forks())
            resets = sum(item["kind"] == "reset" for item in of_ledger)
            same("resets", resets, int(ledger.is_reset))
            found, true = self._flagged(of_ledger), self._truly_flagged((device, epoch))
            if "over_limit" in found - true and self._exceeds_a_limit((device, epoch)):
                true.add("over_limit")  # a liar's records say nothing of it
            same("flagged ledgers", found, true)

    def _flagged(self, items: list[dict[str, Any]]) -> set[str]:
        return {item["kind"] for item in items if item["kind"] in FLAGGED}

    def _truly_flagged(self, key: LedgerKey) -> set[str]:
        ledger = self.model.ledgers[key]
        found = {row["quarantined"] for row in ledger.rows.values() if row["quarantined"]}
        for place in ledger.rows:
            found |= set(ledger.nodes[place].claims["flags"]) & set(FLAGGED)
        return found

    def _exceeds_a_limit(self, key: LedgerKey) -> bool:
        """Whether any record that reached the server goes beyond its token's limit, whatever its flags say."""
        ledger, tokens = self.model.ledgers[key], {token.jti: token for token in self.model.tokens[key[0]]}
        for place in ledger.rows:
            node = ledger.nodes[place]
            token = tokens.get(node.claims["token"])
            limit = token.limits.get(node.meter) if token and token.anchor.epoch == key[1] else None
            if token is None or limit is None:
                continue
            anchor = (token.anchor.seq, token.anchor.head)
            before = ledger.totals(anchor).get(node.meter, Total()) if anchor in {ROOT, *ledger.nodes} else Total()
            if spent(node.totals[node.meter]) > spent(before) + limit:
                return True
        return False

    # -- one license

    def license(self, license_: License) -> None:
        """Compare what is summed for a license, and hold its pools."""
        totals, aside, months = self.model.accepted(license_.id)
        items = usage.sum_usage(self.fleet.server, license_id=license_.id)["items"]
        found = {(item["model"], item["unit"]): Total(item["units"], item["unsettled"]) for item in items}
        quarantined = {(item["model"], item["unit"]): item["quarantined"] for item in items}
        for meter, grant in license_.grants.items():
            true = totals.get(meter, Total())
            same("the sum of usage", found.get(meter, Total()), true)
            same("the sum of what is set aside", quarantined.get(meter, 0), aside.get(meter, 0))
            with read(self.fleet.server) as connection:
                row = connection.execute(_units(license_.id, meter)).one_or_none()
                exposed = token_store.exposed_units(connection, license_.id, meter)
            same("what is accepted for the license", Total(*row) if row else Total(), true)
            if grant.pool is not None and self.model.is_bounded(license_) and license_.policy.limit == "deny":
                in_all = grant.per == "license"
                accepted = spent(true) if in_all else months.get((meter, month(self.fleet.clock.now)), 0)
                self._pool(license_, meter, grant.pool, accepted=accepted, exposed=exposed, in_all=in_all)
                for at, used in months.items():
                    must(f"{used} of a pool of {grant.pool} used in {at}", at[0] != meter or used <= grant.pool)

    def _pool(
        self, license_: License, meter: Meter, pool: int, *, accepted: int, exposed: int, in_all: bool
    ) -> None:
        if not self.model.is_moved_to(license_):
            must(f"{accepted} accepted and {exposed} exposed of a pool of {pool}", accepted + exposed <= pool)
        signed = self.model.spent[license_.id, meter]
        must(f"{signed} used of a pool of {pool}", signed <= pool or not in_all)

    # -- everything

    def everything(self) -> None:
        """Compare all devices and licenses, and the evidence itself: every record is kept as it was signed."""
        for device in sorted(self.model.license_of):
            self.device(device)
        for license_ in self.model.licenses.values():
            self.license(license_)
        kept: dict[LedgerKey, set[Place]] = {}
        with read(self.fleet.server) as connection:
            rows = connection.execute(sa.select(store.batches).order_by(store.batches.c.acceptance)).all()
        same("acceptance numbers", [row.acceptance for row in rows], list(range(1, len(rows) + 1)))
        for row in rows:
            batch = read_batch(envelopes.unverified_parts(envelopes.BATCH, store.unpack(row.body)).payload)
            places, head = kept.setdefault((row.device, row.epoch), set()), batch.prev
            for seq, body in enumerate(batch.bodies, batch.seq_from):
                head = record_hash(head, body)
                places.add((seq, head))
        for key, ledger in self.model.ledgers.items():
            same(f"the evidence of {key}", kept.get(key, set()), set(ledger.reached))


def _units(license_id: str, meter: Meter) -> sa.Select[Any]:
    table = license_units.c
    return sa.select(table.units, table.unsettled).where(
        table.license == license_id, table.model == meter[0], table.unit == meter[1], table.period_start == 0
    )
