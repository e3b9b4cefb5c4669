"""A plan: what a customer pays for, in which currency, and how often (BILLING §2; FORMATS, "Plan")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from meterkit import limits, money, pricing, shapes
from meterkit.errors import InputError
from meterkit.licenses import Meter
from meterkit.pricing import Price
from meterkit.pricing.shape import AMOUNT, optional_members

INTERVALS = ("day", "week", "month", "year")
# The intervals whose periods make up whole periods of another: months of days, but not of weeks.
_MADE_OF = {
    "day": frozenset({"day"}),
    "week": frozenset({"day", "week"}),
    "month": frozenset({"day", "month"}),
    "year": frozenset({"day", "month", "year"}),
}
_DAYS_MAX = 3_660
_PERIODS_MAX = 3_660


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurring:
    """A charge that comes back each period, for the license or for each active device."""

    id: str
    interval: str
    per: str  # license | device
    due: str  # advance | arrears
    from_period: int  # so many whole periods are free first
    price: Price


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageCharge:
    """A charge for what one meter counts."""

    id: str
    interval: str
    meter: Meter
    price: Price


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """The least that the charges it names must come to, in its period."""

    id: str
    interval: str
    amount: Fraction
    over: tuple[str, ...]


Charge = Recurring | UsageCharge | Commitment


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """What the contract says of usage accepted after the close: `true_up`, `carry_over`, `waive`."""

    policy: str
    days: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """When a period closes: so many days after its end, or by coverage, with or without an estimate."""

    policy: str  # grace | coverage | estimate
    days: int
    percent: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One version of a plan, as the contract states it. `body` is its canonical JSON value."""

    currency: str
    interval: str
    interim: bool
    late: Late
    close: Close
    charges: tuple[Charge, ...]
    body: Mapping[str, Any]

    @property
    def intervals(self) -> frozenset[str]:
        """The intervals whose periods this plan bills."""
        return frozenset({self.interval, *(charge.interval for charge in self.charges)})


_DAYS = shapes.integer(0, _DAYS_MAX)
_INTERVAL = shapes.one_of(*INTERVALS)
_MAY: dict[str, shapes.Shape] = {"interval": _INTERVAL}
_PERCENT = shapes.integer(1, 100)
_LATE = shapes.Choice(
    "policy",
    true_up=shapes.Members(policy=shapes.one_of("true_up")),
    carry_over=shapes.Members(policy=shapes.one_of("carry_over")),
    waive=shapes.Members(policy=shapes.one_of("waive"), days=_DAYS),
)
_CLOSE = shapes.Choice(
    "policy",
    grace=shapes.Members(policy=shapes.one_of("grace"), days=_DAYS),
    coverage=shapes.Members(policy=shapes.one_of("coverage"), percent=_PERCENT, days=_DAYS),
    estimate=shapes.Members(policy=shapes.one_of("estimate"), percent=_PERCENT, days=_DAYS),
)


def _price(value: Any, where: str) -> Any:
    pricing.read(value, where)
    return value


_CHARGES = {
    "recurring": optional_members(
        {
            "id": shapes.NAME,
            "type": shapes.one_of("recurring"),
            "per": shapes.one_of("license", "device"),
            "due": shapes.one_of("advance", "arrears"),
            "price": _price,
        },
        {**_MAY, "from_period": shapes.integer(0, _PERIODS_MAX)},
    ),
    "usage": optional_members(
        {
            "id": shapes.NAME,
            "type": shapes.one_of("usage"),
            "meter": shapes.Members(model=shapes.NAME, unit=shapes.METER_UNIT),
            "price": _price,
        },
        _MAY,
    ),
    "commitment": optional_members(
        {
            "id": shapes.NAME,
            "type": shapes.one_of("commitment"),
            "amount": AMOUNT,
            "over": shapes.listed(shapes.NAME, limits.CHARGES_MAX, least=1, unique=True),
        },
        _MAY,
    ),
}


def _charge_shape(value: Any, where: str) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _CHARGES:
        raise shapes.refuse(where, f"type must be one of {', '.join(_CHARGES)}")
    return _CHARGES[kind](value, where)


def _currency(value: Any, where: str) -> Any:
    if not isinstance(value, str) or value not in money.CURRENCIES:
        raise shapes.refuse(where, "must be an ISO 4217 code")
    return value


_PLAN = optional_members(
    {
        "v": shapes.VERSION_1,
        "currency": _currency,
        "interval": _INTERVAL,
        "charges": shapes.listed(_charge_shape, limits.CHARGES_MAX, least=1),
    },
    {"interim": shapes.boolean, "late": _LATE, "close": _CLOSE},
)


def read(value: Any) -> Plan:
    """Read a plan from its JSON. What is left out takes the contract's default (BILLING §4).

    Raises:
        InputError: `malformed_price` for a price that cannot be charged, otherwise `malformed_plan`.
    """
    try:
        _PLAN(value, "plan")
        plan = _from_claims(value)
        _check(plan)
    except InputError as error:
        if error.code == "malformed_price":
            raise
        raise InputError("malformed_plan", error.detail) from None
    return plan


def _from_claims(value: dict[str, Any]) -> Plan:
    late = value.get("late", {"policy": "true_up"})
    close = value.get("close", {"policy": "grace", "days": 0})
    charges = [_with_defaults(charge, value["interval"]) for charge in value["charges"]]
    return Plan(
        currency=value["currency"],
        interval=value["interval"],
        interim=value.get("interim", False),
        late=Late(**late),
        close=Close(**close),
        charges=tuple(_charge(charge) for charge in charges),
        body={"interim": False, **value, "late": late, "close": close, "charges": charges},
    )


def _with_defaults(value: dict[str, Any], interval: str) -> dict[str, Any]:
    defaults = {"interval": interval, **({"from_period": 0} if value["type"] == "recurring" else {})}
    return {**defaults, **value}


def _charge(value: dict[str, Any]) -> Charge:
    common = {"id": value["id"], "interval": value["interval"]}
    match value["type"]:
        case "recurring":
            price = pricing.read(value["price"])
            rest = {name: value[name] for name in ("per", "due", "from_period")}
            return Recurring(**common, **rest, price=price)
        case "usage":
            return UsageCharge(
                **common,
                meter=(value["meter"]["model"], value["meter"]["unit"]),
                price=pricing.read(value["price"]),
            )
        case _:
            amount = money.read_decimal(value["amount"])
            return Commitment(**common, amount=amount, over=tuple(value["over"]))


def _check(plan: Plan) -> None:
    """Judge what no single member can tell."""
    ids = [charge.id for charge in plan.charges]
    if len(set(ids)) != len(ids):
        raise shapes.refuse("plan.charges", "two charges have one id")
    meters = [charge.meter for charge in plan.charges if isinstance(charge, UsageCharge)]
    if len(set(meters)) != len(meters):
        raise shapes.refuse("plan.charges", "one meter is charged twice")
    by_id = {charge.id: charge for charge in plan.charges}
    for place, charge in enumerate(plan.charges):
        where = f"plan.charges[{place}]"
        if isinstance(charge, Recurring) and charge.per == "device" and charge.due == "advance":
            raise shapes.refuse(where, "devices are counted in arrears")
        if isinstance(charge, Commitment):
            _check_commitment(charge, by_id, where)


def _check_commitment(commitment: Commitment, by_id: dict[str, Charge], where: str) -> None:
    for name in commitment.over:
        named = by_id.get(name)
        if named is None or isinstance(named, Commitment):
            raise shapes.refuse(where, f"over names no recurring or usage charge: {name}")
        if named.interval not in _MADE_OF[commitment.interval]:
            raise shapes.refuse(where, f"a {commitment.interval} is not made of whole {named.interval}s")
