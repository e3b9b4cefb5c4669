"""May this run, now? A pure decision over a token's terms, what was used, and the time (DESIGN §4)."""

from __future__ import annotations

from meterkit.clocks import Instant
from meterkit.errors import DenialError
from meterkit.tokens import Token, standing
from meterkit.tuples import NamedTuple


class Allowed(NamedTuple):
    """It may run. `left_units` is what the limit still allows (None: no limit); `flags` go on the record."""

    state: str
    left_units: int | None
    flags: tuple[str, ...] = ()


class Denied(NamedTuple):
    """It may not, for this one reason."""

    code: str
    detail: str = ""

    def error(self) -> DenialError:
        """The exception that the gate raises for this decision."""
        return DenialError(self.code, self.detail)


Decision = Allowed | Denied


class Used(NamedTuple):
    """What counts against a meter's limit: units recorded after the anchor, and units leased out.

    `anchored` is False where the token's anchor is not in this ledger: then nothing is left of any limit.
    """

    units: int
    anchored: bool = True


def decide(token: Token | None, model: str, used: Used, want_units: int, now: Instant) -> Decision:
    """Decide whether `want_units` more of a model may be admitted now: all of them, or none.

    Nothing is used up by asking. Where several reasons hold, the one listed first in `errors` is named.
    """
    if token is None:
        return Denied(code="not_activated")
    judged = standing(token, now)
    if judged.denial is not None:
        return Denied(code=judged.denial)
    terms = token.terms(model)
    if terms is None:
        return Denied(code="model_not_licensed", detail=model)
    if terms.limit is None:
        return Allowed(state=judged.state, left_units=None, flags=judged.flags)
    left_units = max(0, terms.limit - used.units) if used.anchored else 0
    if want_units <= left_units:
        return Allowed(state=judged.state, left_units=left_units, flags=judged.flags)
    if token.policy.limit == "flag":
        return Allowed(state=judged.state, left_units=None, flags=("over_limit", *judged.flags))
    if not used.anchored:
        return Denied(code="ledger_unanchored")
    asked = f"{want_units} more units of {model}, {left_units} of {terms.limit} left"
    return Denied(code="limit_reached", detail=asked)
