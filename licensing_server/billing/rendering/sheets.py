"""What stands on which page of an invoice, whatever it is drawn with. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from licensing_server.pages import Document
from meterkit import money
from meterkit.local_times import LocalTimes

PAGE_ROWS = 30
BANNERS = {
    "draft": "DRAFT — no invoice: nothing is owed by it",
    "void": "VOID — taken back: nothing is owed by it",
}
_TITLES = {"invoice": "Invoice", "credit_note": "Credit note"}
_BESIDE = ("unpriced", "unsettled", "quarantined", "dismissed", "repeated", "waived")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: a line of the invoice, or units that stand beside them and are not charged."""

    text: str
    detail: str
    quantity: str
    amount: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """An invoice laid out: what heads every page, the rows of each page, and what ends the last one."""

    title: str
    banner: str | None
    seller: str
    buyer: tuple[str, str]
    facts: tuple[tuple[str, str], ...]
    pages: tuple[tuple[Row, ...], ...]
    total: tuple[str, str]
    digest: str | None
    made_at: int


def lay_out(invoice: Document, *, seller: str, times: LocalTimes) -> Sheet:
    """Lay out an invoice, or a draft, as it is shown: one page for 30 rows.

    Instants are by its customer's clock, whose zone is named once, among the facts.
    """
    draft = invoice["state"] == "draft"
    rows = [_line(line, invoice["currency"], times) for line in invoice["lines"]]
    rows += _sums(invoice)
    rows += [_beside(beside, times) for beside in invoice["beside"]]
    return Sheet(
        title="Draft" if draft else f"{_TITLES[invoice['kind']]} {invoice['number']}",
        banner=BANNERS.get(invoice["state"]),
        seller=seller,
        buyer=(invoice["customer_name"], invoice["customer"]),
        facts=tuple(_facts(invoice, times)),
        pages=tuple(tuple(rows[at : at + PAGE_ROWS]) for at in range(0, len(rows), PAGE_ROWS)),
        total=_total(invoice),
        digest=invoice["evidence"],
        made_at=invoice["created_at"] if draft else invoice["finalized_at"],
    )


def _total(invoice: Document) -> tuple[str, str]:
    """What ends an invoice: what is left to pay; of a credit note, whose due is nothing, its total."""
    if "due" in invoice and invoice["kind"] == "invoice":
        return "Total due", f"{invoice['due']} {invoice['currency']}"
    return "Total", f"{invoice['total']} {invoice['currency']}"


def _period(start_at: int, end_at: int, times: LocalTimes) -> str:
    """Write a half-open period."""
    return f"{times.minute(start_at)} – {times.minute(end_at)}"


def _facts(invoice: Document, times: LocalTimes) -> Iterator[tuple[str, str]]:
    if invoice["finalized_at"] is not None:
        yield "Date", times.minute(invoice["finalized_at"])
    yield "Billed up to", times.minute(invoice["run"]["cut_off"])
    yield "Time zone", times.name
    yield "Billing run", str(invoice["run"]["number"])
    yield "Currency", invoice["currency"]
    yield "Reference", invoice["id"]
    if invoice.get("replaces"):
        yield "Replaces", ", ".join(invoice["replaces"])


def _line(line: Document, currency: str, times: LocalTimes) -> Row:
    return Row(
        text=line["description"],
        detail=" · ".join(_details(line, currency, times)),
        quantity=str(line["quantity"]),
        amount=f"{line['amount']} {currency}",
    )


def _details(line: Document, currency: str, times: LocalTimes) -> Iterator[str]:
    if line["kind"] == "estimated":
        yield "ESTIMATED"
    for each in line.get("carried", ()):
        yield f"{each['quantity']} used in {_period(each['service_start_at'], each['service_end_at'], times)}"
    if "lowers" in line:
        yield f"lowers {line['lowers']}"
    if line["late"]:
        yield "LATE"
    yield f"period {_period(line['service_start_at'], line['service_end_at'], times)}"
    yield f"billed {times.minute(line['invoice_at'])}"
    if line["quantity_before"] or line["billed_before_minor"]:
        owed, before = (money.to_text(line[name], currency) for name in ("owed_minor", "billed_before_minor"))
        yield f"{owed} owed − {before} billed before for {line['quantity_before']}"
    yield line["license"]


def _sums(invoice: Document) -> Iterator[Row]:
    """Taxes, and what of the total is met by money that is here already; nothing where it is none of this."""
    currency = invoice["currency"]

    def row(text: str, detail: str, amount_minor: int) -> Row:
        amount = f"{money.to_text(amount_minor, currency)} {currency}"
        return Row(text=text, detail=detail, quantity="", amount=amount)

    for tax in invoice.get("taxes", ()):
        base = money.to_text(tax["base_minor"], currency)
        of = f"credited of {tax['lowers']}" if "lowers" in tax else "rounded once"
        yield row(f"{tax['name']}: {tax['percent']} % of {base} {currency}", of, tax["tax_minor"])
    if "due" in invoice:
        yield row("Total", "lines and taxes", invoice["total_minor"])
    for use in invoice.get("credits", ()):
        back = use["amount_minor"] < 0
        text = "Given back to a prepaid credit" if back else "Paid from a prepaid credit"
        yield row(text, use["credit"], -use["amount_minor"])
    if invoice.get("balance_minor"):
        text = "Added to your balance" if invoice["balance_minor"] < 0 else "Taken from your balance"
        yield row(text, "of credit notes", -invoice["balance_minor"])


def _beside(beside: Document, times: LocalTimes) -> Row:
    """Units that are in no sum. They are not added up here: they are not of one kind."""
    counts = {name: beside.get(name, 0) for name in _BESIDE}
    used = _period(beside["service_start_at"], beside["service_end_at"], times)
    return Row(
        text=f"Not charged: {beside['model']}, per {beside['unit']}",
        detail=f"period {used} · {beside['license']}",
        quantity=", ".join(f"{count} {name}" for name, count in counts.items() if count),
    )
