"""What is asked of billing."""

from typing import Annotated, Literal

from licensing_server.accounts.schemas import Amount
from licensing_server.schemas import Body, CustomerId, PlanId, Seconds, Text, shaped
from meterkit import shapes

Place = Annotated[int, shaped(shapes.integer(1, 1_000_000))]


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


class NewCorrection(Body):
    """A version of a plan that a license should have been billed by, from when on, and why."""

    plan: PlanId
    plan_version: Annotated[int, shaped(shapes.integer(1, 1_000_000))] | None = None
    starts_at: Seconds
    note: Text


class NewPayment(Body):
    """Money that came in for an invoice: all that is open, unless an amount is said."""

    reference: Text
    amount: Amount | None = None
    paid_at: Seconds | None = None


class NewVoid(Body):
    """Why a document is taken back."""

    note: Text


class NewRefund(Body):
    """Money of a customer's balance that was paid back by hand."""

    currency: Annotated[str, shaped(shapes.text(3))]
    amount: Amount
    reference: Text


class NewDispute(Body):
    """A line, counted from 1, that the customer does not accept, and why."""

    line: Place
    note: Text


class NewConcession(Body):
    """An amount that is let off on a line, and why."""

    line: Place
    amount: Amount
    note: Text


class Resolution(Body):
    """How a dispute ends; an amount only where one is conceded."""

    outcome: Literal["stands", "excluded", "conceded"]
    note: Text
    amount: Amount | None = None
