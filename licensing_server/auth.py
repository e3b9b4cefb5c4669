"""Who may ask what: API keys with scopes. A route says its scope; without a valid key the answer is constant."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.params import Depends as DependsParam

from licensing_server.api_keys import service as api_keys
from licensing_server.bodies import ServerDep
from meterkit.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Allowed:
    """The dependency of a route: lets in who holds its scope.

    Anything wrong with the key itself (missing, malformed, unknown, expired, revoked) is one and the same
    `unauthenticated`; a good key without the scope is `forbidden`.
    """

    scope: str

    def __call__(self, request: Request, server: ServerDep) -> None:
        """Judge the request's key, and remember whose request it is."""
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        caller = api_keys.identify(server, text.strip() if kind.lower() == "bearer" else "")
        if not caller.may(self.scope):
            raise ServiceError("forbidden", f"it needs {self.scope}")
        request.state.caller = caller


def allowed(scope: str) -> DependsParam:
    """Protect a route with a scope; stands first among its dependencies, so that no body is read before it."""
    if scope not in api_keys.SCOPES:
        raise ValueError(f"no such scope: {scope}")
    made: DependsParam = Depends(Allowed(scope))
    return made


async def _who(request: Request) -> str:
    who: str = request.state.caller.id
    return who


WhoDep = Annotated[str, Depends(_who)]  # whose decision it is, once `allowed` has let the request in
