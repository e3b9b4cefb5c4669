"""An invoice's lines as rows of a FOCUS cost and usage dataset, version 1.2 (focus.finops.org). Pure.

All columns that FOCUS makes mandatory, those of the others that say something here, and our own, named `x_…`.
"""

import csv
import io
from collections.abc import Mapping

from licensing_server.pages import Document
from licensing_server.reconciliation.sheet import cell, instant
from meterkit import money

Units = Mapping[tuple[str, int, str], str]  # what a charge counts, by plan, version and charge

_CATEGORIES = {"measured": "Usage", "estimated": "Usage", "concession": "Credit"}  # all other kinds are purchases
_FREQUENCIES = {"Usage": "Usage-Based", "Purchase": "Recurring", "Credit": "One-Time"}


def write(invoice: Document, *, seller: str, units: Units) -> bytes:
    """Write a finalized document, a row for each line and one for each tax; the same one gives the same bytes.

    Costs add up to the document's total. What of it is met by prepaid credits or a balance is payment, and no row;
    nor are units that are not charged. What the customer or the vendor named can be no formula; amounts and
    quantities stay plain numbers, also below zero.
    """
    shared = _shared(invoice, seller)
    rows = [{**shared, **_line(line, invoice["currency"], units)} for line in invoice["lines"]]
    rows += [dict.fromkeys(rows[0], "") | shared | _tax(tax, invoice) for tax in invoice.get("taxes", ())]
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=sorted(rows[0], key=_place), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _place(column: str) -> tuple[bool, str]:
    return column.startswith("x_"), column


def _shared(invoice: Document, seller: str) -> dict[str, str | int]:
    """What is the same in every row."""
    start_at, end_at = _billing_period(invoice)
    return {
        "BillingAccountId": cell(invoice["customer"]),
        "BillingAccountName": cell(invoice["customer_name"]),
        "BillingCurrency": invoice["currency"],
        "BillingPeriodEnd": instant(end_at),
        "BillingPeriodStart": instant(start_at),
        "InvoiceId": cell(invoice["number"]),
        "InvoiceIssuerName": cell(seller),
        "ProviderName": cell(seller),
        "PublisherName": cell(seller),
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model licenses",
        "SubAccountType": "License",
        "x_EvidenceSha256": invoice["evidence"],
        "x_InvoiceFinalizedAt": instant(invoice["finalized_at"]),
    }


def _billing_period(invoice: Document) -> tuple[int, int]:
    """What the invoice bills: the periods of its lines in time; if all are late, from their end to its cut-off."""
    lines = [line for line in invoice["lines"] if not line["late"]]
    if lines:
        return min(line["service_start_at"] for line in lines), max(line["service_end_at"] for line in lines)
    cut_off = invoice["run"]["cut_off"]
    return min(cut_off, max(line["service_end_at"] for line in invoice["lines"])), cut_off


def _line(line: Document, currency: str, units: Units) -> dict[str, str | int]:
    category = _CATEGORIES.get(line["kind"], "Purchase")
    used = category == "Usage"
    quantity = line["quantity"] - line["quantity_before"]
    unit = units.get((line["plan"], line["version"], line["charge"]), "Units")
    price = f"{line['plan']}/{line['version']}/{line['charge']}"
    amount = money.to_text(line["amount_minor"], currency)
    return {
        "BilledCost": amount,
        "ChargeCategory": category,
        "ChargeClass": "Correction" if line["late"] or "lowers" in line else "",
        "ChargeDescription": cell(line["description"]),
        "ChargeFrequency": _FREQUENCIES[category],
        "ChargePeriodEnd": instant(line["service_end_at"]),
        "ChargePeriodStart": instant(line["service_start_at"]),
        "ConsumedQuantity": quantity if used else "",
        "ConsumedUnit": cell(unit) if used else "",
        "ContractedCost": amount,
        "EffectiveCost": amount,
        "ListCost": amount,
        "PricingQuantity": "" if category == "Credit" else quantity,
        "PricingUnit": "" if category == "Credit" else cell(unit),
        "SkuId": cell(f"{line['plan']}/{line['charge']}"),
        "SkuPriceId": cell(price),
        "SubAccountId": cell(line["license"]),
        "x_InvoicedAt": instant(line["invoice_at"]),
        "x_Kind": line["kind"],
        "x_Lowers": cell(line.get("lowers", "")),
    }


def _tax(tax: Document, invoice: Document) -> dict[str, str | int]:
    """A tax of the whole document: it is rounded once, and belongs to no line."""
    start_at, end_at = _billing_period(invoice)
    amount = money.to_text(tax["tax_minor"], invoice["currency"])
    base = money.to_text(tax["base_minor"], invoice["currency"])
    return {
        "BilledCost": amount,
        "ChargeCategory": "Tax",
        "ChargeClass": "Correction" if "lowers" in tax else "",
        "ChargeDescription": cell(f"{tax['name']}: {tax['percent']} % of {base}"),
        "ChargeFrequency": "One-Time",
        "ChargePeriodEnd": instant(end_at),
        "ChargePeriodStart": instant(start_at),
        "ContractedCost": amount,
        "EffectiveCost": amount,
        "ListCost": amount,
        "SubAccountType": "",
        "x_InvoicedAt": instant(invoice["run"]["cut_off"]),
        "x_Kind": "tax",
        "x_Lowers": cell(tax.get("lowers", "")),
    }
