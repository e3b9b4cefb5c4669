"""One small vendor, its keys and its device, the same in every run: what core tests and vectors are made of."""

import hashlib
import json
from typing import Any

from meterkit import activation, envelopes, exchange, ids, ledger, signing, usage
from meterkit.canonical import to_base64url, to_bytes
from meterkit.clocks import NS, Instant
from meterkit.envelopes import Addressee, Kind
from meterkit.errors import MeterkitError
from meterkit.keys import Keyring, SigningKey, Trust, device_id
from meterkit.ledger import Chain, Entry
from meterkit.positions import Position
from meterkit.revocations import Revocations

NOW = 1_800_000_000  # 2027-01-15T08:00:00Z, the start of a window
DAY_S = 86_400
ISSUER = "vendor.example"
PRODUCT = "camera"
BOOT = "6a1f36d2-9d3e-4a3c-8d2f-0c5a7a1b2c3d"
THRESHOLD = 2


def _random(name: str) -> bytes:
    return hashlib.sha256(f"meterkit test world: {name}".encode()).digest()


def ident(prefix: str, name: str = "first") -> str:
    """An id that stays the same from run to run."""
    return ids.make(prefix, _random(f"{prefix} {name}")[:16])


def key(name: str) -> SigningKey:
    """A signing key that stays the same from run to run."""
    return SigningKey(_random(f"key {name}"))


ROOT_NAMES = ("root 1", "root 2", "root 3")
ROOTS = tuple(key(name).verify_key.text for name in ROOT_NAMES)
NEW_ROOT_NAMES = ("root 3", "root 4", "root 5")
NEW_ROOTS = tuple(key(name).verify_key.text for name in NEW_ROOT_NAMES)
TRUST = Trust(issuer=ISSUER, roots=ROOTS, threshold=THRESHOLD)
DEVICE_KEY = key("device")
DEVICE = device_id(DEVICE_KEY.verify_key)
OTHER_DEVICE_KEY = key("other device")
OTHER_DEVICE = device_id(OTHER_DEVICE_KEY.verify_key)
SEAL_KEY = to_base64url(bytes([9]) + bytes(31))  # the base point of X25519: somebody's key, and a sound one
EPOCH = ident("ep")
LICENSE = ident("lic")
TOKEN = ident("tok")
CELL = ident("cel")
DIGEST = hashlib.sha256(b"a model").hexdigest()
CODE = activation.Code(id=ident("code"), secret=_random("code")[:16])


def flat(value: Any) -> bytes:
    """JSON as anyone writes it: in the order given, floats and all. For what canonical bytes cannot say."""
    return json.dumps(value, separators=(",", ":")).encode("utf-8")


def jws(header: Any, payload: Any, signer: SigningKey) -> str:
    """Sign any header and any payload, as no product code would: bytes as they are, values as flat JSON."""
    parts = [part if isinstance(part, bytes) else flat(part) for part in (header, payload)]
    signed = ".".join(map(to_base64url, parts))
    return f"{signed}.{to_base64url(signer.native.sign(signed.encode('ascii')))}"


def header_of(kind: Kind, signer: SigningKey, **changes: Any) -> dict[str, Any]:
    """The header that a kind needs, with changes; a change to None leaves the member out."""
    members = {"alg": "EdDSA", "kid": signer.kid, "typ": kind.typ, **changes}
    return {name: value for name, value in members.items() if value is not None}


def keyring_key(name: str, *purposes: str, **changes: Any) -> dict[str, Any]:
    """One entry of a keyring, good for a year around now."""
    public = key(name).verify_key
    return {
        "kid": public.kid,
        "key": public.text,
        "purposes": list(purposes),
        "not_before": NOW - 100 * DAY_S,
        "not_after": NOW + 265 * DAY_S,
        "distrusted_after": None,
        **changes,
    }


def keyring_claims(**changes: Any) -> dict[str, Any]:
    """The payload of a keyring: a key for each purpose, one that was retired, one that was compromised."""
    return {
        "v": 1,
        "iss": ISSUER,
        "iat": NOW - 100 * DAY_S,
        "version": 1,
        "expires": NOW + 265 * DAY_S,
        "roots": {"threshold": THRESHOLD, "keys": list(ROOTS)},
        "keys": [
            *(
                keyring_key(purpose, purpose)
                for purpose in ("token", "receipt", "revocations", "invoice", "package")
            ),
            keyring_key("retired", "token", not_after=NOW - 10 * DAY_S),
            keyring_key("compromised", "token", distrusted_after=NOW - 10 * DAY_S),
        ],
        **changes,
    }


def keyring_document(claims: Any = None, signers: tuple[str, ...] = ROOT_NAMES[:2]) -> list[str]:
    """A keyring document; claims may be bytes, to sign what is no keyring."""
    payload = claims if isinstance(claims, bytes) else to_bytes(claims or keyring_claims())
    return [signing.sign_payload(envelopes.KEYRING_DOCUMENT, payload, key(signer)) for signer in signers]


KEYRING = Keyring.from_claims(keyring_claims())
ADDRESSEE = Addressee(issuer=ISSUER, product=PRODUCT, device=DEVICE)
NOT_REVOKED = Revocations()


def model_claims(**changes: Any) -> dict[str, Any]:
    """A model's entry in a token: plain, counted by call, with a limit."""
    return {"name": "detector", "sha256": [DIGEST], "unit": "call", "axis": None, "limit": 1000, **changes}


def token_claims(**changes: Any) -> dict[str, Any]:
    """The payload of a token that is good now, with changes; a change to `...` leaves the member out."""
    members = {
        "v": 1,
        "iss": ISSUER,
        "aud": PRODUCT,
        "sub": DEVICE,
        "jti": TOKEN,
        "iat": NOW - DAY_S,
        "nbf": NOW - DAY_S,
        "exp": NOW + 29 * DAY_S,
        "serial": 7,
        "license": {"id": LICENSE, "ends": NOW + 365 * DAY_S},
        "grace_s": 7 * DAY_S,
        "anchor": {"epoch": EPOCH, "seq": 0, "head": "0" * 64},
        "time_floor": None,
        "models": [model_claims()],
        "policy": {"expiry": "deny", "limit": "deny", "clock": "deny"},
        "features": [],
        **changes,
    }
    return {name: value for name, value in members.items() if value is not ...}


def token_text(claims: Any = None, signer: str = "token", **header: Any) -> str:
    """A token as a server would sign it, or as it never would."""
    payload = token_claims() if claims is None else claims
    return jws(header_of(envelopes.TOKEN, key(signer), **header), payload, key(signer))


def instant(at_s: int = NOW, *, suspect: bool = False) -> Instant:
    """A moment, as the gate knows it."""
    return Instant(effective_ns=at_s * NS, boot_ns=500 * NS, boot=BOOT, suspect=suspect)


def usage_members(count_from: int, count_to: int, **changes: Any) -> dict[str, Any]:
    """What a usage record says, apart from its place."""
    return {
        "kind": "usage",
        "window": NOW // 900,
        "provisional": False,
        "license": LICENSE,
        "token": TOKEN,
        "model": "detector",
        "digest": DIGEST,
        "unit": "call",
        "units": count_to - count_from,
        "unsettled": 0,
        "flags": [],
        "cell": CELL,
        "from": count_from,
        "to": count_to,
        **changes,
    }


def token_members(serial: int = 7, license_id: str = LICENSE) -> dict[str, Any]:
    """What the record of an installed token says, apart from its place."""
    return usage.token_installed(
        jti=TOKEN, serial=serial, iat=NOW - DAY_S, license_id=license_id, anchor=Position(epoch=EPOCH)
    )


def genesis_members(epoch: str = EPOCH, device: str = DEVICE) -> dict[str, Any]:
    """What the first record of a ledger says, apart from its place."""
    return usage.genesis(epoch=epoch, device=device, previous=None, lost=None)


def story() -> list[dict[str, Any]]:
    """The members of a short ledger that has every kind of record in it."""
    return [
        genesis_members(),
        token_members(),
        usage_members(0, 12),
        usage_members(12, 40, flags=["grace"]),
        usage.clock_changed(from_s=NOW + 60, to_s=NOW + 1, reason="back"),
        usage_members(40, 41, unsettled=64, flags=["clock", "recovered"]),
        usage.recovery("cell_lost", CELL),
        usage_members(0, 3000, model="segmenter", unit="item", cell=ident("cel", "second")),
    ]


def chained(members: list[dict[str, Any]], start: Position | None = None) -> list[Entry]:
    """Append records one after another, a second apart."""
    position, entries = start or Position(epoch=EPOCH), []
    for place, each in enumerate(members):
        entries.append(ledger.append(position, each, time=NOW + place, boot=BOOT))
        position = ledger.after(position, entries[-1])
    return entries


def empty_chain() -> Chain:
    """What a server knows of a ledger before its first record."""
    return Chain(device=DEVICE, position=Position(epoch=EPOCH))


def batch_head(entries: list[Entry], **changes: Any) -> dict[str, Any]:
    """The first line of a batch that holds these entries."""
    return {
        "v": 1,
        "aud": PRODUCT,
        "license": LICENSE,
        "epoch": EPOCH,
        "from": entries[0].seq,
        "prev": entries[0].prev,
        "to": entries[-1].seq,
        "head": entries[-1].hash,
        "through": NOW,
        "made_at": NOW + 100,
        "has": exchange.Has(serial=7, keyring=1).to_claims(),
        **changes,
    }


def batch_text(head: Any, bodies: list[bytes], signer: SigningKey = DEVICE_KEY) -> str:
    """A batch signed by a device, its head as flat JSON or as given bytes."""
    first = head if isinstance(head, bytes) else to_bytes(head)
    return signing.sign_payload(envelopes.BATCH, b"\n".join((first, *bodies)), signer)


def receipt_claims(**changes: Any) -> dict[str, Any]:
    """The payload of a receipt for the whole story."""
    last = chained(story())[-1]
    return {
        "v": 1,
        "iss": ISSUER,
        "iat": NOW,
        "aud": PRODUCT,
        "sub": DEVICE,
        "position": {"epoch": EPOCH, "seq": last.seq, "head": last.hash},
        "totals": [
            {"model": "detector", "unit": "call", "units": 41, "unsettled": 64},
            {"model": "segmenter", "unit": "item", "units": 3000, "unsettled": 0},
        ],
        **changes,
    }


def revocations_claims(**changes: Any) -> dict[str, Any]:
    """The payload of a revocation list that names somebody else's token, license and device."""
    return {
        "v": 1,
        "iss": ISSUER,
        "iat": NOW,
        "version": 3,
        "tokens": [ident("tok", "stolen")],
        "licenses": [ident("lic", "unpaid")],
        "devices": [OTHER_DEVICE],
        "packages": [],
        **changes,
    }


def activation_claims(**changes: Any) -> dict[str, Any]:
    """The payload of an activation request."""
    return {
        "v": 1,
        "aud": PRODUCT,
        "code_id": CODE.id,
        "proof": activation.proof(CODE.secret, DEVICE),
        "sign_key": DEVICE_KEY.verify_key.text,
        "seal_key": SEAL_KEY,
        "position": {"epoch": EPOCH, "seq": 0, "head": "0" * 64},
        "license_hint": None,
        "capabilities": {
            "v": dict(exchange.READS),
            "sdk": "0.1.0",
            "runtime": "onnxruntime 1.24.1",
            "platform": "linux x86_64 cpython 3.11",
            "hints": [],
        },
        "made_at": NOW,
        "nonce": to_base64url(bytes(range(16))),
        **changes,
    }


def signed(kind: Kind, claims: Any, signer: str | SigningKey) -> str:
    """Sign claims as a kind, whatever they are."""
    signing_key = key(signer) if isinstance(signer, str) else signer
    return jws(header_of(kind, signing_key), claims, signing_key)


def outcome(act: Any, *args: Any, **named: Any) -> str:
    """`ok`, or the code of the refusal. Any other exception passes through, and fails the test."""
    try:
        act(*args, **named)
    except MeterkitError as refusal:
        return refusal.code
    return "ok"
