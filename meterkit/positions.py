"""A position: how far one life (epoch) of a ledger goes (FORMATS, "Encodings")."""

from __future__ import annotations

from typing import Any, Self

from meterkit.tuples import NamedTuple

ZERO = "0" * 64


class Position(NamedTuple):
    """An epoch, the sequence number of its last record, and that record's hash. Seq 0 has an all-zero head."""

    epoch: str
    seq: int = 0
    head: str = ZERO

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Self:
        """Read a position that `shapes.POSITION` has judged."""
        return cls(claims["epoch"], claims["seq"], claims["head"])

    def to_claims(self) -> dict[str, Any]:
        """Write the position as it crosses."""
        return {"epoch": self.epoch, "seq": self.seq, "head": self.head}
