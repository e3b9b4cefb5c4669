"""Stripe's own client, and what its answers mean: the only home of the library, which is imported when it is used.

No text of Stripe's, or of its library, is handed on: only statuses and codes. The secret key is in none of them.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from licensing_server.settings import Stripe
from meterkit.errors import ServiceError

_TIMEOUT_S = 30
_RETRIES = 2  # the library's own, with backoff, under the same idempotency key
_PAGE = 100
_CODE = re.compile(r"[a-z0-9_]{1,64}\Z")
_CONFLICT, _LIMITED, _SERVER_ERROR = 409, 429, 500
_AUTHENTICATION = (401, 403)
_DIFFERS = "answer_differs"
_NAME = "meterkit_line"  # the member of an item's metadata that says which line it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one line. Where it `stops`, there is no use in sending others now."""

    state: str
    how: str | None = None
    stripe_id: str | None = None
    http_status: int | None = None
    error_code: str | None = None
    stops: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An item that Stripe has already."""

    stripe_id: str
    amount: int
    currency: str

    def answer(self, amount: int, currency: str, *, how: str = "found") -> Answer:
        """What became of the line that it was made for."""
        if (self.amount, self.currency) != (amount, currency):
            return Answer(state="refused", stripe_id=self.stripe_id, error_code=_DIFFERS)
        return Answer(state="delivered", how=how, stripe_id=self.stripe_id)


class Client:
    """One account at Stripe, or what stands in for it. Its repr shows nothing."""

    def __init__(self, settings: Stripe) -> None:
        try:
            import requests  # noqa: PLC0415 - comes with stripe
            import stripe  # noqa: PLC0415 - optional, and a second to import
        except ModuleNotFoundError:
            raise ServiceError("target_unavailable", "install meterkit[stripe]") from None
        stripe.enable_telemetry = False
        session = requests.Session()
        session.max_redirects = 0  # what is sent goes where it was sent, or nowhere
        self._stripe: Any = stripe
        self._client: Any = stripe.StripeClient(
            settings.secret_key,
            base_addresses={"api": settings.api_base} if settings.api_base else None,
            max_network_retries=_RETRIES,
            http_client=stripe.RequestsClient(timeout=_TIMEOUT_S, session=session),
        )

    def __repr__(self) -> str:
        return "Client()"

    def create(self, params: dict[str, Any], idempotency_key: str) -> Answer:
        """Make an invoice item; asked again with the same key and parameters, Stripe answers as before."""
        try:
            item = self._client.v1.invoice_items.create(
                params=params, options={"idempotency_key": idempotency_key}
            )
        except self._stripe.StripeError as fault:
            return self._failed(fault)
        read = _read(item)
        if read is None:
            return Answer(state="sending", error_code=_DIFFERS, stops=True)
        name, found = read
        if name != params["metadata"][_NAME]:
            return Answer(state="refused", http_status=item.last_response.code, error_code=_DIFFERS)
        replayed = str(item.last_response.headers.get("idempotent-replayed", "")).lower() == "true"
        answer = found.answer(params["amount"], params["currency"], how="replayed" if replayed else "made")
        return replace(answer, http_status=item.last_response.code)

    def find(self, stripe_customer: str, since: int) -> dict[str, Found] | Answer:
        """The items of a customer that carry a line's name, made since an instant, by that name."""
        asked = {"customer": stripe_customer, "created": {"gte": since}, "limit": _PAGE}
        found: dict[str, Found] = {}
        try:
            for item in self._client.v1.invoice_items.list(params=asked).auto_paging_iter():
                read = _read(item)
                if read is not None:
                    found[read[0]] = read[1]
        except self._stripe.StripeError as fault:
            return self._failed(fault)
        return found

    def _failed(self, fault: Any) -> Answer:
        """What a failure means: refused for sure, not even tried, or not known."""
        status = fault.http_status
        code = _error_code(fault)
        if isinstance(fault, self._stripe.RateLimitError):
            return Answer(state="waiting", http_status=status, error_code="rate_limit", stops=True)
        if status is None or status == _CONFLICT or not 400 <= status < _SERVER_ERROR:
            return Answer(state="sending", http_status=status, error_code=code, stops=True)
        return Answer(state="refused", http_status=status, error_code=code, stops=status in _AUTHENTICATION)


def _error_code(fault: Any) -> str:
    error = fault.error
    named = (fault.code, getattr(error, "code", None), getattr(error, "type", None))
    return next((each for each in named if isinstance(each, str) and _CODE.match(each)), "no_code")


def _read(item: Any) -> tuple[str, Found] | None:
    """An item's line's name, and what it says; None for what is no item, or not one of ours."""
    try:
        told = item.to_dict()
        name = (told["metadata"] or {}).get(_NAME)
        found = Found(stripe_id=str(told["id"]), amount=told["amount"], currency=told["currency"])
    except (AttributeError, KeyError, TypeError):
        return None
    return (name, found) if isinstance(name, str) else None
