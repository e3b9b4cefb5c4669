"""What crosses between a device and its server, as files or over HTTP: batches out, one reply back.

What the parts of a reply say is in their own files. The meaning is DESIGN §6; the bytes are FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from meterkit import envelopes, limits, shapes
from meterkit.activation import KIND_VERSIONS
from meterkit.canonical import from_bytes, to_bytes
from meterkit.errors import InputError, LedgerError, TrustError
from meterkit.keys import VerifyKey
from meterkit.positions import ZERO, Position

BATCH_MEDIA_TYPE = "application/x-mk-batch"
ACTIVATION_MEDIA_TYPE = "application/x-mk-activation"
REPLY_MEDIA_TYPE = "application/json"
PROBLEM_MEDIA_TYPE = "application/problem+json"
READS = {"token": 1, "receipt": 1, "revocations": 1, "keyring": 1, "reply": 1}

_HAS = shapes.Members(
    v=KIND_VERSIONS,
    serial=shapes.integer(0),
    keyring=shapes.integer(0),
    revocations=shapes.integer(0),
    receipt=shapes.optional(shapes.JWS),
)
_BATCH_HEAD = shapes.Members(
    v=shapes.VERSION_1,
    aud=shapes.NAME,
    license=shapes.optional(shapes.LICENSE),
    epoch=shapes.EPOCH,
    **{"from": shapes.integer(1)},
    prev=shapes.HASH,
    to=shapes.SEQ,
    head=shapes.HASH,
    through=shapes.TIME,
    made_at=shapes.TIME,
    has=_HAS,
)
_REPLY = shapes.Members(
    v=shapes.VERSION_1,
    keyrings=shapes.listed(shapes.listed(shapes.JWS, limits.ROOTS_MAX, least=1), limits.REPLY_KEYRINGS_MAX),
    revocations=shapes.optional(shapes.JWS),
    receipts=shapes.listed(shapes.JWS, limits.EXCHANGE_BATCHES_MAX),
    token=shapes.optional(shapes.JWS),
    keys=shapes.listed(shapes.Members(package=shapes.NAME, sealed=shapes.text(limits.SEALED_KEY_BYTES_MAX)), 64),
    advice=shapes.Members(next_sync_s=shapes.integer(0, 366 * 86_400), models=shapes.listed(shapes.NAME, 64)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Has:
    """What a device holds already, so that a reply can bring what it lacks."""

    serial: int = 0
    keyring: int = 0
    revocations: int = 0
    receipt: str | None = None

    def to_claims(self) -> dict[str, Any]:
        """Write it as it stands in a batch."""
        return {
            "v": dict(READS),
            "serial": self.serial,
            "keyring": self.keyring,
            "revocations": self.revocations,
            "receipt": self.receipt,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A run of records of one epoch and one license, continuing the branch whose head is `prev`.

    It may hold no records: then `seq_to` is `seq_from` − 1 and `head` is `prev`. No unit used before
    `through` is still to come on this branch.
    """

    product: str
    license_id: str | None
    epoch: str
    seq_from: int
    prev: str
    seq_to: int
    head: str
    through: int
    made_at: int
    has: Has
    bodies: tuple[bytes, ...]

    @property
    def start(self) -> Position:
        """The position that the batch continues."""
        return Position(epoch=self.epoch, seq=self.seq_from - 1, head=self.prev)

    @property
    def end(self) -> Position:
        """The position that the batch reaches."""
        return Position(epoch=self.epoch, seq=self.seq_to, head=self.head)

    def to_payload(self) -> bytes:
        """Write the payload that the device signs: a head line, then one record a line."""
        if len(self.bodies) > limits.BATCH_RECORDS_MAX:
            raise InputError("too_many", f"at most {limits.BATCH_RECORDS_MAX} records a batch")
        head = {
            "v": 1,
            "aud": self.product,
            "license": self.license_id,
            "epoch": self.epoch,
            "from": self.seq_from,
            "prev": self.prev,
            "to": self.seq_to,
            "head": self.head,
            "through": self.through,
            "made_at": self.made_at,
            "has": self.has.to_claims(),
        }
        _BATCH_HEAD(head, "batch")
        payload = b"\n".join((to_bytes(head), *self.bodies))
        if len(payload) > limits.BATCH_BYTES_MAX:
            raise InputError("too_large", f"batch: at most {limits.BATCH_BYTES_MAX} bytes")
        return payload


def open_batch(text: str, find: Callable[[str], VerifyKey]) -> tuple[str, Batch]:
    """Open a batch: steps 1 to 5. Returns the signer's kid and what it says.

    `find` gives the key of the device whose kid it is. The records are not followed here: that needs the
    chain that they continue (`meterkit.ledger.verify_chain`).
    """
    kid, payload = envelopes.open_payload(envelopes.BATCH, text, find)
    return kid, read_batch(payload)


def read_batch(payload: bytes) -> Batch:
    """Read a batch's payload; it does not check who signed it."""
    if len(payload) > limits.BATCH_BYTES_MAX:
        raise InputError("too_large", f"batch: at most {limits.BATCH_BYTES_MAX} bytes")
    first, *bodies = payload.split(b"\n", limits.BATCH_RECORDS_MAX + 1)
    if len(bodies) > limits.BATCH_RECORDS_MAX:
        raise InputError("too_many", f"at most {limits.BATCH_RECORDS_MAX} records a batch")
    head = from_bytes(first, bytes_max=limits.RECORD_BYTES_MAX + limits.RECEIPT_BYTES_MAX)
    _BATCH_HEAD(head, "batch")
    if head["to"] != head["from"] + len(bodies) - 1 or (not bodies and head["head"] != head["prev"]):
        raise InputError("malformed_members", "batch: its records are not those it announces")
    if (head["from"] == 1) != (head["prev"] == ZERO):
        raise InputError("malformed_members", "batch: the first record, and only it, continues nothing")
    has = head["has"]
    return Batch(
        product=head["aud"],
        license_id=head["license"],
        epoch=head["epoch"],
        seq_from=head["from"],
        prev=head["prev"],
        seq_to=head["to"],
        head=head["head"],
        through=head["through"],
        made_at=head["made_at"],
        has=Has(
            serial=has["serial"],
            keyring=has["keyring"],
            revocations=has["revocations"],
            receipt=has["receipt"],
        ),
        bodies=tuple(bodies),
    )


def split_batches(data: bytes, *, batches_max: int) -> list[str]:
    """Split a body or a `.mkbatch` file into its batches, one a line; judges count and encoding only."""
    lines = data.removesuffix(b"\n").split(b"\n", batches_max)
    if lines == [b""]:
        raise InputError("malformed_envelope", "no batch in it")
    if len(lines) > batches_max:
        raise InputError("too_many", f"at most {batches_max} batches at once")
    try:
        return [line.decode("ascii") for line in lines]
    except UnicodeDecodeError:
        raise InputError("not_text", "batch") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server hands back. Each part stands alone: one refused undoes no other."""

    keyrings: tuple[tuple[str, ...], ...] = ()
    revocations: str | None = None
    receipts: tuple[str, ...] = ()
    token: str | None = None
    next_sync_s: int = limits.SYNC_DEFAULT_S
    models: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Write the reply as it crosses, over HTTP and as a `.mkreply` file alike."""
        claims = {
            "v": 1,
            "keyrings": [list(document) for document in self.keyrings],
            "revocations": self.revocations,
            "receipts": list(self.receipts),
            "token": self.token,
            "keys": [],
            "advice": {"next_sync_s": self.next_sync_s, "models": list(self.models)},
        }
        _REPLY(claims, "reply")
        return to_bytes(claims)


def read_reply(data: bytes) -> Reply:
    """Read a reply's frame. Its parts are signed each, and judged when they are taken."""
    claims = from_bytes(data, bytes_max=limits.REPLY_BYTES_MAX)
    _REPLY(claims, "reply")
    return Reply(
        keyrings=tuple(tuple(document) for document in claims["keyrings"]),
        revocations=claims["revocations"],
        receipts=tuple(claims["receipts"]),
        token=claims["token"],
        next_sync_s=claims["advice"]["next_sync_s"],
        models=tuple(claims["advice"]["models"]),
    )


def check_batch_for(batch: Batch, *, product: str, licenses: Sequence[str | None]) -> None:
    """Return if a batch is for this product and names the license that its own records give it."""
    if batch.product != product:
        raise TrustError("audience_wrong")
    if any(license_id != batch.license_id for license_id in licenses):
        raise LedgerError("record_out_of_place", "a batch holds the records of one license")
