"""Changing by which version of a plan a license is billed (BILLING §2)."""

from licensing_server.audit_log import service as audit_log
from licensing_server.billing import run_store, store
from licensing_server.billing import terms as customer_terms
from licensing_server.catalog import store as catalog_store
from licensing_server.customers import service as customers
from licensing_server.database import Connection, number_to_come
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.licenses import periods
from licensing_server.licenses import service as licenses
from licensing_server.licenses import store as license_store
from licensing_server.licenses.periods import Bounds
from licensing_server.licenses.store import License
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import limits
from meterkit.errors import ServiceError
from meterkit.plans import Plan

Stored = list[tuple[str, Bounds]]


def change_plan(
    server: Server,
    license_id: str,
    *,
    plan: str,
    version: int | None = None,
    starts: str = "next_period",
    once: Once = NO_KEY,
) -> Document:
    """Bill a license by another version from its next period on, or from `now`: the next window's edge.

    Where the new version starts within a period, that one ends there and a short one begins; both owe their
    share. It never starts in the past: that is a correction (`billing.correcting`).

    Raises:
        ServiceError: `not_found`; `license_inactive` for an ended license; `state_conflict` where a change is
            still to come, where a run has billed beyond its start, where a period that has been billed would have
            to end earlier, or where currency or interval would change within a period, or the interval by which
            its pools count.
    """

    def make(connection: Connection) -> Document:
        now = server.clock()
        license_ = licenses.find(connection, license_id, lock=True)
        if license_.state_at(now) == "ended":
            raise ServiceError("license_inactive")
        number = version or catalog_store.newest_version(connection, plan)
        wanted = customer_terms.read_plan(connection, plan, number)
        since_run = number_to_come(connection, "billing_run")
        held, stored = _held(connection, license_, now, since_run)
        at = -(-now // limits.WINDOW_S) * limits.WINDOW_S if starts == "now" else _next(stored, held, now)
        _check_is_to_come(connection, license_, at)
        check_pools(license_, held, wanted)
        _cut(connection, license_, stored, at, since_run, whole=must_be_whole(held, wanted))
        license_store.insert_version(
            connection, license_id, starts_at=at, plan=plan, version=number, since_run=since_run
        )
        body = {"starts_at": at, "plan": plan, "version": number, "since_run": since_run}
        audit_log.append(
            server, connection, who=once.who, action="license.change_plan", subject=license_id, body=body
        )
        return licenses.to_document(connection, license_, now)

    return once.run(server, make)


def _check_is_to_come(connection: Connection, license_: License, at: int) -> None:
    """Return if no run has billed beyond an instant, as one may have where the clock was set back since."""
    newest = run_store.newest_cut_off(connection, license_.customer)
    if newest is not None and at < newest:
        raise ServiceError("state_conflict", f"a run has billed up to {newest}; before it only corrections start")


def check_pools(license_: License, held: Plan, wanted: Plan) -> None:
    """Pools that are filled anew by the plan's interval count by that one, for the license's whole life."""
    by_period = any(each.pool_units is not None and each.pool_per == "period" for each in license_.grants)
    if by_period and held.interval != wanted.interval:
        raise ServiceError("state_conflict", f"its pools count by the {held.interval}")


def _held(connection: Connection, license_: License, now: int, since_run: int) -> tuple[Plan, Stored]:
    """The plan that a license is billed by now, and its periods, those that have begun opened first."""
    zone = customers.find(connection, license_.customer).zone
    found = customer_terms.Licenses(connection, [license_.customer])
    terms = found.terms_of(license_.id)
    if any(version.starts_at > now for version in terms.versions):
        raise ServiceError("state_conflict", "a version is still to come")
    own = (
        schedule for schedule in found.schedules({license_.customer: zone}) if schedule.license_id == license_.id
    )
    periods.open_until(connection, own, now, since_run=since_run)
    return terms.version_at(now).plan, periods.read(connection, [license_.id]).get(license_.id, [])


def _next(stored: Stored, held: Plan, now: int) -> int:
    """Where the period of the plan's own interval ends that holds an instant."""
    ends = (bounds.end_at for interval, bounds in stored if interval == held.interval and bounds.end_at > now)
    return min(ends)


def must_be_whole(held: Plan, wanted: Plan) -> bool:
    """Whether the change must wait for every period's end."""
    return (held.currency, held.interval) != (wanted.currency, wanted.interval)


def _cut(
    connection: Connection, license_: License, stored: Stored, at: int, since_run: int, *, whole: bool
) -> None:
    """End every period within which the new version starts; bounds once billed stay."""
    for interval, bounds in stored:
        if not bounds.start_at < at < bounds.end_at:
            continue
        if whole:
            raise ServiceError("state_conflict", f"currency and interval change where the {interval} ends")
        if store.is_billed(connection, license_.id, bounds.start_at, bounds.end_at):
            raise ServiceError("state_conflict", f"the {interval} from {bounds.start_at} has been billed")
        periods.divide(connection, license_.id, interval, bounds, at=at, since_run=since_run)
