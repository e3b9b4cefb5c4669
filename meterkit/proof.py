"""What an evidence bundle proves by signatures and chains, before anything is calculated (steps 1 to 7).

Every step names the part at which it failed. Nothing here trusts the server's word where a device's own
signature says more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from meterkit import activation, envelopes, exchange, keyrings, limits, receipts, tokens
from meterkit.attribution import Record, Run, TokenSpan
from meterkit.canonical import from_bytes
from meterkit.envelopes import Addressee
from meterkit.errors import MeterkitError, TrustError
from meterkit.evidence import (
    ACCEPTANCES,
    ACCEPTANCES_SHAPE,
    DECISIONS,
    DECISIONS_SHAPE,
    KEYRING_SHAPE,
    MANIFEST,
    MANIFEST_SHAPE,
    Bundle,
    listing,
)
from meterkit.keys import KEYRING, Keyring, KeyringKey, Trust, VerifyKey, roots_fingerprint
from meterkit.lateness import Declared, Reporting
from meterkit.positions import Position
from meterkit.receipts import Receipt
from meterkit.repeats import Dismissal, Name
from meterkit.replay import Replay
from meterkit.tokens import Token

_BATCH_NAME = re.compile(r"batches/([0-9]{12})\.jws\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be: where it stands, and what is wrong."""

    place: str
    what: str


class Differs(Exception):  # noqa: N818  it carries a finding to the end of the procedure, it is no fault of ours
    """The evidence does not hold at one place."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(place, what)
        self.finding = Finding(place=place, what=what)


@contextmanager
def at(place: str) -> Iterator[None]:
    """Name the place of whatever is refused inside."""
    try:
        yield
    except MeterkitError as error:
        raise Differs(place, str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """Who signed on the server's side: the keys, the roots behind them, and whether those were pinned."""

    keyring: Keyring
    fingerprint: str
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What the signatures and chains of a bundle prove."""

    vendor: Vendor
    invoice_number: str
    signed_at: int
    replays: dict[str, Replay]
    quarantined: dict[str, frozenset[Name]]
    released: dict[str, dict[Name, int]]
    dismissed: dict[str, dict[Name, int]]
    repeated: dict[str, dict[Name, int]]  # how many units of a record another branch told of before
    declared: dict[str, tuple[Declared, ...]]
    tokens: tuple[Token, ...]

    def records(self, run: Run) -> list[Record]:
        """The usage records that a run knows, by the decisions that it knows."""
        found: list[Record] = []
        for device, replay in self.replays.items():
            released = _since(self.released.get(device, {}), run)
            aside = self.quarantined.get(device, frozenset()) - released
            dismissed = _since(self.dismissed.get(device, {}), run)
            told = self.repeated.get(device, {})
            repeated = {name: units for name, units in told.items() if name not in released}
            found += replay.records(run.acceptance_max, aside, dismissed, repeated)
        return found

    def fleet(self, license_id: str) -> list[Reporting]:
        """The devices of a license as coverage sees them."""
        own: dict[str, list[TokenSpan]] = {}
        for span in self.spans():
            if span.license_id == license_id:
                own.setdefault(span.device, []).append(span)
        return [
            Reporting(
                device=device,
                tokens=tuple(tokens),
                reports=tuple(self.replays[device].reports) if device in self.replays else (),
                declared=self.declared.get(device, ()),
            )
            for device, tokens in own.items()
        ]

    def spans(self) -> list[TokenSpan]:
        """When the tokens were issued and valid."""
        return [
            TokenSpan(
                license_id=token.license_id, device=token.device, iat=token.iat, nbf=token.nbf, exp=token.exp
            )
            for token in self.tokens
        ]


def _since(decided: dict[Name, int], run: Run) -> frozenset[Name]:
    return frozenset(name for name, since_run in decided.items() if since_run <= run.number)


def prove(bundle: Bundle, trusted: Collection[str] | None) -> Proven:
    """Check every signature, digest and chain of a bundle.

    `trusted` pins the vendor: fingerprints of its set of roots, or thumbprints of enough single roots.

    Raises:
        Differs: naming the first part that does not hold.
    """
    # 1. the vendor's keyrings, from the roots on
    vendor = _vendor(bundle, trusted)
    # 2. the manifest's signature, by a key for invoices
    with at(MANIFEST):
        _, manifest = envelopes.open_claims(
            envelopes.EVIDENCE,
            bundle.manifest,
            keyring=vendor.keyring,
            addressee=Addressee(issuer=vendor.keyring.issuer),
            shape=MANIFEST_SHAPE,
        )
    # 3. every part is in the manifest, with its digest, and nothing else is
    _check_parts(bundle, manifest["parts"])
    # 4. the devices' own keys, from what they signed when they were activated
    devices = _devices(bundle)
    # 5. every batch: the device's signature, its chain from genesis, or from a receipt for what is gone
    given = _receipts(bundle, vendor.keyring)
    replays = _replays(bundle, devices, given.values())
    # 6. every receipt: where and how much it confirms is what the batches say
    _check_receipts(given, replays)
    # 7. every token; and what is kept out of the sums, or let in, is a record that there is
    granted = _tokens(bundle, vendor.keyring)
    decided = _decisions(bundle)
    quarantined = _quarantined(decided["quarantined"], replays)
    stated = decided.get("dismissed", [])
    repeated = _repeated(replays, quarantined, stated)
    return Proven(
        vendor=vendor,
        invoice_number=manifest["invoice"],
        signed_at=manifest["iat"],
        replays=replays,
        quarantined=quarantined,
        released=_released(decided.get("released", []), quarantined, repeated),
        dismissed=_dismissed(stated, replays),
        repeated=repeated,
        tokens=granted,
        declared=_declared(decided.get("declared", [])),
    )


def _vendor(bundle: Bundle, trusted: Collection[str] | None) -> Vendor:
    names = sorted(bundle.under("keyrings"), key=lambda name: int(name[9:-5]))
    held: Keyring | None = None
    known: dict[str, KeyringKey] = {}
    fingerprint = ""
    pinned = False
    for name in names:
        with at(name):
            document = bundle.read(name, KEYRING_SHAPE)
            roots, threshold, issuer = _unverified_roots(document)
            first = held or Trust(issuer=issuer, roots=roots, threshold=threshold)
            trust = Trust(issuer=issuer, roots=first.roots, threshold=first.threshold)
            held = keyrings.follow(document, trust=trust, held=held)
            _, signers = envelopes.open_keyring(
                document, issuer=issuer, roots=held.roots, threshold=held.threshold
            )
            if name != f"keyrings/{held.version}.json":
                raise TrustError("version_conflict", f"version {held.version}")
        known.update(held.keys)
        pins = set(trusted or ())
        fingerprint = roots_fingerprint(held.roots, held.threshold)
        pinned = pinned or fingerprint in pins or len(signers & pins) >= held.threshold
    if held is None:
        raise Differs("keyrings", "there is none")
    if trusted is not None and not pinned:
        raise Differs("keyrings", f"not signed by the roots that were named; theirs is {fingerprint}")
    return Vendor(keyring=held._replace(keys=known), fingerprint=fingerprint, pinned=pinned)


def _unverified_roots(document: list[str]) -> tuple[tuple[str, ...], int, str]:
    """Which roots a keyring names, before anything of it is checked: only to compare with a pin."""
    payload = envelopes.unverified_parts(envelopes.KEYRING_DOCUMENT, document[0]).payload
    claims = from_bytes(payload, bytes_max=limits.KEYRING_BYTES_MAX)
    KEYRING(claims, "keyring")
    return tuple(claims["roots"]["keys"]), claims["roots"]["threshold"], claims["iss"]


def _check_parts(bundle: Bundle, named: list[dict[str, str]]) -> None:
    stated = {part["name"]: part["sha256"] for part in named}
    found = {part["name"]: part["sha256"] for part in listing(bundle.parts)}
    if len(stated) != len(named):
        raise Differs(MANIFEST, "it names a part twice")
    for name in sorted(stated.keys() | found.keys()):
        if name not in found:
            raise Differs(name, "the manifest names it, and it is missing")
        if name not in stated:
            raise Differs(name, "the manifest does not name it")
        if stated[name] != found[name]:
            raise Differs(name, "its bytes are not those that the manifest names")


def _devices(bundle: Bundle) -> dict[str, VerifyKey]:
    found = {}
    for name in bundle.under("activations"):
        with at(name):
            request = activation.open_activation(bundle.text(name))
        if name != f"activations/{request.device}.jws":
            raise Differs(name, f"it is the request of {request.device}")
        found[request.device] = request.sign_key
    return found


def _replays(bundle: Bundle, devices: dict[str, VerifyKey], given: Iterable[Receipt]) -> dict[str, Replay]:
    with at(ACCEPTANCES):
        stated = bundle.read(ACCEPTANCES, ACCEPTANCES_SHAPE)
    replays = {device: Replay(device) for device in devices}
    for receipt in given:
        if receipt.device in replays:
            replays[receipt.device].stand_on(receipt)
    names = bundle.under("batches")
    numbers = [int(match[1]) for match in map(_BATCH_NAME.match, names) if match]
    if numbers != [each["acceptance"] for each in stated] or len(numbers) != len(names):
        raise Differs(ACCEPTANCES, "its numbers are not those of the batches")
    for name, each in zip(names, stated, strict=True):
        key = devices.get(each["device"])
        if key is None:
            raise Differs(ACCEPTANCES, f"no activation request of {each['device']}")
        with at(name):
            text = bundle.text(name)
            _, batch = exchange.open_batch(text, partial(_own_key, key))
            replays[each["device"]].add(batch, acceptance=each["acceptance"], received_at=each["received_at"])
    return replays


def _own_key(key: VerifyKey, kid: str) -> VerifyKey:
    if kid != key.kid:
        raise TrustError("key_unknown", "another device signed it")
    return key


def _receipts(bundle: Bundle, keyring: Keyring) -> dict[str, Receipt]:
    found = {}
    for name in bundle.under("receipts"):
        with at(name):
            addressee = Addressee(issuer=keyring.issuer)
            found[name] = receipts.open_receipt(bundle.text(name), keyring=keyring, addressee=addressee)
    return found


def _check_receipts(given: Mapping[str, Receipt], replays: dict[str, Replay]) -> None:
    for name, receipt in given.items():
        position = receipt.position
        if name != f"receipts/{receipt.device}.{position.epoch}.{position.seq}.{position.head}.jws":
            raise Differs(name, "it confirms another position than its name says")
        replay = replays.get(receipt.device)
        totals = replay.totals_at(position) if replay else None
        if totals is None:
            raise Differs(name, "no batch reaches the position that it confirms")
        received_at = replay.received_at(position) if replay else None
        if received_at is not None and received_at > receipt.iat:
            raise Differs(ACCEPTANCES, f"{name}: it was received after it was confirmed")
        for meter in sorted(totals.keys() | receipt.totals.keys()):
            if totals.get(meter) != receipt.totals.get(meter):
                raise Differs(name, f"its total of {'/'.join(meter)} is not what the batches say")


def _tokens(bundle: Bundle, keyring: Keyring) -> tuple[Token, ...]:
    found = []
    for name in bundle.under("tokens"):
        with at(name):
            _, claims = envelopes.open_claims(
                envelopes.TOKEN,
                bundle.text(name),
                keyring=keyring,
                addressee=Addressee(issuer=keyring.issuer),
                shape=tokens.shape,
            )
        token = Token.from_claims(claims)
        if name != f"tokens/{token.jti}.jws":
            raise Differs(name, f"it is the token {token.jti}")
        found.append(token)
    return tuple(found)


def _decisions(bundle: Bundle) -> dict[str, Any]:
    with at(DECISIONS):
        decided: dict[str, Any] = bundle.read(DECISIONS, DECISIONS_SHAPE)
    return decided


def _quarantined(stated: list[dict[str, Any]], replays: dict[str, Replay]) -> dict[str, frozenset[Name]]:
    found: dict[str, set[Name]] = {}
    for each in stated:
        replay = replays.get(each["device"])
        if replay is None or replay.seq_of(each["epoch"], each["hash"]) != each["seq"]:
            raise Differs(DECISIONS, f"quarantined record {each['seq']}: there is no such record")
        found.setdefault(each["device"], set()).add((each["epoch"], each["hash"]))
    return {device: frozenset(names) for device, names in found.items()}


def _repeated(
    replays: dict[str, Replay], quarantined: dict[str, frozenset[Name]], dismissed: list[dict[str, Any]]
) -> dict[str, dict[Name, int]]:
    """What several branches of a ledger tell of, and how many units of it: nobody states it, it is worked out."""
    found: dict[str, dict[Name, int]] = {}
    for device, replay in replays.items():
        dismissals = [
            Dismissal(acceptance=each["acceptance"], names=_own_records(each, replay))
            for each in dismissed
            if each["device"] == device
        ]
        repeats = replay.repeats(quarantined.get(device, frozenset()), dismissals)
        found[device] = {name: each.units for name, each in repeats.items()}
    return found


def _released(
    stated: list[dict[str, Any]],
    quarantined: dict[str, frozenset[Name]],
    repeated: dict[str, dict[Name, int]],
) -> dict[str, dict[Name, int]]:
    """What a person let into the sums: only what the rule had set aside, or counts on another branch."""
    found: dict[str, dict[Name, int]] = {}
    for each in stated:
        name = (each["epoch"], each["hash"])
        device = each["device"]
        if name not in quarantined.get(device, frozenset()) and name not in repeated.get(device, {}):
            raise Differs(DECISIONS, f"released record {each['seq']}: it was not set aside")
        found.setdefault(device, {})[name] = each["since_run"]
    return found


def _dismissed(stated: list[dict[str, Any]], replays: dict[str, Replay]) -> dict[str, dict[Name, int]]:
    """What a person took out of the sums: a fork's branch, and of it what no other branch has."""
    found: dict[str, dict[Name, int]] = {}
    for each in stated:
        own = _own_records(each, replays.get(each["device"]))
        held = found.setdefault(each["device"], {})
        for name in own:
            held[name] = min(each["since_run"], held.get(name, each["since_run"]))
    return found


def _declared(stated: list[dict[str, Any]]) -> dict[str, tuple[Declared, ...]]:
    """What a person said of devices, in the order in which billing runs came to know it."""
    found: dict[str, list[Declared]] = {}
    for each in stated:
        own = found.setdefault(each["device"], [])
        if own and own[-1].since_run > each["since_run"]:
            raise Differs(DECISIONS, f"{each['device']}: what was declared is not in its order")
        own.append(Declared(state=each["state"], since_run=each["since_run"]))
    return {device: tuple(own) for device, own in found.items()}


def _own_records(dismissed: dict[str, Any], replay: Replay | None) -> frozenset[Name]:
    head = Position(epoch=dismissed["epoch"], seq=dismissed["seq"], head=dismissed["head"])
    own = replay.own_records(head, dismissed["acceptance"]) if replay else None
    if own is None:
        raise Differs(DECISIONS, f"dismissed branch {dismissed['head']}: there was no such branch of a fork")
    return own
