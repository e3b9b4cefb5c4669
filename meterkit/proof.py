"""What an evidence bundle proves by signatures and chains, before anything is calculated (steps 1 to 7).

Every step names the part at which it failed. Nothing here trusts the server's word where a device's own
signature says more.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from meterkit import activation, envelopes, exchange, keyrings, limits, receipts, tokens
from meterkit.attribution import Record, TokenSpan
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
    quarantined: dict[str, frozenset[tuple[str, str]]]
    tokens: tuple[Token, ...]

    def records(self, acceptance_max: int) -> list[Record]:
        """The usage records accepted up to a number."""
        return [
            record
            for device, replay in self.replays.items()
            for record in replay.records(acceptance_max, self.quarantined.get(device, frozenset()))
        ]

    def spans(self) -> list[TokenSpan]:
        """When the tokens were issued and valid."""
        return [
            TokenSpan(
                license_id=token.license_id, device=token.device, iat=token.iat, nbf=token.nbf, exp=token.exp
            )
            for token in self.tokens
        ]


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
    # 5. every batch: the device's signature, its chain from genesis
    replays = _replays(bundle, devices)
    # 6. every receipt: where and how much it confirms is what the batches say
    _check_receipts(bundle, vendor.keyring, replays)
    # 7. every token; and what is kept out of the sums is a record that there is
    granted = _tokens(bundle, vendor.keyring)
    return Proven(
        vendor=vendor,
        invoice_number=manifest["invoice"],
        signed_at=manifest["iat"],
        replays=replays,
        quarantined=_quarantined(bundle, replays),
        tokens=granted,
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


def _replays(bundle: Bundle, devices: dict[str, VerifyKey]) -> dict[str, Replay]:
    with at(ACCEPTANCES):
        stated = bundle.read(ACCEPTANCES, ACCEPTANCES_SHAPE)
    replays = {device: Replay(device) for device in devices}
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


def _check_receipts(bundle: Bundle, keyring: Keyring, replays: dict[str, Replay]) -> None:
    for name in bundle.under("receipts"):
        with at(name):
            addressee = Addressee(issuer=keyring.issuer)
            receipt = receipts.open_receipt(bundle.text(name), keyring=keyring, addressee=addressee)
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


def _quarantined(bundle: Bundle, replays: dict[str, Replay]) -> dict[str, frozenset[tuple[str, str]]]:
    with at(DECISIONS):
        decided = bundle.read(DECISIONS, DECISIONS_SHAPE)["quarantined"]
    found: dict[str, set[tuple[str, str]]] = {}
    for each in decided:
        replay = replays.get(each["device"])
        if replay is None or replay.seq_of(each["epoch"], each["hash"]) != each["seq"]:
            raise Differs(DECISIONS, f"quarantined record {each['seq']}: there is no such record")
        found.setdefault(each["device"], set()).add((each["epoch"], each["hash"]))
    return {device: frozenset(names) for device, names in found.items()}
