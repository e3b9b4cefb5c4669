"""A license for one device ⇄ signed text. `verify` is the procedure of DESIGN §3, in its nine steps.

Signing is `meterkit.signing.sign(envelopes.TOKEN, token.to_claims(), key)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meterkit import envelopes, limits, shapes
from meterkit.clocks import Instant
from meterkit.envelopes import Addressee
from meterkit.errors import DenialError, TrustError
from meterkit.keys import Keyring
from meterkit.licenses import POLICY, ModelTerms, Policy, model_shape
from meterkit.positions import Position
from meterkit.revocations import Revocations
from meterkit.tuples import NamedTuple

_MEMBERS = shapes.Members(
    v=shapes.VERSION_1,
    iss=shapes.text(),
    aud=shapes.NAME,
    sub=shapes.DEVICE,
    jti=shapes.TOKEN,
    iat=shapes.SIGNED_TIME,
    nbf=shapes.TIME,
    exp=shapes.TIME,
    serial=shapes.integer(1),
    license=shapes.Members(id=shapes.LICENSE, ends=shapes.optional(shapes.TIME)),
    grace_s=shapes.integer(0, limits.GRACE_MAX_S),
    anchor=shapes.POSITION,
    time_floor=shapes.optional(shapes.SIGNED_TIME),
    models=shapes.listed(model_shape, limits.TOKEN_MODELS_MAX, least=1),
    policy=POLICY,
    features=shapes.listed(shapes.NAME, limits.FEATURES_MAX, unique=True),
)


def shape(claims: Any, where: str) -> Any:
    """What a token's payload must look like, and how its instants must lie to each other."""
    _MEMBERS(claims, where)
    names = [model["name"] for model in claims["models"]]
    if len(set(names)) != len(names):
        raise shapes.refuse(where, "a model stands twice")
    digests = [digest for model in claims["models"] for digest in model.get("sha256", ())]
    if len(set(digests)) != len(digests):
        raise shapes.refuse(where, "a digest stands under two models: its meter would be the caller's choice")
    if not claims["nbf"] <= claims["exp"] or not claims["iat"] < claims["exp"]:
        raise shapes.refuse(where, "it ends before it starts")
    if claims["exp"] - claims["nbf"] > limits.TOKEN_LIFE_MAX_S:
        raise shapes.refuse(where, f"it lasts longer than {limits.TOKEN_LIFE_MAX_S} s")
    ends = claims["license"]["ends"]
    if ends is not None and claims["exp"] + claims["grace_s"] > ends:
        raise shapes.refuse(where, "it outlasts its license")
    return claims


class Token(NamedTuple):
    """What a device may do, from when to when. A value; that it is genuine is what `verify` says."""

    issuer: str
    product: str
    device: str
    jti: str
    iat: int
    nbf: int
    exp: int
    serial: int
    license_id: str
    license_ends: int | None
    grace_s: int
    anchor: Position
    time_floor: int | None
    models: tuple[ModelTerms, ...]
    policy: Policy
    features: tuple[str, ...] = ()

    @classmethod
    def from_claims(cls, claims: dict[str, Any]) -> Token:
        """Read a payload that `shape` has judged."""
        return cls(
            issuer=claims["iss"],
            product=claims["aud"],
            device=claims["sub"],
            jti=claims["jti"],
            iat=claims["iat"],
            nbf=claims["nbf"],
            exp=claims["exp"],
            serial=claims["serial"],
            license_id=claims["license"]["id"],
            license_ends=claims["license"]["ends"],
            grace_s=claims["grace_s"],
            anchor=Position.from_claims(claims["anchor"]),
            time_floor=claims["time_floor"],
            models=tuple(map(ModelTerms.from_claims, claims["models"])),
            policy=Policy.from_claims(claims["policy"]),
            features=tuple(claims["features"]),
        )

    def to_claims(self) -> dict[str, Any]:
        """Write the payload to be signed; raises `malformed_members` if no device would take it."""
        claims = {
            "v": 1,
            "iss": self.issuer,
            "aud": self.product,
            "sub": self.device,
            "jti": self.jti,
            "iat": self.iat,
            "nbf": self.nbf,
            "exp": self.exp,
            "serial": self.serial,
            "license": {"id": self.license_id, "ends": self.license_ends},
            "grace_s": self.grace_s,
            "anchor": self.anchor.to_claims(),
            "time_floor": self.time_floor,
            "models": [terms.to_claims() for terms in self.models],
            "policy": self.policy.to_claims(),
            "features": list(self.features),
        }
        shape(claims, "token")
        return claims

    def terms(self, model: str) -> ModelTerms | None:
        """The terms for one model, or None if the license does not cover it."""
        return next((terms for terms in self.models if terms.name == model), None)

    @property
    def renew_s(self) -> int:
        """The instant from which a new token is due: when a fifth of the life is left."""
        return self.exp - (self.exp - self.nbf) * limits.RENEW_PERCENT // 100

    def edges(self) -> Iterator[int]:
        """The instants at which time alone changes what is allowed."""
        yield from (self.nbf, self.exp, self.exp + self.grace_s)


class Genuine(NamedTuple):
    """A token that passed steps 1 to 7, with the key that signed it: it may be installed."""

    token: Token
    kid: str
    text: str


class Standing(NamedTuple):
    """What the clock says of a token: its state, the flags that a record made now would carry, and the code
    for which it denies, if it does.

    `state` is `ok`, `renew_due`, `grace` or `denied`.
    """

    state: str
    flags: tuple[str, ...]
    denial: str | None


def open_genuine(
    text: str,
    *,
    keyring: Keyring,
    addressee: Addressee,
    revocations: Revocations,
    serial_min: int,
) -> Genuine:
    """Ask steps 1 to 7, as installing does: no token is refused for what only a clock says.

    Raises:
        InputError, TrustError: with the code of the first step that fails.
    """
    # 1–6: shape, header, key, signature, payload, for whom (meterkit.envelopes)
    kid, claims = envelopes.open_claims(envelopes.TOKEN, text, keyring=keyring, addressee=addressee, shape=shape)
    genuine = Genuine(token=Token.from_claims(claims), kid=kid, text=text)
    # 7. not revoked, and the serial not below the highest seen
    check_current(genuine.token, revocations=revocations, serial_min=serial_min)
    return genuine


def check_current(token: Token, *, revocations: Revocations, serial_min: int) -> None:
    """Ask step 7: raises `token_revoked` or `serial_rollback`."""
    revocations.check(jti=token.jti, license_id=token.license_id, device=token.device)
    if token.serial < serial_min:
        raise TrustError("serial_rollback", f"serial {token.serial} after {serial_min}")


def standing(token: Token, now: Instant) -> Standing:
    """Ask steps 8 and 9 as a value: what the clock says of a genuine token now.

    The end is exclusive: at `exp` the grace has begun, at `exp + grace_s` it has ended.
    """
    flags: list[str] = []
    # 8. clock not rolled back (fails only if policy.clock is deny)
    if now.suspect:
        if token.policy.clock == "deny":
            return Standing(state="denied", flags=(), denial="clock_rolled_back")
        flags.append("clock")
    # 9. window: nbf, exp, grace
    at_s = now.effective_s
    if at_s < token.nbf:
        return Standing(state="denied", flags=(), denial="token_not_yet_valid")
    if at_s < token.exp:
        state = "renew_due" if at_s >= token.renew_s else "ok"
        return Standing(state=state, flags=tuple(flags), denial=None)
    if at_s < token.exp + token.grace_s:
        return Standing(state="grace", flags=("grace", *flags), denial=None)
    if token.policy.expiry == "deny":
        return Standing(state="denied", flags=(), denial="token_expired")
    return Standing(state="grace", flags=("expired", *flags), denial=None)


def verify(
    text: str,
    *,
    keyring: Keyring,
    addressee: Addressee,
    revocations: Revocations,
    serial_min: int,
    now: Instant,
) -> Token:
    """Ask all nine steps of DESIGN §3, in their order; the first that fails names the code.

    It does not ask for limits, nor whether the anchor is in a ledger: `entitlements.decide` does.

    Raises:
        InputError, TrustError: steps 1 to 7.
        DenialError: steps 8 and 9.
    """
    genuine = open_genuine(
        text, keyring=keyring, addressee=addressee, revocations=revocations, serial_min=serial_min
    )
    judged = standing(genuine.token, now)
    if judged.denial is not None:
        raise DenialError(judged.denial)
    return genuine.token
