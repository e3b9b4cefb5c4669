"""What is asked of the catalog. What a plan and its prices must look like, `meterkit.plans` says."""

from typing import Annotated, Any, Literal

from licensing_server.schemas import Body, Digest, Digests, Name, Text, shaped
from meterkit import shapes


class AxisBody(Body):
    """Where the items of one run are counted: an input's name and its dimension."""

    input: Text
    dim: Annotated[int, shaped(shapes.integer(0, 31))]


class NewProduct(Body):
    """A new product."""

    name: Name


class NewModel(Body):
    """A new model of a product: its files' digests, and how its use is counted."""

    name: Name
    unit: Literal["call", "item"] = "call"
    axis: AxisBody | None = None
    sha256: Digests


class NewDigest(Body):
    """One more file that is this model."""

    sha256: Digest


class NewPlan(Body):
    """A new plan: its name, and its first version as FORMATS says."""

    name: Name
    body: dict[str, Any]


class NewPlanVersion(Body):
    """A plan's next version."""

    body: dict[str, Any]
