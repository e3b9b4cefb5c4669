"""Every refusal as an RFC 9457 problem, with the same codes as on the device. Nothing of the request is echoed."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from licensing_server.problem_documents import to_document
from meterkit.canonical import to_bytes
from meterkit.errors import MeterkitError, TransportError, refusal
from meterkit.exchange import PROBLEM_MEDIA_TYPE

_BUSY_RETRY_S = 5
_BY_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "media_type_unsupported",
    401: "unauthenticated",
    403: "forbidden",
}

log = logging.getLogger("licensing_server")


def respond(error: MeterkitError) -> Response:
    """Answer with a refusal."""
    headers: dict[str, str] = {}
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        wait_s = error.retry_after_s if isinstance(error, TransportError) else None
        headers["Retry-After"] = str(wait_s or _BUSY_RETRY_S)
    body = to_bytes(to_document(error))
    return Response(body, status_code=error.status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every error of an application be answered as a problem."""
    app.add_middleware(RefuseNul)
    app.add_exception_handler(MeterkitError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


class RefuseNul:
    """Answers what names a NUL in its URL: PostgreSQL has no such text, and nothing here is named so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass every other request on."""
        app = self._app
        if scope["type"] == "http" and "\x00" in scope["path"]:
            app = respond(refusal("not_found"))
        elif scope["type"] == "http" and b"%00" in scope["query_string"]:
            app = respond(refusal("malformed_members", "query"))
        await app(scope, receive, send)


def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, MeterkitError):
        return respond(refusal("internal_error"))
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s", error)
    return respond(error)


def _invalid(_: Request, error: Exception) -> Response:
    """Name the place, never what stood there."""
    places = error.errors() if isinstance(error, RequestValidationError) else []
    where = ", ".join(".".join(str(part) for part in place["loc"][:2]) for place in places[:4])
    return respond(refusal("malformed_members", where))


def _http(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = _BY_STATUS.get(status, "internal_error")
    if code == "internal_error" and HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        code = "malformed_members"
    response = respond(refusal(code))
    if isinstance(error, HTTPException) and error.headers and "allow" in {name.lower() for name in error.headers}:
        response.headers["Allow"] = error.headers.get("Allow", "")
    return response


def _unexpected(_: Request, error: Exception) -> Response:
    log.error("unexpected %s", type(error).__name__)
    return respond(refusal("internal_error"))
