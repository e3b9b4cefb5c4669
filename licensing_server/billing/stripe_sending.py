"""Sending an invoice's rated lines to Stripe, as invoice items: each once, whatever breaks on the way.

What is about to be sent is stored before it is sent, and what became of it right after. Stripe forgets idempotency
keys after a day; so before a line is sent again, Stripe is asked whether it has it: the line's name is in its
metadata.
"""

from dataclasses import replace

from licensing_server import targets
from licensing_server.audit_log import service as audit_log
from licensing_server.billing import rated_lines, service, stripe_store
from licensing_server.billing.rated_lines import Item
from licensing_server.billing.stripe_client import Answer, Client
from licensing_server.billing.stripe_store import Sent
from licensing_server.database import Connection, read, write
from licensing_server.pages import Document
from licensing_server.server import Server
from licensing_server.settings import Stripe
from meterkit import shapes
from meterkit.errors import InputError, ServiceError

TARGET = "stripe"
_CLOCKS_APART_S = 86_400  # how far Stripe's clock may be from this one, at most
_CUSTOMER = shapes.text()
_SERVER_ERROR = 500


def send(
    server: Server,
    invoice_id: str,
    settings: Stripe,
    *,
    target: str = TARGET,
    stripe_customer: str | None = None,
    who: str = audit_log.COMMAND,
) -> Document:
    """Send what is not delivered yet of a finalized invoice; gives how each line stands.

    Lines without an amount are not sent. It stops where Stripe cannot be reached, asks to be called later, or does
    not know the key; what it was asked for and refused is tried again the next time.

    Raises:
        ServiceError: `not_found`; `state_conflict` for a draft, or a customer who is another one at Stripe;
            `target_conflict`; `currency_wrong`; `target_unavailable`. Nothing is sent then.
        InputError: `malformed_members` for a customer of whom it is not known who it is at Stripe.
    """
    client = Client(settings)
    with write(server) as connection:
        items = _finalized(connection, invoice_id)
        targets.claim(server, connection, target, "lines", who=who)
        owner = service.find(connection, invoice_id).customer
        customer = _at_stripe(server, connection, owner, target, named=stripe_customer, who=who)
        sent = stripe_store.read(connection, target, invoice_id)
    waiting = [(item, sent.get(item.place)) for item in items if not _is_delivered(sent.get(item.place))]
    _send_all(server, client, waiting, customer, (target, invoice_id))
    return show(server, invoice_id, target=target)


def show(server: Server, invoice_id: str, *, target: str = TARGET) -> Document:
    """Show how each line of a finalized invoice stands, and send nothing."""
    with read(server) as connection:
        items = _finalized(connection, invoice_id)
        sent = stripe_store.read(connection, target, invoice_id)
    lines = [_to_document(item, sent.get(item.place)) for item in items]
    return {
        "invoice": invoice_id,
        "target": target,
        "delivered": all(line["state"] == "delivered" for line in lines),
        "items": lines,
    }


def _to_document(item: Item, sent: Sent | None) -> Document:
    names = ("state", "how", "stripe_id", "http_status", "error_code", "attempt", "updated_at")
    stands = {name: getattr(sent, name, None) for name in names}
    known = stands if sent else stands | {"state": "waiting", "attempt": 0}
    return {"place": item.place, "amount": item.amount, "currency": item.currency, "line": item.line, **known}


def _finalized(connection: Connection, invoice_id: str) -> list[Item]:
    invoice = service.find(connection, invoice_id)
    if invoice.state != "finalized":
        raise ServiceError("state_conflict", "only a finalized invoice is sent")
    return rated_lines.items(invoice.to_document())


def _at_stripe(
    server: Server, connection: Connection, customer: str, target: str, *, named: str | None, who: str
) -> str:
    """Who a customer is at Stripe: what was said first; what is said now, as long as there is no item there."""
    known = stripe_store.find_customer(connection, target, customer)
    if known is not None and named in (None, known):
        return known
    if known is not None and stripe_store.has_items(connection, target, customer):
        raise ServiceError("state_conflict", "this customer is another one at Stripe")
    if named is None:
        raise InputError("malformed_members", "stripe_customer: not known yet")
    _CUSTOMER(named, "stripe_customer")
    stripe_store.put_customer(connection, target, customer, named)
    body = {"target": target, "stripe_customer": named}
    audit_log.append(server, connection, who=who, action="customer.name_at_stripe", subject=customer, body=body)
    return named


def _is_delivered(sent: Sent | None) -> bool:
    return sent is not None and sent.state == "delivered"


def _send_all(
    server: Server,
    client: Client,
    waiting: list[tuple[Item, Sent | None]],
    customer: str,
    of: tuple[str, str],
) -> None:
    begun = [sent.begun_at for _, sent in waiting if sent is not None and sent.begun_at is not None]
    there = client.find(customer, max(0, min(begun) - _CLOCKS_APART_S)) if begun else {}
    if isinstance(there, Answer):  # what was sent before is not known: nothing is sent again
        return
    for item, sent in waiting:
        stands = sent or _new(server, item, of)
        if item.line in there:
            _store(server, _answered(stands, there[item.line].answer(item.amount, item.currency)))
            continue
        stands = _store(server, _next_attempt(stands, server.clock()))
        answer = client.create(item.params(customer), f"meterkit-{item.line}-{stands.attempt}")
        _store(server, _answered(stands, answer))
        if answer.stops:
            return


def _new(server: Server, item: Item, of: tuple[str, str]) -> Sent:
    return Sent(
        target=of[0],
        invoice=of[1],
        place=item.place,
        line=item.line,
        state="waiting",
        attempt=0,
        how=None,
        stripe_id=None,
        http_status=None,
        error_code=None,
        begun_at=None,
        updated_at=server.clock(),
    )


def _next_attempt(sent: Sent, now: int) -> Sent:
    """What is to be stored before a line is sent.

    Its idempotency key is a new one where Stripe has answered the old one for good, with a refusal or a fault: it
    would answer so again. Where no answer was read, or the old one was still being worked on, the key stays.
    """
    answered = sent.state == "refused" or (sent.http_status or 0) >= _SERVER_ERROR
    attempt = sent.attempt + 1 if answered or sent.attempt == 0 else sent.attempt
    begun_at = now if sent.begun_at is None else sent.begun_at
    return replace(sent, state="sending", attempt=attempt, begun_at=begun_at, http_status=None, error_code=None)


def _answered(sent: Sent, answer: Answer) -> Sent:
    return replace(
        sent,
        state=answer.state,
        how=answer.how,
        stripe_id=answer.stripe_id,
        http_status=answer.http_status,
        error_code=answer.error_code,
    )


def _store(server: Server, sent: Sent) -> Sent:
    stored = replace(sent, updated_at=server.clock())
    with write(server) as connection:
        stripe_store.put(connection, stored)
    return stored
