"""The server's word on how far a ledger is accepted, with what it has counted of it (FORMATS, "Receipt")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meterkit import envelopes, limits, shapes
from meterkit.canonical import from_bytes
from meterkit.envelopes import Addressee
from meterkit.errors import LedgerError
from meterkit.keys import Keyring
from meterkit.ledger import Total
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.tuples import NamedTuple

_TOTAL = shapes.Members(model=shapes.NAME, unit=shapes.METER_UNIT, units=shapes.UNITS, unsettled=shapes.UNITS)
_RECEIPT = shapes.Members(
    v=shapes.VERSION_1,
    iss=shapes.text(),
    iat=shapes.SIGNED_TIME,
    aud=shapes.NAME,
    sub=shapes.DEVICE,
    position=shapes.POSITION,
    totals=shapes.listed(_TOTAL, limits.METERS_MAX),
)


def receipt_shape(value: Any, where: str) -> Any:
    """A receipt's payload: each meter stands once in its totals."""
    _RECEIPT(value, where)
    if len(totals_from_claims(value["totals"])) != len(value["totals"]):
        raise shapes.refuse(where, "a meter stands twice")
    return value


class Receipt(NamedTuple):
    """The server's word that a branch is accepted up to a position, with the totals since its genesis."""

    issuer: str
    product: str
    device: str
    iat: int
    position: Position
    totals: Mapping[Meter, Total]

    def to_claims(self) -> dict[str, Any]:
        """Write the payload to be signed."""
        claims = {
            "v": 1,
            "iss": self.issuer,
            "iat": self.iat,
            "aud": self.product,
            "sub": self.device,
            "position": self.position.to_claims(),
            "totals": totals_to_claims(self.totals),
        }
        receipt_shape(claims, "receipt")
        return claims


def totals_to_claims(totals: Mapping[Meter, Total]) -> list[dict[str, Any]]:
    """Write totals in their one order: by model, then unit."""
    return [
        {"model": model, "unit": unit, "units": total.units, "unsettled": total.unsettled}
        for (model, unit), total in sorted(totals.items())
    ]


def totals_from_claims(claims: list[dict[str, Any]]) -> dict[Meter, Total]:
    """Read totals that a shape has judged."""
    return {
        (each["model"], each["unit"]): Total(units=each["units"], unsettled=each["unsettled"]) for each in claims
    }


def open_receipt(text: str, *, keyring: Keyring, addressee: Addressee) -> Receipt:
    """Open a receipt: steps 1 to 6. Whether its position is in a ledger is `covers`'s question."""
    _, claims = envelopes.open_claims(
        envelopes.RECEIPT, text, keyring=keyring, addressee=addressee, shape=receipt_shape
    )
    return _from_claims(claims)


def read_own(text: str) -> Receipt:
    """Read a receipt whose signature was checked, or made, before; it checks none."""
    payload = envelopes.unverified_parts(envelopes.RECEIPT, text).payload
    return _from_claims(receipt_shape(from_bytes(payload, bytes_max=limits.RECEIPT_BYTES_MAX), "receipt"))


def _from_claims(claims: Mapping[str, Any]) -> Receipt:
    return Receipt(
        issuer=claims["iss"],
        product=claims["aud"],
        device=claims["sub"],
        iat=claims["iat"],
        position=Position.from_claims(claims["position"]),
        totals=totals_from_claims(claims["totals"]),
    )


def check_covers(position: Position, epoch: str, hash_at: str | None) -> None:
    """Return if a position lies in a ledger, whose hash at that seq is given; else `receipt_foreign`."""
    if position.epoch != epoch or hash_at != position.head:
        raise LedgerError("receipt_foreign", f"seq {position.seq}")
