"""Correcting by which version of a plan a license was billed: the one way in which a version starts in the past.

A correction is known from its moment on: earlier runs, recomputed, do not know it. The next run bills by the one
rule: what the version that did not count had billed is withdrawn, key by key, and what the right one owes is
billed (BILLING §2, §3).
"""

from licensing_server.audit_log import service as audit_log
from licensing_server.billing import changing, dispute_store, store
from licensing_server.billing import terms as customer_terms
from licensing_server.billing.changing import Stored
from licensing_server.catalog import store as catalog_store
from licensing_server.customers import service as customers
from licensing_server.database import Connection, number_to_come
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.licenses import correction_store, periods
from licensing_server.licenses import service as licenses
from licensing_server.licenses.periods import Bounds
from licensing_server.licenses.store import License
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import limits
from meterkit.errors import InputError, ServiceError
from meterkit.plans import Plan
from meterkit.terms import Terms, Version


def correct_plan(
    server: Server,
    license_id: str,
    *,
    plan: str,
    starts_at: int,
    note: str,
    version: int | None = None,
    once: Once = NO_KEY,
) -> Document:
    """Bill a license by another version from an instant in the past on, until the next version that it holds.

    Where that is within a period that has not been billed, the period ends there and a short one begins. From the
    license's first day on, it is the first version that is corrected. The customer's draft is withdrawn.

    Raises:
        InputError: `malformed_members` for an instant that is no window's edge, is still to come, or is not of the
            license's time.
        ServiceError: `not_found`; `state_conflict` where it is billed by that version already, where a period that
            has been billed, or was cut before, would have to end earlier, where currency or interval would change
            within a period, or the interval by which its pools count, or where an amount was let off on what would
            be withdrawn.
    """

    def make(connection: Connection) -> Document:
        now = server.clock()
        license_ = licenses.find(connection, license_id, lock=True)
        number = version or catalog_store.newest_version(connection, plan)
        wanted = customer_terms.read_plan(connection, plan, number)
        since_run = number_to_come(connection, "billing_run")
        terms, stored = _opened(connection, license_, now, since_run)
        at = _instant(license_, stored, starts_at, now)
        _check(
            connection, license_, terms, stored, Version(plan_id=plan, number=number, starts_at=at, plan=wanted)
        )
        for interval, bounds in stored:
            if license_.starts_at < at and bounds.start_at < at < bounds.end_at:
                _check_is_free(connection, license_id, interval, bounds)
                periods.divide(connection, license_id, interval, bounds, at=at, since_run=since_run)
        correction = {
            "id": server.make_id("cor"),
            "license": license_id,
            "starts_at": at,
            "plan": plan,
            "version": number,
            "since_run": since_run,
            "note": note,
            "created_at": now,
        }
        correction_store.insert(connection, correction)
        store.delete_drafts(connection, [license_.customer])
        audit_log.append(
            server, connection, who=once.who, action="license.correct_plan", subject=license_id, body=correction
        )
        return licenses.to_document(connection, license_, now)

    return once.run(server, make)


def _opened(connection: Connection, license_: License, now: int, since_run: int) -> tuple[Terms, Stored]:
    """The terms of a license, and its periods, those that have begun opened first."""
    zone = customers.find(connection, license_.customer).zone
    found = customer_terms.Licenses(connection, [license_.customer])
    own = [each for each in found.schedules({license_.customer: zone}) if each.license_id == license_.id]
    periods.open_until(connection, own, now, since_run=since_run)
    return found.terms_of(license_.id), periods.read(connection, [license_.id]).get(license_.id, [])


def _instant(license_: License, stored: Stored, asked: int, now: int) -> int:
    """The instant from which the version counts: on the first day, before the license starts, its start."""
    first = min((bounds.start_at for _, bounds in stored), default=license_.starts_at)
    if first <= asked <= license_.starts_at:
        return license_.starts_at
    if asked < first or (license_.ends_at is not None and asked >= license_.ends_at):
        raise InputError("malformed_members", "starts_at: it is not of the license's time")
    if asked > now:
        raise InputError("malformed_members", "starts_at: it is still to come; change the plan instead")
    if asked % limits.WINDOW_S:
        raise InputError("malformed_members", "starts_at: not on a quarter of an hour")
    return asked


def _check(connection: Connection, license_: License, terms: Terms, stored: Stored, wanted: Version) -> None:
    """Return if a version may take another's place, until the next one that the license holds."""
    at, held = wanted.starts_at, terms.version_at(wanted.starts_at)
    if (held.plan_id, held.number) == (wanted.plan_id, wanted.number):
        raise ServiceError("state_conflict", "it is billed by that version already")
    changing.check_pools(license_, held.plan, wanted.plan)
    until = min((each.starts_at for each in terms.versions if each.starts_at > at), default=limits.INTEGER_MAX)
    from_at = 0 if at == license_.starts_at else at  # the first period is from that day's midnight
    if from_at:
        _check_edge(stored, at, terms.version_at(at - 1).plan, wanted.plan)
    if until < limits.INTEGER_MAX:
        _check_edge(stored, until, terms.version_at(until).plan, wanted.plan)
    if dispute_store.has_concession(connection, license_.id, from_at, until):
        raise ServiceError("state_conflict", "an amount was let off on what it would withdraw")


def _check_edge(stored: Stored, edge: int, other: Plan, wanted: Plan) -> None:
    """Return if currency and interval stay, or change only where periods end."""
    for interval, bounds in stored if changing.must_be_whole(other, wanted) else ():
        if bounds.whole_start_at < edge < bounds.whole_end_at:
            raise ServiceError("state_conflict", f"currency and interval change where the {interval} ends")


def _check_is_free(connection: Connection, license_id: str, interval: str, bounds: Bounds) -> None:
    """Return if a period may end earlier: bounds once billed stay, and what was cut is not cut again."""
    if store.is_billed(connection, license_id, bounds.start_at, bounds.end_at):
        raise ServiceError("state_conflict", f"the {interval} from {bounds.start_at} has been billed")
    if bounds.end_before is not None:
        raise ServiceError("state_conflict", f"the {interval} from {bounds.start_at} was cut before")
