"""What all request bodies share: exact members, exact types, and refusals that never echo what was sent."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from meterkit import limits, shapes
from meterkit.errors import InputError

_PLACES_MAX = 4


class Body(BaseModel):
    """A request body: an unknown member, or a number written as text, is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def read(cls, value: Any) -> Self:
        """Read a JSON value as this body.

        Raises:
            InputError: `malformed_members`, naming the places, not what stood there.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as fault:
            raise InputError("malformed_members", _places(fault)) from None


def _places(fault: ValidationError) -> str:
    found = []
    for place in fault.errors(include_url=False, include_context=False, include_input=False)[:_PLACES_MAX]:
        unknown = place["type"] == "extra_forbidden"
        where = ".".join(map(str, place["loc"][:-1] if unknown else place["loc"])) or "body"
        found.append(f"{where}: an unknown member" if unknown else f"{where}: {place['msg']}")
    return "; ".join(found)


def shaped(shape: shapes.Shape) -> AfterValidator:
    """Let a core shape judge a member, so that the API and the formats agree on what is a name or an id."""

    def check(value: Any, place: ValidationInfo) -> Any:
        return shape(value, place.field_name or "body")

    return AfterValidator(check)


Name = Annotated[str, shaped(shapes.NAME)]
Text = Annotated[str, shaped(shapes.text())]
Seconds = Annotated[int, shaped(shapes.TIME)]
UnitsMax = Annotated[int, shaped(shapes.integer(1))]
Digest = Annotated[str, shaped(shapes.HASH)]
LicenseId = Annotated[str, shaped(shapes.LICENSE)]
CustomerId = Annotated[str, shaped(shapes.ident("cus"))]
Epoch = Annotated[str, shaped(shapes.EPOCH)]
PlanId = Annotated[str, shaped(shapes.ident("plan"))]
Digests = Annotated[
    list[Digest], shaped(shapes.listed(shapes.HASH, limits.MODEL_DIGESTS_MAX, least=1, unique=True))
]
