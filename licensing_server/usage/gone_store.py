"""What receipts stand for whose records are gone (DESIGN §6): told by exceptions, until they come after all."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from licensing_server.usage import rollbacks, store
from licensing_server.usage.decision_store import append, exception_decisions
from licensing_server.usage.store import exceptions
from meterkit.ledger import Total
from meterkit.licenses import Meter
from meterkit.positions import Position
from meterkit.receipts import read_own, totals_from_claims

CAME = "came"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """One such exception: from which record to its receipt's, when that was signed, and how much it stands for."""

    exception: str
    device: str
    license_id: str
    first: int
    position: Position
    signed_at: int
    units: dict[Meter, Total]

    def rows(self, sign: int = 1) -> list[dict[str, Any]]:
        """What it counts, written as records are: to be added up, or with the sign −1 taken away."""
        return [
            {
                "license": self.license_id,
                "model": model,
                "unit": unit,
                "units": sign * total.units,
                "unsettled": sign * total.unsettled,
                "service_at": self.signed_at,
            }
            for (model, unit), total in self.units.items()
        ]


def read(
    connection: sa.Connection, *, devices: Collection[str] | None = None, license_id: str | None = None
) -> Iterator[Gone]:
    """Read what still only receipts stand for, of some devices, or for one license."""
    table, decided = exceptions.c, exception_decisions.c
    came = sa.exists().where(decided.exception == table.id, decided.outcome == CAME)
    chosen = sa.select(exceptions).where(table.kind == rollbacks.GONE, sa.not_(came))
    if devices is not None:
        chosen = chosen.where(table.device.in_(list(devices)))
    if license_id is not None:
        chosen = chosen.where(table.license == license_id)
    for row in connection.execute(chosen):
        receipt = read_own(row.evidence["receipt"])
        yield Gone(
            exception=row.id,
            device=row.device,
            license_id=row.license,
            first=row.evidence["first"],
            position=receipt.position,
            signed_at=receipt.iat,
            units=totals_from_claims(row.evidence["units"]),
        )


def take_back(connection: sa.Connection, gone: Gone, *, who: str, now: int) -> None:
    """Note that the records came after all: what the receipt stood for is in no sum from now on."""
    closed = {"resolution": CAME, "outcome": CAME, "resolved_by": who, "resolved_at": now}
    states = ("open", "acknowledged", "resolved")
    store.update_exception(connection, gone.exception, states, {"state": "resolved", **closed})
    append(connection, gone.exception, {"who": who, "action": "resolve", "outcome": CAME, "note": CAME, "at": now})
