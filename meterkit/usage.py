"""The records of a ledger: what a device says that happened (FORMATS, "Ledger records")."""

from typing import Any, NamedTuple

from meterkit import limits, shapes
from meterkit.licenses import Meter
from meterkit.positions import Position

FLAGS = ("over_limit", "grace", "expired", "clock", "cell_lost", "recovered")
CLOCK_REASONS = ("back", "forward", "unset", "mended")

_CELL = shapes.ident("cel")
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
    cell=_CELL,
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
        **_COMMON, kind=shapes.one_of("recovery"), code=shapes.NAME, cell=shapes.optional(_CELL)
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
    def from_claims(cls, claims: dict[str, Any]) -> "UsageRecord":
        """Read a usage record that `record_shape` has judged."""
        renamed = {"license": "license_id", "from": "count_from", "to": "count_to"}
        values = {renamed.get(name, name): value for name, value in claims.items() if name not in ("v", "kind")}
        return cls(**{**values, "flags": tuple(claims["flags"])})

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
