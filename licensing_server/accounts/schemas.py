"""What is asked of accounts."""

from typing import Annotated

from licensing_server.schemas import Body, CustomerId, Seconds, shaped
from meterkit import shapes
from meterkit.evidence import PERCENT

Amount = Annotated[str, shaped(shapes.text(32))]  # decimal text, judged with its currency


class NewTaxRate(Body):
    """A tax that counts from an instant on: for one customer, or for all that have a tax of this name."""

    name: Annotated[str, shaped(shapes.text(64))]
    percent: Annotated[str, shaped(PERCENT)]
    starts_at: Seconds
    customer: CustomerId | None = None


class NewCredit(Body):
    """Money paid ahead, and the time whose usage it pays for."""

    currency: Annotated[str, shaped(shapes.text(3))]
    amount: Amount
    starts_at: Seconds | None = None
    expires_at: Seconds | None = None
    purchased_at: Seconds | None = None
    priority: Annotated[int, shaped(shapes.integer(0, 1_000_000))] = 0
