"""What is asked of licenses."""

from typing import Annotated, Literal

from pydantic import Field

from licensing_server.licenses.service import Terms
from licensing_server.schemas import Body, CustomerId, Name, PlanId, Seconds, UnitsMax, shaped
from meterkit import limits, shapes
from meterkit.licenses import Policy

Answer = Literal["deny", "flag"]


class GrantedModel(Body):
    """What is granted for one model: the most in one token, and a pool for all devices; null is no limit."""

    name: Name
    token_units_max: UnitsMax | None = None
    pool_units: UnitsMax | None = None
    pool_per: Literal["license", "period"] = "license"


class PolicyBody(Body):
    """What happens past an end, past a limit, and under a clock set back."""

    expiry: Answer = "deny"
    limit: Answer = "deny"
    clock: Answer = "deny"


class NewLicense(Body):
    """A license to be granted."""

    customer: CustomerId
    plan: PlanId
    plan_version: Annotated[int, shaped(shapes.integer(1, 1_000_000))] | None = None
    product: Name
    models: Annotated[list[GrantedModel], Field(min_length=1, max_length=limits.TOKEN_MODELS_MAX)]
    devices_max: Annotated[int, shaped(shapes.integer(1, 10_000_000))] = 1
    token_life_s: Annotated[int, shaped(shapes.integer(limits.TOKEN_LIFE_MIN_S, limits.TOKEN_LIFE_MAX_S))] = (
        limits.TOKEN_LIFE_S
    )
    grace_s: Annotated[int, shaped(shapes.integer(0, limits.GRACE_MAX_S))] = limits.GRACE_S
    policy: PolicyBody = PolicyBody()
    fork_policy: Literal["flag", "hold", "suspend"] = "flag"
    features: Annotated[list[Name], shaped(shapes.listed(shapes.NAME, limits.FEATURES_MAX, unique=True))] = Field(
        default_factory=list
    )
    starts_at: Seconds | None = None
    ends_at: Seconds | None = None
    anchor_at: Seconds | None = None

    def to_terms(self) -> Terms:
        """Hand it to the service."""
        return Terms(
            customer=self.customer,
            plan=self.plan,
            plan_version=self.plan_version,
            product=self.product,
            models=tuple(model.model_dump() for model in self.models),
            devices_max=self.devices_max,
            token_life_s=self.token_life_s,
            grace_s=self.grace_s,
            policy=Policy(**self.policy.model_dump()),
            fork_policy=self.fork_policy,
            features=tuple(self.features),
            starts_at=self.starts_at,
            ends_at=self.ends_at,
            anchor_at=self.anchor_at,
        )


class NewCode(Body):
    """An activation code to be made, and until when it can be used."""

    expires_at: Seconds | None = None
