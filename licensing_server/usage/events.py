"""Raw usage for other systems: one CloudEvent 1.0 for each usage record that billing counts (BILLING §7).

It is read in pieces, each in a transaction of its own, so that whoever takes it slowly holds up no device. What is
exported is bounded by two numbers, as a billing run is: asked again with the same two, it is the same bytes.
"""

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from licensing_server import targets
from licensing_server.customers import service as customers
from licensing_server.database import Connection, last_number, read, write
from licensing_server.licenses import named_periods
from licensing_server.licenses import service as licenses
from licensing_server.server import Server
from licensing_server.usage import event_store
from licensing_server.usage.event_store import Place, Scope
from licensing_server.usage.store import ACCEPTANCE
from meterkit.canonical import digest, to_bytes
from meterkit.errors import InputError

Subject = Literal["license", "customer"]
Form = Literal["lines", "batch"]

MEDIA_TYPES: dict[Form, str] = {
    "lines": "application/jsonl",
    "batch": "application/cloudevents-batch+json",
}
_TYPE = "meterkit.usage"
_PIECE_RECORDS = 2_000
_BILLING_RUN = "billing_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which usage is to leave: of a period, as reconciliation names one; whose; and as known when.

    `through` is the last acceptance number, `run` the billing run whose decisions count: by default the newest,
    and all decisions. A target that is named takes raw usage from then on, and no rated lines.
    """

    period: str | None = None
    from_at: int | None = None
    to_at: int | None = None
    customer: str | None = None
    license_id: str | None = None
    through: int | None = None
    run: int | None = None
    subject: Subject = "license"
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """An export that is being read: what it is known by, and its events, each as one line of JSON."""

    scope: Scope
    events: Iterator[bytes]

    def written(self, form: Form) -> Iterator[bytes]:
        """The events as a file: a line for each, or one JSON array."""
        return _lines(self.events) if form == "lines" else _batch(self.events)


def export(server: Server, asked: Asked) -> Export:
    """Begin to export usage; its events are read as they are taken.

    Raises:
        InputError: `malformed_members` for a period that is none, or numbers that are still to come.
        ServiceError: `not_found` for a customer or a license; `target_conflict`.
    """
    with read(server) as connection:
        scope = _scope(server, connection, asked)
    if asked.target is not None:
        with write(server) as connection:
            targets.claim(server, connection, asked.target, "usage")
    return Export(scope=scope, events=_events(server, scope, asked.subject))


def _scope(server: Server, connection: Connection, asked: Asked) -> Scope:
    zone = customers.find(connection, asked.customer).time_zone if asked.customer else "UTC"
    if asked.license_id is not None:
        licenses.find(connection, asked.license_id)
    from_at, to_at = named_periods.bounds(
        asked.period, (asked.from_at, asked.to_at), zone=zone, now=server.clock()
    )
    newest = {"through": last_number(connection, ACCEPTANCE), "run": last_number(connection, _BILLING_RUN) + 1}
    for name, value in (("through", asked.through), ("run", asked.run)):
        if value is not None and value > newest[name]:
            raise InputError("malformed_members", f"{name}: it is still to come")
    return Scope(
        from_at=from_at,
        to_at=to_at,
        through=newest["through"] if asked.through is None else asked.through,
        run=newest["run"] if asked.run is None else asked.run,  # a decision counts from the next run on
        customer=asked.customer,
        license_id=asked.license_id,
    )


def _events(server: Server, scope: Scope, subject: Subject) -> Iterator[bytes]:
    source = f"urn:meterkit:usage:{quote(server.issuer, safe='')}"
    after: Place | None = None
    while True:
        with read(server) as connection:
            rows = event_store.read(connection, scope, after, _PIECE_RECORDS)
        for row in rows:
            yield to_bytes(_event(row, source, subject))
        if len(rows) < _PIECE_RECORDS:
            return
        after = _place(rows[-1])


def _place(row: Any) -> Place:
    return row.license, row.model, row.unit, row.service_at, *_fact(row)


def _fact(row: Any) -> tuple[str, str, int, str]:
    """What makes a record one."""
    return row.device, row.epoch, row.seq, row.hash


def _event(row: Any, source: str, subject: Subject) -> dict[str, Any]:
    """One record as an event; its id is the record's own, whenever and however often it is exported."""
    data = {name: getattr(row, name) for name in ("customer", "license", "device", "model", "unit", "units")}
    return {
        "specversion": "1.0",
        "type": _TYPE,
        "source": source,
        "id": digest("mk-usage-event", to_bytes(list(_fact(row)))).hex(),
        "time": dt.datetime.fromtimestamp(row.service_at, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "subject": data[subject],
        "datacontenttype": "application/json",
        "data": data,
    }


def _lines(events: Iterable[bytes]) -> Iterator[bytes]:
    return (event + b"\n" for event in events)


def _batch(events: Iterable[bytes]) -> Iterator[bytes]:
    before = b"["
    for event in events:
        yield before + event
        before = b",\n"
    yield b"[]\n" if before == b"[" else b"]\n"
