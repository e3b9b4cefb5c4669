"""The records of a ledger: what a device says that happened (FORMATS, "Ledger records")."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from meterkit import limits, shapes
from meterkit.canonical import from_canonical
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.tuples import NamedTuple

FLAGS = ("over_limit", "grace", "expired", "clock", "cell_lost", "recovered")
CLOCK_REASONS = ("back", "forward", "unset", "mended")

CELL = shapes.ident("cel")
_COMMON = {"v": shapes.VERSION_1, "seq": shapes.integer(1), "time": shapes.TIME, "boot": shapes.BOOT}
_USAGE = shapes.Members(
    **_COMMON,
    kind=shapes.one_of("usage"),
    window=shapes.integer(0, limits.CELL_WINDOW_MAX),
    provisional=shapes.boolean,
    license=shapes.LICENSE,
    token=shapes.TOKEN,
    model=shapes.NAME,
    digest=shapes.HASH,
    unit=shapes.METER_UNIT,
    units=shapes.UNITS,
    unsettled=shapes.UNITS,
    flags=shapes.listed(shapes.one_of(*FLAGS), len(FLAGS), unique=True),
    cell=CELL,
    **{"from": shapes.UNITS, "to": shapes.UNITS},
)
_RECORDS = shapes.Choice(
    "kind",
    genesis=shapes.Members(
        **_COMMON,
        kind=shapes.one_of("genesis"),
        epoch=shapes.EPOCH,
        device=shapes.DEVICE,
        previous=shapes.optional(shapes.POSITION),
        lost=shapes.optional(shapes.Members(**{"from": shapes.integer(1), "to": shapes.integer(1)})),
    ),
    token=shapes.Members(
        **_COMMON,
        kind=shapes.one_of("token"),
        jti=shapes.TOKEN,
        serial=shapes.integer(1),
        iat=shapes.TIME,
        license=shapes.LICENSE,
        anchor=shapes.POSITION,
    ),
    usage=_USAGE,
    clock=shapes.Members(
        **_COMMON,
        kind=shapes.one_of("clock"),
        from_s=shapes.TIME,
        to_s=shapes.TIME,
        reason=shapes.one_of(*CLOCK_REASONS),
    ),
    recovery=shapes.Members(
        **_COMMON, kind=shapes.one_of("recovery"), code=shapes.NAME, cell=shapes.optional(CELL)
    ),
)


def record_shape(value: Any, where: str) -> Any:
    """A ledger record of any kind. A usage record's units are what its cell's counts prove."""
    _RECORDS(value, where)
    if value["kind"] == "usage":
        proven = value["to"] - value["from"]
        if proven < 0 or (value["units"] != proven and "cell_lost" not in value["flags"]):
            raise shapes.refuse(where, "its units are not the difference of its cell's counts")
    elif value["kind"] == "genesis" and value["lost"] and value["lost"]["from"] > value["lost"]["to"]:
        raise shapes.refuse(where, "what is lost ends before it begins")
    return value


def read_record(body: bytes, where: str) -> dict[str, Any]:
    """Read a record's canonical bytes and judge its form.

    Nearly every record is one of usage, as a device writes it. A pattern that none but sound ones match reads
    those in a tenth of the time; all others take the long way to the same end.

    Raises:
        InputError: `too_large`, `not_text`, `malformed_json`, `not_canonical`, `malformed_members`.
    """
    found = _usual_usage()(body)
    claims = _usual_claims(found.groups()) if found and len(body) <= limits.RECORD_BYTES_MAX else None
    if claims is None:
        claims = from_canonical(body, bytes_max=limits.RECORD_BYTES_MAX)
        record_shape(claims, where)
    return claims


@cache
def _usual_usage() -> Any:
    number, ident = rb"(0|[1-9][0-9]{0,14})", rb"_[a-z2-7]{26}"
    members = {
        b"boot": rb'"([0-9a-f-]{36})"',
        b"cell": rb'"(cel' + ident + rb')"',
        b"digest": rb'"([0-9a-f]{64})"',
        b"flags": rb"\[((?:" + b"|".join(b'"%s"' % flag.encode() for flag in FLAGS) + rb")?)\]",
        b"from": number,
        b"kind": rb'"usage"',
        b"license": rb'"(lic' + ident + rb')"',
        b"model": rb'"([A-Za-z0-9][A-Za-z0-9._-]{0,%d})"' % (limits.NAME_CHARS_MAX - 1),
        b"provisional": rb"(true|false)",
        b"seq": number,
        b"time": number,
        b"to": number,
        b"token": rb'"(tok' + ident + rb')"',
        b"unit": rb'"(call|item)"',
        b"units": number,
        b"unsettled": number,
        b"v": rb"1",
        b"window": number,
    }
    inner = b",".join(b'"%s":%s' % each for each in members.items())
    return re.compile(rb"\{" + inner + rb"\}").fullmatch


def _usual_claims(found: tuple[bytes, ...]) -> dict[str, Any] | None:
    """What a usage record says that the pattern has matched; None where a number is not one it may say."""
    numbers = [int(found[place]) for place in (4, 8, 9, 10, 13, 14, 15)]
    count_from, seq, time, count_to, units, unsettled, window = numbers
    proven = count_to - count_from
    if proven < 0 or (units != proven and found[3] != b'"cell_lost"') or not seq:
        return None
    if time > limits.TIME_MAX_S or window > limits.CELL_WINDOW_MAX:
        return None
    return {
        "boot": found[0].decode(),
        "cell": found[1].decode(),
        "digest": found[2].decode(),
        "flags": [found[3][1:-1].decode()] if found[3] else [],
        "from": count_from,
        "kind": "usage",
        "license": found[5].decode(),
        "model": found[6].decode(),
        "provisional": found[7] == b"true",
        "seq": seq,
        "time": time,
        "to": count_to,
        "token": found[11].decode(),
        "unit": found[12].decode(),
        "units": units,
        "unsettled": unsettled,
        "v": 1,
        "window": window,
    }


class UsageRecord(NamedTuple):
    """Units of one meter, admitted in one 900-second window, under one token.

    `units` are what the cell's counts prove and are billed; `unsettled` were covered by a lease when power
    was lost: they use up the limit, are reported, and are not billed.
    """

    seq: int
    time: int
    boot: str
    window: int
    provisional: bool
    license_id: str
    token: str
    model: str
    digest: str
    unit: str
    units: int
    unsettled: int
    flags: tuple[str, ...]
    cell: str
    count_from: int
    count_to: int

    @property
    def meter(self) -> Meter:
        """The (model, unit) that was used."""
        return self.model, self.unit

    @property
    def start_s(self) -> int:
        """The instant at which the record's window starts, seconds UTC."""
        return self.window * limits.WINDOW_S

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> UsageRecord:
        """Read a usage record that `record_shape` has judged."""
        return cls(
            claims["seq"],
            claims["time"],
            claims["boot"],
            claims["window"],
            claims["provisional"],
            claims["license"],
            claims["token"],
            claims["model"],
            claims["digest"],
            claims["unit"],
            claims["units"],
            claims["unsettled"],
            tuple(claims["flags"]),
            claims["cell"],
            claims["from"],
            claims["to"],
        )

    def to_claims(self) -> dict[str, Any]:
        """Write the record as it is hashed."""
        return {
            "v": 1,
            "kind": "usage",
            "seq": self.seq,
            "time": self.time,
            "boot": self.boot,
            "window": self.window,
            "provisional": self.provisional,
            "license": self.license_id,
            "token": self.token,
            "model": self.model,
            "digest": self.digest,
            "unit": self.unit,
            "units": self.units,
            "unsettled": self.unsettled,
            "flags": list(self.flags),
            "cell": self.cell,
            "from": self.count_from,
            "to": self.count_to,
        }


def genesis(*, epoch: str, device: str, previous: Position | None, lost: tuple[int, int] | None) -> dict[str, Any]:
    """The members of an epoch's first record; it names the position before it, and what is lost of it."""
    return {
        "kind": "genesis",
        "epoch": epoch,
        "device": device,
        "previous": previous.to_claims() if previous else None,
        "lost": {"from": lost[0], "to": lost[1]} if lost else None,
    }


def token_installed(*, jti: str, serial: int, iat: int, license_id: str, anchor: Position) -> dict[str, Any]:
    """The members of the record that says which token counts from here on."""
    return {
        "kind": "token",
        "jti": jti,
        "serial": serial,
        "iat": iat,
        "license": license_id,
        "anchor": anchor.to_claims(),
    }


def recovery(code: str, cell: str | None = None) -> dict[str, Any]:
    """The members of the record that says that something was found broken, and mended."""
    return {"kind": "recovery", "code": code, "cell": cell}


def clock_changed(*, from_s: int, to_s: int, reason: str) -> dict[str, Any]:
    """The members of the record that says what the wall clock did."""
    return {"kind": "clock", "from_s": from_s, "to_s": to_s, "reason": reason}
