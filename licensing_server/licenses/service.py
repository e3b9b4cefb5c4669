"""What is granted to a customer: a license, its states, and the codes that activate its devices."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.catalog import store as catalog_store
from licensing_server.customers import service as customers
from licensing_server.database import Connection, read, write
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.licenses import correction_store, periods, spans, store
from licensing_server.licenses.periods import Schedule
from licensing_server.licenses.store import Grant, License
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import limits, plans
from meterkit.activation import Code
from meterkit.canonical import to_bytes
from meterkit.errors import InputError, ServiceError
from meterkit.licenses import Policy

_TOKEN_REST_BYTES = 1_536  # of a token, what is not models and features
_ANCHOR_S_MAX = 366 * 86_400
_MAY_BECOME = {  # the state asked for, and those from which it can be reached
    "suspended": ("active",),
    "active": ("suspended",),
    "ended": ("active", "suspended"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is to be granted: to whom, for what, by which plan, within which limits."""

    customer: str
    plan: str
    product: str
    models: tuple[dict[str, Any], ...]
    devices_max: int
    token_life_s: int
    grace_s: int
    policy: Policy
    fork_policy: str
    features: tuple[str, ...]
    plan_version: int | None = None
    starts_at: int | None = None
    ends_at: int | None = None
    anchor_at: int | None = None


def grant(server: Server, terms: Terms, *, once: Once = NO_KEY) -> Document:
    """Grant a license; it is active from its start on, by the plan's version of now or the one named.

    Its periods are counted from the local day that holds `anchor_at`, by default from its first: anchored on the
    first of a month, it begins with a short period and then goes by calendar months.

    Raises:
        ServiceError: `not_found` for a customer, plan, product or model that is not there.
        InputError: `malformed_members` for an end before the start, an anchor a year or more away from it, or a
            model named twice.
    """

    def make(connection: Connection) -> Document:
        now = server.clock()
        starts_at = now if terms.starts_at is None else terms.starts_at
        if terms.ends_at is not None and terms.ends_at <= starts_at:
            raise InputError("malformed_members", "ends_at: it ends before it starts")
        zone = customers.find(connection, terms.customer).zone
        anchor_at = starts_at if terms.anchor_at is None else terms.anchor_at
        if abs(anchor_at - starts_at) >= _ANCHOR_S_MAX:
            raise InputError("malformed_members", "anchor_at: within a year of the start")
        version = _plan_version(connection, terms)
        license_ = License(
            id=server.make_id("lic"),
            customer=terms.customer,
            product=terms.product,
            plan=terms.plan,
            state="active",
            starts_at=starts_at,
            ends_at=terms.ends_at,
            anchor_at=max(0, periods.day_start(anchor_at, zone)),
            devices_max=terms.devices_max,
            token_life_s=terms.token_life_s,
            grace_s=terms.grace_s,
            policy=terms.policy,
            fork_policy=terms.fork_policy,
            features=terms.features,
            created_at=now,
            grants=_grants(connection, terms),
        )
        store.insert(connection, license_, version)
        spans.put(connection, {license_.id: _first_spans(connection, license_, version, now)})
        document = to_document(connection, license_, now)
        audit_log.append(
            server, connection, who=once.who, action="license.grant", subject=license_.id, body=document
        )
        return document

    return once.run(server, make)


def _plan_version(connection: Connection, terms: Terms) -> int:
    version = terms.plan_version or catalog_store.newest_version(connection, terms.plan)
    body = catalog_store.read_version(connection, terms.plan, version)
    if body is None:
        raise ServiceError("not_found", "plan")
    plans.read(body)
    return version


def _first_spans(connection: Connection, license_: License, version: int, now: int) -> set[int]:
    """Where the spans of a new license begin, in which its usage will be added up."""
    plan = plans.read(catalog_store.read_version(connection, license_.plan, version))
    schedule = Schedule(
        license_id=license_.id,
        zone=customers.find(connection, license_.customer).zone,
        anchor_at=license_.anchor_at,
        starts_at=license_.starts_at,
        ends_at=license_.ends_at,
        intervals=plan.intervals,
    )
    return spans.ahead(schedule, {}, max(now, license_.starts_at) + spans.AHEAD_S)


def _grants(connection: Connection, terms: Terms) -> tuple[Grant, ...]:
    if not catalog_store.has_product(connection, terms.product):
        raise ServiceError("not_found", "product")
    names = [model["name"] for model in terms.models]
    if len(set(names)) != len(names):
        raise InputError("malformed_members", "models: one stands twice")
    known = catalog_store.read_models(connection, terms.product, names)
    missing = sorted(set(names) - known.keys())
    if missing:
        raise ServiceError("not_found", f"model {missing[0]}")
    digests = [digest for model in known.values() for digest in model.sha256]
    if len(set(digests)) != len(digests):
        raise InputError("malformed_members", "models: two are the same bytes: which of them is metered?")
    _check_fits_a_token([[model.to_document() for model in known.values()], list(terms.features)])
    return tuple(
        Grant(
            model=model["name"],
            unit=known[model["name"]].unit,
            token_units_max=model["token_units_max"],
            pool_units=model["pool_units"],
            pool_per=model["pool_per"],
        )
        for model in sorted(terms.models, key=lambda model: str(model["name"]))
    )


def _check_fits_a_token(parts: list[Any]) -> None:
    """Return if a token could carry all this: better refused now than when a device asks."""
    encoded = len(to_bytes(parts)) * 4 // 3
    if encoded > limits.TOKEN_BYTES_MAX - _TOKEN_REST_BYTES:
        raise InputError("too_many", "these models and features do not fit into one token")


def to_document(connection: Connection, license_: License, now: int) -> Document:
    """Show a license to people: its terms, its state now, its timeline, and what was accepted for it."""
    models = []
    for each in license_.grants:
        row = store.grant_to_row(license_.id, each)
        del row["license"]
        models.append({**row, "accepted_units": store.accepted_units(connection, license_.id, each.meter, 0)})
    return {
        **store.to_row(license_),
        "state": license_.state_at(now),
        "models": models,
        "versions": store.versions(connection, license_.id),
        "corrections": correction_store.show(connection, license_.id),
    }


def find(connection: Connection, license_id: str, *, lock: bool = False) -> License:
    """Find a license, or raise `not_found`."""
    license_ = store.find(connection, license_id, lock=lock)
    if license_ is None:
        raise ServiceError("not_found", "license")
    return license_


def show(server: Server, license_id: str) -> Document:
    """Show one license."""
    with read(server) as connection:
        return to_document(connection, find(connection, license_id), server.clock())


def page(server: Server, asked: Page, customer: str | None = None) -> Document:
    """List licenses, of one customer if named."""
    with read(server) as connection:
        return store.page(connection, asked, customer)


def change_state(server: Server, license_id: str, state: str, *, who: str = audit_log.COMMAND) -> Document:
    """Suspend, resume or end a license. Tokens already issued run on until they end, or are revoked.

    Raises:
        ServiceError: `state_conflict` where the license cannot come to that state; asked for again what it
            is already, it is answered as it was.
    """
    with write(server) as connection:
        now = server.clock()
        license_ = find(connection, license_id, lock=True)
        at_present = license_.state_at(now)
        if at_present != state:
            if at_present not in _MAY_BECOME[state]:
                raise ServiceError("state_conflict", f"it is {at_present}")
            ends_at = max(now, license_.starts_at) if state == "ended" else license_.ends_at
            store.update_state(connection, license_id, state, ends_at)
            license_ = replace(license_, state=state, ends_at=ends_at)
            log_state(server, connection, license_, who)
        return to_document(connection, license_, now)


def log_state(server: Server, connection: Connection, license_: License, who: str) -> None:
    """Log that somebody, or a rule, has brought a license to its state."""
    body = {"state": license_.state, "ends_at": license_.ends_at}
    audit_log.append(server, connection, who=who, action="license.state", subject=license_.id, body=body)


def suspend(connection: Connection, license_: License) -> License:
    """Suspend a license as its own fork policy says; one that is not active stays as it is."""
    if license_.state != "active":
        return license_
    store.update_state(connection, license_.id, "suspended", license_.ends_at)
    return replace(license_, state="suspended")


def create_code(
    server: Server, license_id: str, *, expires_at: int | None = None, once: Once = NO_KEY
) -> Document:
    """Make an activation code for a license. The answer holds its text, this once.

    One code may activate several devices, as many as the license has places for.
    """

    def make(connection: Connection) -> Document:
        return make_code(server, connection, license_id, expires_at=expires_at, who=once.who)

    return once.run(server, make)


def make_code(
    server: Server, connection: Connection, license_id: str, *, expires_at: int | None, who: str
) -> Document:
    """Make an activation code in the caller's own transaction."""
    now = server.clock()
    if find(connection, license_id).state_at(now) == "ended":
        raise ServiceError("license_inactive")
    code = Code(id=server.make_id("code"), secret=server.random(16))
    row = {"id": code.id, "license": license_id, "created_at": now, "expires_at": expires_at}
    sealed = server.sealer.seal(code.id, code.secret)
    store.insert_code(connection, {**row, "secret_encrypted": sealed})
    audit_log.append(server, connection, who=who, action="code.create", subject=code.id, body=row)
    return {**row, "code": code.unsafe_to_text()}


def page_codes(server: Server, license_id: str, asked: Page) -> Document:
    """List a license's activation codes, never their secrets."""
    with read(server) as connection:
        find(connection, license_id)
        return store.page_codes(connection, license_id, asked)


def pool_starts(connection: Connection, license_: License) -> Callable[[int], int]:
    """Give the function that says when the period began in which a pool per period counts an instant.

    The periods are those of the plan's own interval, uncut by a change of version.
    """
    newest = store.versions(connection, license_.id)[-1]
    interval = plans.read(catalog_store.read_version(connection, newest["plan"], newest["version"])).interval
    zone = customers.find(connection, license_.customer).zone
    anchor = periods.anchor_day(license_.anchor_at, zone)

    def start(at: int) -> int:
        return max(1, periods.bound(anchor, interval, periods.nth_at(anchor, interval, at, zone), zone))

    return start
