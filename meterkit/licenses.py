"""What a license grants: which models, metered how, up to which limits, for how long, under which policy."""

from __future__ import annotations

from typing import Any, Self

from meterkit import limits, shapes
from meterkit.tuples import NamedTuple

Meter = tuple[str, str]  # (model, unit): what a price and a limit belong to

_AXIS = shapes.optional(shapes.Members(input=shapes.text(), dim=shapes.integer(0, 31)))
_LIMIT = shapes.optional(shapes.UNITS)
_DIGESTS = shapes.listed(shapes.HASH, limits.MODEL_DIGESTS_MAX, least=1, unique=True)
_PLAIN = shapes.Members(name=shapes.NAME, sha256=_DIGESTS, unit=shapes.METER_UNIT, axis=_AXIS, limit=_LIMIT)
_SEALED = shapes.Members(
    name=shapes.NAME,
    versions=shapes.matching("[0-9A-Za-z.,<>=!~*+ -]{1,128}", "a version specifier"),
    unit=shapes.METER_UNIT,
    axis=_AXIS,
    limit=_LIMIT,
)


def model_shape(value: Any, where: str) -> Any:
    """A model's entry in a token: plain by digests, or sealed by versions; an axis exactly for `item`."""
    sealed = isinstance(value, dict) and "versions" in value
    (_SEALED if sealed else _PLAIN)(value, where)
    if (value["unit"] == "item") != (value["axis"] is not None):
        raise shapes.refuse(where, "unit item, and only item, needs an axis")
    return value


ANSWER = shapes.one_of("deny", "flag")
POLICY = shapes.Members(expiry=ANSWER, limit=ANSWER, clock=ANSWER)


class Axis(NamedTuple):
    """Where the items of one run are counted: an input's name and its dimension."""

    input: str
    dim: int


class ModelTerms(NamedTuple):
    """What a token grants for one model. `limit` counts units after the token's anchor; None is no limit."""

    name: str
    unit: str
    axis: Axis | None
    limit: int | None
    sha256: tuple[str, ...] = ()
    versions: str | None = None

    @property
    def meter(self) -> Meter:
        """The (model, unit) that these terms are about."""
        return self.name, self.unit

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Read an entry that `model_shape` has judged."""
        axis = claims["axis"]
        return cls(
            name=claims["name"],
            unit=claims["unit"],
            axis=Axis(input=axis["input"], dim=axis["dim"]) if axis else None,
            limit=claims["limit"],
            sha256=tuple(claims.get("sha256", ())),
            versions=claims.get("versions"),
        )

    def to_claims(self) -> dict[str, Any]:
        """Write the entry as it stands in a token."""
        axis = {"input": self.axis.input, "dim": self.axis.dim} if self.axis else None
        known_by = {"sha256": list(self.sha256)} if self.versions is None else {"versions": self.versions}
        return {"name": self.name, "unit": self.unit, "axis": axis, "limit": self.limit, **known_by}


class Policy(NamedTuple):
    """What happens past an end, past a limit, and under a clock set back: `deny`, or run and `flag`."""

    expiry: str = "deny"
    limit: str = "deny"
    clock: str = "deny"

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Read a policy that `POLICY` has judged."""
        return cls(claims["expiry"], claims["limit"], claims["clock"])

    def to_claims(self) -> dict[str, Any]:
        """Write the policy as it stands in a token."""
        return {"expiry": self.expiry, "limit": self.limit, "clock": self.clock}


def token_limit(token_units_max: int | None, pool_left: int | None) -> int | None:
    """How many units one token may allow: the smaller of the license's own maximum and what is left of its
    pool (DESIGN §4); None where neither sets a limit.
    """
    bounds = [bound for bound in (token_units_max, pool_left) if bound is not None]
    return max(0, min(bounds)) if bounds else None
