"""A small vendor that meters, bills and proves: evidence bundles for tests, and hands that forge them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import billing_terms as bt
import core_world as world

from meterkit import (
    envelopes,
    estimates,
    evidence,
    exchange,
    exposure,
    ledger,
    plans,
    signing,
    usage,
)
from meterkit.accounts import Account, History
from meterkit.attribution import Calendar, Period, Run, TokenSpan, gather
from meterkit.canonical import from_base64url, from_bytes, to_bytes
from meterkit.documents import CREDIT_NOTE, Bills, Settled, members, settle
from meterkit.evidence import Bundle
from meterkit.exchange import Batch, Has
from meterkit.invoices import bill
from meterkit.keys import device_id
from meterkit.lateness import Declared, Reporting, closed_by
from meterkit.ledger import Chain
from meterkit.lines import billed_before
from meterkit.positions import Position
from meterkit.receipts import Receipt
from meterkit.replay import Replay
from meterkit.terms import Terms, Version
from meterkit.tokens import Token

START = world.NOW - 60 * bt.DAY  # the license's first midnight
CUSTOMER = world.ident("cus")
DAY = bt.DAY


@dataclass
class Device:
    """One device, its ledger, and what of it was sent."""

    name: str
    shop: "Shop"
    epoch: str = ""
    chain: Chain = None  # type: ignore[assignment]  # set at once
    sent: Position = None  # type: ignore[assignment]  # set at once
    bodies: list[bytes] = field(default_factory=list)
    jti: str = ""
    license_id: str = bt.LICENSE
    cell: str = world.CELL

    def __post_init__(self) -> None:
        self.key = world.key(f"device {self.name}")
        self.id = device_id(self.key.verify_key)
        self.start_epoch("first")

    def start_epoch(self, name: str) -> None:
        self.epoch = world.ident("ep", f"{self.name} {name}")
        self.chain = Chain(device=self.id, position=Position(epoch=self.epoch))
        self.sent, self.bodies = self.chain.position, []
        self.append(usage.genesis(epoch=self.epoch, device=self.id, previous=None, lost=None), START)

    def append(self, members: dict[str, Any], at: int) -> None:
        entry = ledger.append(self.chain.position, members, time=at, boot=world.BOOT)
        self.chain = ledger.follow(self.chain, entry)
        self.bodies.append(entry.body)

    def install(self, name: str, day: float, **changes: Any) -> None:
        """Install a token; unless it is said to be forged, the vendor has issued it."""
        forged = changes.pop("forged", False)
        iat = START + int(day * DAY)
        self.jti = world.ident("tok", f"{self.name} {name}")
        serial = iat
        if not forged:
            self.shop.issue(self, self.jti, serial, iat, **changes)
        self.append(
            usage.token_installed(
                jti=self.jti, serial=serial, iat=iat, license_id=self.license_id, anchor=self.chain.position
            ),
            iat,
        )

    def use(self, units: int, day: float, **changes: Any) -> None:
        at = START + int(day * DAY)
        members = world.usage_members(0, units, license=self.license_id, token=self.jti, window=at // 900)
        self.append({**members, "cell": self.cell, **changes}, at)

    def send(self, day: float) -> None:
        """Hand over what was not sent yet; the vendor accepts it and confirms it."""
        at = START + int(day * DAY)
        batch = Batch(
            product=world.PRODUCT,
            license_id=self.license_id,
            epoch=self.epoch,
            seq_from=self.sent.seq + 1,
            prev=self.sent.head,
            seq_to=self.chain.position.seq,
            head=self.chain.position.head,
            through=at,
            made_at=at,
            has=Has(),
            bodies=tuple(self.bodies),
        )
        text = signing.sign_payload(envelopes.BATCH, batch.to_payload(), self.key)
        self.shop.accept(self, batch, text, at)
        self.sent, self.bodies = self.chain.position, []

    def copy(self) -> "Device":
        """An image of this device: the same key, the same ledger, and once it runs, a cell of its own."""
        twin = Device.__new__(Device)
        twin.__dict__.update(self.__dict__)
        twin.bodies, twin.cell = list(self.bodies), world.ident("cel", f"{self.name} copy")
        return twin

    def activation(self) -> str:
        claims = world.activation_claims(
            sign_key=self.key.verify_key.text, position={"epoch": self.epoch, "seq": 0, "head": "0" * 64}
        )
        return signing.sign(envelopes.ACTIVATION, claims, self.key)


class Shop:
    """The vendor: what it granted, accepted, ran and invoiced."""

    def __init__(self, plan: dict[str, Any], *, months: int = 2, ends_at: int | None = None) -> None:
        self.plan = plans.read(plan)
        self.ends_at = ends_at
        self.periods = tuple(
            dataclasses.replace(
                bt.whole(nth),
                start_at=START + nth * 30 * DAY,
                end_at=START + (nth + 1) * 30 * DAY,
                whole_start_at=START + nth * 30 * DAY,
                whole_end_at=START + (nth + 1) * 30 * DAY,
            )
            for nth in range(months)
        )
        self.devices: dict[str, Device] = {}
        self.parts: dict[str, bytes] = {}
        self.acceptances: list[dict[str, Any]] = []
        self.replays: dict[str, Replay] = {}
        self.tokens: dict[str, Any] = {}
        self.runs: list[Run] = []
        self.documents: list[tuple[Run, bytes, str]] = []
        self.settled: list[tuple[str, Settled]] = []
        self.account = Account()
        self.declared: list[dict[str, Any]] = []
        self.parts["keyrings/1.json"] = to_bytes(world.keyring_document())

    def device(self, name: str) -> Device:
        made = Device(name=name, shop=self)
        self.devices[made.id] = made
        self.replays[made.id] = Replay(made.id)
        self.parts[f"activations/{made.id}.jws"] = made.activation().encode()
        return made

    def issue(
        self, device: Device, jti: str, serial: int, iat: int, *, life_days: float = 30, limit: int = 1000
    ) -> None:
        claims = world.token_claims(
            sub=device.id,
            jti=jti,
            iat=iat,
            nbf=iat,
            exp=iat + int(life_days * DAY),
            serial=serial,
            license={"id": device.license_id, "ends": None},
            anchor=device.chain.position.to_claims(),
            models=[world.model_claims(limit=limit)],
        )
        self.tokens[jti] = claims
        self.parts[f"tokens/{jti}.jws"] = signing.sign(envelopes.TOKEN, claims, world.key("token")).encode()

    def accept(self, device: Device, batch: Batch, text: str, at: int) -> None:
        number = len(self.acceptances) + 1
        self.parts[f"batches/{number:012d}.jws"] = text.encode()
        self.acceptances.append({"acceptance": number, "device": device.id, "received_at": at})
        replay = self.replays[device.id]
        replay.add(batch, acceptance=number, received_at=at)
        totals = replay.totals_at(batch.end)
        assert totals is not None
        receipt = Receipt(
            issuer=world.ISSUER,
            product=world.PRODUCT,
            device=device.id,
            iat=at,
            position=batch.end,
            totals=totals,
        )
        name = f"receipts/{device.id}.{batch.epoch}.{batch.seq_to}.{batch.head}.jws"
        signed = signing.sign(envelopes.RECEIPT, receipt.to_claims(), world.key("receipt"))
        self.parts[name] = signed.encode()

    def terms(self) -> Terms:
        version = Version(plan_id=bt.PLAN, number=1, starts_at=START, plan=self.plan)
        return Terms(license_id=bt.LICENSE, ends_at=self.ends_at, versions=(version,), periods=self.periods)

    def suspects(self) -> dict[str, frozenset[tuple[str, str]]]:
        known = {jti: _token(claims) for jti, claims in self.tokens.items()}
        return {device: each.suspects({bt.LICENSE}, known) for device, each in self.replays.items()}

    def run(self, day: float) -> Bundle | None:
        """Bill up to a day, and finalize at once; gives the evidence, or None where nothing was to bill."""
        run = Run(number=len(self.runs) + 1, cut_off=START + int(day * DAY), acceptance_max=len(self.acceptances))
        self.runs.append(run)
        terms = self.terms().known_at(run)
        suspects = self.suspects()
        records = [r for d, each in self.replays.items() for r in each.records(run.acceptance_max, suspects[d])]
        spans = [_span(claims) for claims in self.tokens.values()]
        found = gather(
            Calendar(terms.periods, terms.ends_at),
            run,
            [record for record in records if record.license_id == bt.LICENSE],
            [span for span in spans if span.license_id == bt.LICENSE],
        )
        known = [(number, each) for number, each in self.settled if number not in self.account.voided(run)]
        before = billed_before(line for _, each in known for line in each.lines)
        decided = {"conceded": self.account.conceded(run), "disputed": self.account.disputed(run)}
        closed = closed_by(terms, self.runs, self.fleet())
        estimated = self.estimated(terms, closed, run, records)
        made = bill(terms, found, before, self.runs, closed=closed, estimated=estimated, **decided)
        if not made.lines:
            return None
        history = History(replaced={number for _, each in self.settled for number in each.replaces})
        for number, each in known:
            each.note_in(history, number)
        bills = Bills(lines=made.lines, beside=made.beside)
        settled = settle(bills, run=run, account=self.account, history=history)
        return self._freeze(run, settled, terms, suspects)

    def _declared(self) -> dict[str, Any]:
        return {"declared": sorted(self.declared, key=lambda each: each["device"])} if self.declared else {}

    def fleet(self) -> list[Reporting]:
        """The devices as coverage sees them."""
        spans = [_span(claims) for claims in self.tokens.values()]
        return [
            Reporting(
                device=device,
                tokens=tuple(span for span in spans if span.device == device and span.license_id == bt.LICENSE),
                reports=tuple(self.replays[device].reports),
                declared=tuple(
                    Declared(state=each["state"], since_run=each["since_run"])
                    for each in self.declared
                    if each["device"] == device
                ),
            )
            for device in self.devices
        ]

    def declare(self, device: Device, state: str) -> None:
        """Say that a device is lost, retired or active again; the next run knows it."""
        self.declared.append({"device": device.id, "state": state, "since_run": len(self.runs) + 1})

    def estimated(self, terms: Terms, closed: Any, run: Run, records: list[Any]) -> Any:
        """What is estimated of those that are missing."""
        gaps = estimates.gaps(terms, closed, run, self.fleet())
        calendar = Calendar(terms.periods, terms.ends_at)
        given = [_token(claims) for claims in self.tokens.values()]
        exposed = {
            (device, meter): most
            for device, replay in self.replays.items()
            for meter, most in exposure.of_device(
                (token for token in given if token.device == device), replay, run
            ).items()
        }
        return estimates.estimate(gaps, estimates.count(gaps, calendar, run, records), exposed)

    def _freeze(self, run: Run, settled: Settled, terms: Terms, suspects: Any) -> Bundle:
        series = "CN" if settled.kind == CREDIT_NOTE else "INV"
        number = f"{series}-{len(self.documents) + 1:06d}"
        self.settled.append((number, settled))
        quarantined = [
            {"device": device, "epoch": epoch, "seq": self.replays[device].seq_of(epoch, hash_), "hash": hash_}
            for device, names in sorted(suspects.items())
            for epoch, hash_ in sorted(names)
        ]
        parts = {
            **self.parts,
            "licenses.json": to_bytes([_license(terms)]),
            f"plans/{bt.PLAN}.1.json": to_bytes(dict(self.plan.body)),
            "runs.json": to_bytes([each.to_claims() for each in self.runs]),
            "acceptances.json": to_bytes(self.acceptances),
            "decisions.json": to_bytes({"quarantined": quarantined, **self._declared()}),
            **{f"earlier/{name}.json": body for _, body, name in self.documents},
        }
        if self.account != Account():
            parts["account.json"] = to_bytes(self.account.known_at(run).to_claims())
        document = {
            "v": 1,
            "id": world.ident("inv", number),
            "number": number,
            "customer": CUSTOMER,
            "customer_name": "Harbour Cranes",
            "finalized_at": world.NOW,
            **members(settled, run=run, currency=self.plan.currency),
            "evidence": evidence.digest_of(parts),
        }
        parts["invoice.json"] = to_bytes(document)
        self.documents.append((run, parts["invoice.json"], number))
        return sign_bundle(parts, number)


def _token(claims: dict[str, Any]) -> Token:
    return Token.from_claims(claims)


def _span(claims: dict[str, Any]) -> TokenSpan:
    return TokenSpan(
        license_id=claims["license"]["id"],
        device=claims["sub"],
        iat=claims["iat"],
        nbf=claims["nbf"],
        exp=claims["exp"],
    )


def _license(terms: Terms) -> dict[str, Any]:
    def period(each: Period) -> dict[str, Any]:
        names = ("interval", "nth", "start_at", "end_at", "whole_start_at", "whole_end_at", "since_run")
        return {name: getattr(each, name) for name in names}

    return {
        "license": terms.license_id,
        "starts_at": START,
        "ends_at": terms.ends_at,
        "versions": [{"plan": bt.PLAN, "version": 1, "starts_at": START}],
        "periods": [period(each) for each in terms.periods],
    }


def sign_bundle(parts: dict[str, bytes], number: str = "") -> Bundle:
    """Put a manifest over parts, signed with the vendor's own key for invoices."""
    number = number or from_bytes(parts["invoice.json"], bytes_max=10**8).get("number", "INV-000001")
    claims = evidence.manifest_claims(issuer=world.ISSUER, iat=world.NOW, invoice=number, parts=parts)
    return Bundle(manifest=signing.sign(envelopes.EVIDENCE, claims, world.key("invoice")), parts=parts)


def forge(bundle: Bundle, changes: dict[str, bytes | None], *, own_digest: bool = True) -> Bundle:
    """Change parts as a vendor could who holds all of its own keys: every digest and the manifest made anew."""
    parts = dict(bundle.parts)
    for name, data in changes.items():
        if data is None:
            del parts[name]
        else:
            parts[name] = data
    if own_digest and "invoice.json" in parts:
        document = from_bytes(parts["invoice.json"], bytes_max=10**8)
        document["evidence"] = evidence.digest_of(parts)
        parts["invoice.json"] = to_bytes(document)
    return sign_bundle(parts, "INV-000001" if "invoice.json" not in parts else "")


def payload(text: bytes) -> bytes:
    """What a signed part says, whoever signed it."""
    kind = envelopes.KINDS[from_bytes(_b64(text.split(b".")[0]), bytes_max=512)["typ"]]
    return envelopes.unverified_parts(kind, text.decode()).payload


def _b64(data: bytes) -> bytes:
    return from_base64url(data.decode())


def story() -> tuple[Bundle, Bundle]:
    """Two months, two devices, a late unit, a fork, a forged token: the evidence of both invoices."""
    tiers = [{"up_to": 100, "unit_amount": "0.10"}, {"up_to": None, "unit_amount": "0.05"}]
    shop = Shop(
        bt.plan_json(
            bt.usage_charge({"model": "graduated", "tiers": tiers}, model="detector"),
            bt.recurring("49.00", due="advance"),
            bt.recurring(name="fleet", per="device", price=bt.per_unit("2")),
            bt.commitment("120", "calls", "fee"),
        ),
        months=3,
    )
    crane, lift = shop.device("crane"), shop.device("lift")
    crane.install("one", 0)
    crane.use(90, 1)
    lift.install("one", 2)
    lift.use(30, 3, unsettled=4)
    crane.send(4)
    crane.use(7, 20)
    lift.send(25)
    first = shop.run(30)
    crane.send(31)  # the seven units were used in the first month, and come in the second
    twin = crane.copy()
    crane.use(11, 33)
    crane.send(34)
    twin.use(13, 35)
    twin.send(36)
    lift.install("stolen", 40, forged=True)
    lift.use(1000, 41)
    lift.send(42)
    second = shop.run(60)
    assert first is not None
    assert second is not None
    return first, second


def estimated_story() -> tuple[Bundle, Bundle, Bundle]:
    """Three devices, of which two are missing when the second month closes: one comes back, one is lost."""
    tiers = [{"up_to": 100, "unit_amount": "0.10"}, {"up_to": None, "unit_amount": "0.05"}]
    shop = Shop(
        bt.plan_json(
            bt.usage_charge({"model": "graduated", "tiers": tiers}, model="detector"),
            close={"policy": "estimate", "percent": 30, "days": 20},
        ),
        months=3,
    )
    crane, lift, barge = (shop.device(name) for name in ("crane", "lift", "barge"))
    for device, units in ((crane, 90), (lift, 30), (barge, 61)):
        device.install("one", 0, life_days=60, limit=150)
        device.use(units, 3)
        device.send(31)
    first = shop.run(36)
    lift.use(24, 40)
    lift.send(61)
    crane.use(13, 40, unsettled=4)
    crane.send(41)
    second = shop.run(65)
    crane.use(20, 50)
    crane.send(66)
    shop.declare(barge, "lost")
    third = shop.run(70)
    assert first is not None
    assert second is not None
    assert third is not None
    return first, second, third


__all__ = ["Shop", "estimated_story", "exchange", "forge", "payload", "sign_bundle", "story"]
