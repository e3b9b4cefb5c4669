"""What is asked of billing."""

from typing import Annotated, Literal

from licensing_server.schemas import Body, CustomerId, PlanId, Seconds, shaped
from meterkit import shapes


class NewRun(Body):
    """A billing run: up to when (now, if not said), for whom (everyone), and whether only to look."""

    cut_off: Seconds | None = None
    customer: CustomerId | None = None
    dry_run: bool = False


class NewVersion(Body):
    """A version of a plan that a license is to be billed by, and from when on."""

    plan: PlanId
    plan_version: Annotated[int, shaped(shapes.integer(1, 1_000_000))] | None = None
    starts: Literal["next_period", "now"] = "next_period"
