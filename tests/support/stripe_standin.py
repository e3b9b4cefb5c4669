"""What stands in for Stripe: a real HTTP server that keeps the rules that Stripe documents for invoice items.

An idempotency key's first answer is kept, refusals and faults of its endpoint too, and given again for the same
parameters; other parameters under it are an error. What never reached the endpoint (429, 503, a cut line) is not.
"""

import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk_test_a_secret_nobody_may_see"
THREE_DECIMALS = {"bhd", "jod", "kwd", "omr", "tnd"}


def error(kind, **members):
    return {"error": {"type": kind, "message": f"About {KEY[:12]}: words that nobody should store", **members}}


class StripeStandIn:
    """`faults` are what happens to the next requests that make something; then all is well."""

    def __init__(self) -> None:
        self.customers = {"cus_A"}
        self.items: list[dict] = []
        self.keys: dict[str, tuple[dict, int, dict]] = {}
        self.requests: list[tuple[str, str, dict, dict]] = []
        self.faults: list = []
        self.list_faults: list[int] = []
        self.now = 1_769_900_000
        self.page = 2
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def forget_keys(self) -> None:
        """A day has passed."""
        self.keys.clear()

    @property
    def made(self) -> list[tuple[str, int]]:
        return sorted((item["metadata"]["meterkit_place"], item["amount"]) for item in self.items)

    def posts(self) -> list[tuple[str, str, dict, dict]]:
        return [request for request in self.requests if request[0] == "POST"]

    # -- answering

    def answer(self, method, path, headers, params):
        """Gives a status, a body and headers; None where the line is cut without an answer."""
        with self._lock:
            self.requests.append((method, path, headers, params))
            if headers.get("authorization") != f"Bearer {KEY}":
                return 401, error("invalid_request_error"), {}
            if (method, path) == ("GET", "/v1/invoiceitems"):
                if self.list_faults:
                    return self.list_faults.pop(0), error("api_error"), {}
                return 200, self._list(params), {}
            if (method, path) != ("POST", "/v1/invoiceitems"):
                return 404, error("invalid_request_error"), {}
            return self._create(headers["idempotency-key"], params)

    def _create(self, key, params):
        fault = self.faults.pop(0) if self.faults else None
        if fault == "cut":
            return None
        if fault in (429, 409, 503):
            return fault, error("api_error", code="rate_limit" if fault == 429 else "lock_timeout"), {}
        if fault == 502 and key in self.keys:
            return 502, error("api_error"), {}
        if key in self.keys:
            known, status, body = self.keys[key]
            if known != params:
                return 400, error("idempotency_error"), {}
            return status, body, {"Idempotent-Replayed": "true", "Original-Request": "req_1"}
        status, body = (500, error("api_error")) if fault == 500 else self._execute(params)
        self.keys[key] = (params, status, body)
        if fault == "cut after":
            return None
        if fault == 502:  # made, and then a fault that is told
            return 502, error("api_error"), {}
        return status, body, {}

    def _execute(self, params):
        if params.get("customer") not in self.customers:
            return 400, error("invalid_request_error", code="resource_missing", param="customer")
        amount, currency = int(params["amount"]), params["currency"]
        if not re.fullmatch("[a-z]{3}", currency) or (currency in THREE_DECIMALS and amount % 10):
            return 400, error("invalid_request_error", code="parameter_invalid_integer", param="amount")
        if int(params["period[end]"]) < int(params["period[start]"]):
            return 400, error("invalid_request_error", param="period")
        item = {
            "id": f"ii_{len(self.items) + 1}",
            "object": "invoiceitem",
            "created": self.now,
            "customer": params["customer"],
            "amount": amount,
            "currency": currency,
            "description": params["description"],
            "discountable": params["discountable"] == "true",
            "metadata": {name[9:-1]: value for name, value in params.items() if name.startswith("metadata[")},
        }
        self.items.append(item)
        return 200, item

    def _list(self, params):
        """The newest first, in small pages."""
        since = int(params.get("created[gte]", 0))
        found = [item for item in reversed(self.items) if item["customer"] == params["customer"]]
        found = [item for item in found if item["created"] >= since]
        if "starting_after" in params:
            ids = [item["id"] for item in found]
            found = found[ids.index(params["starting_after"]) + 1 :]
        data = found[: self.page]
        more = len(found) > len(data)
        return {"object": "list", "url": "/v1/invoiceitems", "has_more": more, "data": data}


def _handler(standin):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            text = self.rfile.read(int(self.headers.get("content-length", 0))).decode() or parts.query
            params = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = standin.answer(self.command, parts.path, headers, params)
            if answer is None:
                self.close_connection = True
                return
            status, body, more = answer
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Request-Id": "req_1", **more}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815 - the name is the library's

        def log_message(self, *_args) -> None:
            """Say nothing."""

    return Handler
