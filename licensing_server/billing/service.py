"""Billing: runs that work out what is owed, drafts that bill nothing, invoices that never change (BILLING §3, §5).

A run stores its two limits first; then customers are billed, some in each transaction and none in two. A run that
was interrupted goes on where it stopped, and nothing is billed twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from licensing_server.audit_log import service as audit_log
from licensing_server.billing import (
    account_store,
    booking,
    breaking,
    dispute_store,
    documents,
    pending,
    run_store,
    run_sums,
    store,
)
from licensing_server.billing import terms as customer_terms
from licensing_server.billing.documents import Computed
from licensing_server.billing.run_store import RUN_SCOPE, StoredRun
from licensing_server.billing.store import Invoice
from licensing_server.customers import service as customers
from licensing_server.customers import store as customer_store
from licensing_server.customers.store import Customer
from licensing_server.database import Connection, next_number, read, write
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from licensing_server.webhook_endpoints import outbox
from meterkit import audit, explaining, terminal
from meterkit import evidence as evidence_files
from meterkit.canonical import sha256_hex
from meterkit.documents import CREDIT_NOTE, INVOICE
from meterkit.errors import InputError, MeterkitError, ServiceError

Watch = Callable[[int, int], None]  # is told how many customers are billed, none as a run begins, of how many
SERIES = {INVOICE: ("INV", "invoice"), CREDIT_NOTE: ("CN", "credit_note")}


def unwatched(billed: int, of: int) -> None:
    """Be told how many customers are billed, of how many, and do nothing about it."""


def run(
    server: Server,
    *,
    cut_off: int | None = None,
    customer: str | None = None,
    once: Once = NO_KEY,
    watch: Watch = unwatched,
) -> Document:
    """Bill everything that was used before a cut-off, now if none is named: one draft per customer and currency.

    Asked again with the same cut-off it gives what it stored, and goes on if it was interrupted. It bills
    nobody yet: drafts become invoices when they are finalized. `watch` is told of each portion of customers, also
    of those of an interrupted run that goes on first.

    Raises:
        InputError: `malformed_members` for a cut-off still to come.
        ServiceError: `run_superseded` if a later run exists: limits cannot go back; `not_found` for a customer.
    """
    _finish_open(server, watch)
    started = once.run(
        server, lambda connection: _start(server, connection, cut_off, customer, once.who).to_document()
    )
    failed = _work(server, started["number"], watch)
    return {**show_run(server, started["number"]), "failed": failed}


def dry_run(server: Server, *, cut_off: int | None = None, customer: str | None = None) -> Document:
    """Work out what a run would draft, and what would wait; store nothing."""
    with pending.undone(server) as connection:
        stored = _start(server, connection, cut_off, customer, audit_log.COMMAND)
        drafts = [each.body for each in _computed(connection, stored)]
        waits = pending.read(connection, stored.limits, run_store.customers_in(connection, stored.scope))
        return {"number": None, "cut_off": stored.cut_off, "dry_run": True, "drafts": drafts, "pending": waits}


def _computed(connection: Connection, stored: StoredRun) -> Iterator[Computed]:
    for portion in run_store.portions(connection, run_store.customers_in(connection, stored.scope)):
        found = customer_store.find_all(connection, portion)
        for made in documents.draft_all(connection, found, stored.limits).values():
            yield from made


def _start(
    server: Server, connection: Connection, cut_off: int | None, customer: str | None, who: str
) -> StoredRun:
    """Store a new run with its limits, or give the one that was asked for before."""
    now = server.clock()
    at = now if cut_off is None else cut_off
    scope = RUN_SCOPE if customer is None else customers.find(connection, customer).id
    known = run_store.find_same_run(connection, scope, at)
    if known is not None:
        return known
    if at > now:
        raise InputError("malformed_members", "cut_off: it is still to come")
    newest = run_store.newest_cut_off(connection, scope)
    if newest is not None and at < newest:
        raise ServiceError("run_superseded", f"a run has billed up to {newest}")
    started = StoredRun(
        number=next_number(connection, "billing_run"),
        cut_off=at,
        acceptance_max=run_store.newest_acceptance(connection),
        scope=scope,
        state="open",
        created_at=now,
    )
    run_store.insert_run(connection, started)
    subject, body = str(started.number), started.to_document()
    audit_log.append(server, connection, who=who, action="billing_run.start", subject=subject, body=body)
    return started


def _finish_open(server: Server, watch: Watch = unwatched) -> None:
    """Let every interrupted run come to its end first: runs of a license never overlap."""
    with read(server) as connection:
        numbers = run_store.open_runs(connection)
    for number in numbers:
        _work(server, number, watch)


def _work(server: Server, number: int, watch: Watch) -> list[Document]:
    """Bill every customer of a run that it has not billed yet, some in each transaction, none in two.

    One that cannot be billed keeps nobody else from it: it is named, and the run stays open for it.
    """
    with read(server) as connection:
        stored = find_run(connection, number)
        waiting = [] if stored.state == "done" else run_store.customers_in(connection, stored.scope)
        portions = list(run_store.portions(connection, waiting))
    if waiting:
        watch(0, len(waiting))
    _sum_first(server, waiting, stored)
    failed: list[Document] = []
    billed = 0
    for portion in portions:
        failed += _bill(server, portion, stored)
        billed += len(portion)
        watch(billed, len(waiting))
    if stored.state == "open" and not failed:
        with write(server) as connection:
            run_store.finish_run(connection, number)
            outbox.announce(server, connection, "billing_run.finished", str(number), {"run": number})
            breaking.book(server, connection, stored)
    return failed


def _sum_first(server: Server, waiting: list[str], stored: StoredRun) -> None:
    """Sum up at once what never was. Where a plan cannot be read, each portion adds up its own, and tells."""
    try:
        with write(server) as connection:
            customer_terms.sum_first(connection, waiting, stored.limits)
    except MeterkitError as error:
        if error.code == "database_unavailable":
            raise


def _bill(server: Server, portion: list[str], stored: StoredRun) -> Iterator[Document]:
    """Bill a portion of a run's customers in one transaction; give those that cannot be billed.

    Where there is one, it is told from the others by billing each by itself.
    """
    try:
        with write(server) as connection:
            billed = run_store.billed_since(connection, portion, stored.number)
            _draft(server, connection, [each for each in portion if each not in billed], stored)
    except MeterkitError as error:
        if error.code == "database_unavailable":
            raise
        if len(portion) == 1:
            yield {"customer": portion[0], "code": error.code}
            return
        for customer_id in portion:
            yield from _bill(server, [customer_id], stored)


def _draft(server: Server, connection: Connection, portion: list[str], stored: StoredRun) -> None:
    found = {customer.id: customer for customer in customer_store.find_all(connection, portion)}
    store.delete_drafts(connection, portion)
    drafts = [
        _draft_of(server, found[customer_id], made, stored)
        for customer_id, documents_made in documents.draft_all(connection, found.values(), stored.limits).items()
        for made in documents_made
    ]
    store.insert_invoices(connection, drafts)
    run_store.mark_billed(connection, stored.number, portion)


def _draft_of(server: Server, customer: Customer, made: Computed, stored: StoredRun) -> Invoice:
    invoice = Invoice(
        id=server.make_id("inv"),
        customer=customer.id,
        currency=made.currency,
        run=stored.number,
        state="draft",
        number=None,
        **documents.figures(made.settled),
        created_at=server.clock(),
        finalized_at=None,
        body=b"",
    )
    return replace(invoice, body=documents.draft_bytes(invoice, customer, made))


def add_up(server: Server) -> None:
    """Add up, for the runs to come, usage that is not added up yet: after an upgrade, all there is.

    No draft waits for it. It is done in many small transactions, so that usage goes on coming in; interrupted, it
    goes on when it is called again. A run does without it, more slowly.
    """
    more = True
    while more:
        with write(server) as connection:
            more = run_sums.add_up(connection)


def finalize(server: Server, invoice_id: str, *, who: str = audit_log.COMMAND) -> Document:
    """Make a draft an invoice, or a credit note: computed again, numbered, its bytes and evidence frozen for good.

    An invoice on which nothing is due, for prepaid credits and the balance have met it whole, is `paid` at once.
    Asked again it gives the document as it is.

    Raises:
        ServiceError: `state_conflict` for a draft with no lines left, or one that draws on money which was paid
            back or taken back since its run began: the next run makes another; `signing_unavailable`. Nothing is
            changed then.
    """
    with write(server) as connection:
        invoice = find(connection, invoice_id)
        if invoice.state != "draft":
            return invoice.to_document()
        now = server.clock()
        stored = find_run(connection, invoice.run)
        customer = customers.find(connection, invoice.customer)
        again = documents.compute(connection, customer, stored.limits)
        made = next((each for each in again if each.currency == invoice.currency), None)
        if made is None:
            raise ServiceError("state_conflict", "nothing is left to bill")
        series, counter = SERIES[made.settled.kind]
        number = f"{series}-{next_number(connection, counter):06d}"
        state = "paid" if made.settled.is_met else "finalized"
        final = replace(invoice, state=state, number=number, finalized_at=now, **documents.figures(made.settled))
        body, evidence = documents.freeze(server, connection, final, made, customer=customer, run=stored.limits)
        final = replace(final, body=body)
        store.finalize(connection, final, evidence, made.settled.lines)
        account_store.insert_settled(connection, final.id, made.settled)
        booking.book(connection, final, made.settled)
        booking.check_funds(connection, final)  # what was decided since its run began, it does not know
        outbox.announce(server, connection, "invoice.finalized", invoice_id, documents.announced(final))
        about = {"number": number, "state": state, "run": final.run, "total_minor": final.total_minor}
        audit_log.append(
            server,
            connection,
            who=who,
            action=f"{final.kind}.finalize",
            subject=invoice_id,
            body={**about, "sha256": sha256_hex(body)},
        )
        return final.to_document()


def find(connection: Connection, invoice_id: str) -> Invoice:
    """Find an invoice, or raise `not_found`."""
    invoice = store.find_invoice(connection, invoice_id)
    if invoice is None:
        raise ServiceError("not_found", "invoice")
    return invoice


def find_run(connection: Connection, number: int) -> StoredRun:
    """Find a billing run, or raise `not_found`."""
    stored = run_store.find_run(connection, number)
    if stored is None:
        raise ServiceError("not_found", "billing run")
    return stored


def show(server: Server, invoice_id: str) -> Document:
    """Show one invoice, draft or final."""
    with read(server) as connection:
        return find(connection, invoice_id).to_document()


def show_run(server: Server, number: int) -> Document:
    """Show one run, the invoices that it drafted, and what waited at it because a line is disputed."""
    with read(server) as connection:
        stored = find_run(connection, number)
        invoices = store.invoice_ids(connection, number)
        disputes = dispute_store.who_disputes(connection, run_store.customers_in(connection, stored.scope), number)
    waits = pending.of_run(server, stored) if disputes else []
    return {**stored.to_document(), "invoices": invoices, "pending": waits}


def show_evidence(server: Server, invoice_id: str) -> tuple[str, bytes]:
    """Give a finalized invoice's number and its evidence, as it was frozen.

    Raises:
        ServiceError: `not_found`; `state_conflict` for a draft, which has none yet.
    """
    with read(server) as connection:
        invoice = find(connection, invoice_id)
        evidence = store.find_evidence(connection, invoice_id)
    if evidence is None or invoice.number is None:
        raise ServiceError("state_conflict", "a draft has no evidence; finalize it first")
    return invoice.number, evidence


def explain(server: Server, invoice_id: str, place: int) -> list[str]:
    """Say in words how a line of a finalized invoice comes about, from the evidence that was frozen with it.

    Raises:
        InputError: `malformed_members` for no such line.
        ServiceError: `not_found`; `state_conflict` for a draft, which has no evidence yet.
    """
    _, data = show_evidence(server, invoice_id)
    result = audit.recompute(evidence_files.read_zip(data))
    return explaining.explain(result, place, terminal.local_times(result.invoice))


def page(server: Server, asked: Page, customer: str | None = None, *, kind: str | None = None) -> Document:
    """List invoices and credit notes, of one customer or one kind if named."""
    with read(server) as connection:
        return store.page_invoices(connection, asked, customer, kind)


def page_runs(server: Server, asked: Page) -> Document:
    """List billing runs."""
    with read(server) as connection:
        return run_store.page_runs(connection, asked)
