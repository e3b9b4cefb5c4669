"""How invoices leave the house: as PDF, HTML and CSV."""

import base64
import csv
import hashlib
import io
import json
import re
from decimal import Decimal
from html.parser import HTMLParser

import numpy as np
import pypdfium2
import pytest
import zxingcpp
from account_ways import credit, falling, tax
from billing_fleet import FEBRUARY, MARCH, at
from fleet import Api
from starlette.testclient import TestClient

from licensing_server.app import create_app
from licensing_server.billing import disputing, outputs, settling
from licensing_server.billing.rendering import focus, html, pdf, sheets
from meterkit import evidence
from meterkit.terminal import local_times

HEBREW = "\u05d7\u05d1\u05e8\u05d4"
ARABIC = "\u0634\u0631\u0643\u0629"
NAMES = (
    "<script>alert(1)</script> & \"Sons\" 'n' **Co** {nb}",
    f"{HEBREW} 12 Ltd",
    f"{ARABIC} GmbH",
    "\U0001f600 \u26c4 \u6f22\u5b57 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "W" * 300,
    "wide words " * 27,
    "evil\u202e\u2066turn\nnext\tline\x01\x7f",
    "=HYPERLINK(1)",
    "\u0e01\u0301\u0301\ufffe\U0010ffff\ue000",
)


@pytest.fixture
def api(biller):
    with TestClient(create_app(biller.server), raise_server_exceptions=False) as client:
        yield Api(client, biller.made.api_key)


def drafted(biller) -> dict:
    """A draft of January's usage and a fee."""
    license_id = biller.grant(plan=biller.plan_of(biller.calls("0.01"), biller.fee("49.00", due="advance")))
    biller.use(biller.device(license_id), 150, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    return biller.run()[0]


def line(number: int = 1, **changed) -> dict:
    return {
        "license": "lic_1", "charge": "calls", "plan": "plan_1", "version": 1, "kind": "measured",
        "service_start_at": at("2026-01-01"), "service_end_at": FEBRUARY, "share": "1",
        "description": f"calls-{number}: mul, per call", "quantity": number, "quantity_before": 0,
        "owed_minor": number, "billed_before_minor": 0, "amount_minor": number, "late": False, "records": [],
        "amount": f"0.{number:02}", "invoice_at": FEBRUARY,
    } | changed  # fmt: skip


def document(*lines: dict, **changed) -> dict:
    """An invoice's document, as it is stored."""
    return {
        "v": 1, "id": "inv_1", "number": "INV-000007", "customer": "cus_1", "customer_name": "Buyer",
        "currency": "EUR", "run": {"number": 3, "cut_off": FEBRUARY, "acceptance_max": 5},
        "finalized_at": FEBRUARY + 60, "lines": list(lines or (line(),)), "beside": [], "total_minor": 1,
        "total": "0.01", "evidence": hashlib.sha256(b"parts").hexdigest(), "state": "finalized",
        "kind": "invoice",
        "created_at": FEBRUARY,
    } | changed  # fmt: skip


def drawn(invoice: dict) -> bytes:
    return pdf.draw(sheets.lay_out(invoice, seller="Vendor", times=local_times(invoice)))


def written(invoice: dict) -> str:
    return html.write(sheets.lay_out(invoice, seller="Vendor", times=local_times(invoice))).decode()


def texts(data: bytes) -> list[str]:
    """The text of each page, by the reader that browsers have."""
    with pypdfium2.PdfDocument(data) as read:
        return [page.get_textpage().get_text_range() for page in read]


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def codes(data: bytes) -> list[list[str]]:
    """What a camera reads from each page."""
    with pypdfium2.PdfDocument(data) as read:
        images = [page.render(scale=3, grayscale=True).to_numpy() for page in read]
    return [[code.text for code in zxingcpp.read_barcodes(np.ascontiguousarray(image))] for image in images]


class Shown(HTMLParser):
    """What a browser shows of a page, and of what elements and attributes the page is made."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements, self.attributes = "", set(), {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data):
        self.text += data


def test_a_pdf_holds_every_line_total_period_and_the_digest_in_text_and_as_a_code(biller):
    final = biller.finalize(drafted(biller)["id"])
    made = outputs.as_pdf(biller.server, final["id"])
    assert (made.name, made.media_type) == ("INV-000001.pdf", "application/pdf")
    (text,) = texts(made.data)
    assert len(final["lines"]) == 3  # usage, January's fee, and February's in advance
    for each in final["lines"]:
        assert each["description"] in text
        assert f"{each['amount']} EUR" in text
    assert "period 2026-01-01 00:00 – 2026-02-01 00:00" in text
    assert "billed 2026-02-01 00:00" in text
    assert f"Total {final['total']} EUR" in flat(text)
    for known in ("Invoice INV-000001", "page 1 of 1", biller.customer, final["customer_name"], final["evidence"]):
        assert known in text
    assert biller.server.issuer in text
    assert "DRAFT" not in text
    assert codes(made.data) == [[final["evidence"]]]


def test_the_same_invoice_gives_the_same_bytes_at_any_time(biller):
    final = biller.finalize(drafted(biller)["id"])
    ways = (outputs.as_pdf, outputs.as_html, outputs.as_csv)
    first = [way(biller.server, final["id"]) for way in ways]
    biller.clock.now += 86_400
    biller.reopen()
    assert [way(biller.server, final["id"]) for way in ways] == first
    assert b"D:20260131230000" in first[0].data


@pytest.mark.parametrize(("lines", "pages"), [(1, 1), (30, 1), (31, 2), (61, 3)])
def test_thirty_lines_make_a_page(lines, pages):
    invoice = document(*(line(number) for number in range(1, lines + 1)))
    found = texts(drawn(invoice))
    assert len(found) == pages
    for number, text in enumerate(found, start=1):
        assert f"page {number} of {pages}" in text
        assert "Invoice INV-000007" in text
        assert ("Total" in text, invoice["evidence"] in text) == (number == pages, number == pages)
    shown = "\n".join(found)
    assert all(f"calls-{number}: mul" in shown for number in range(1, lines + 1))
    assert [bool(read) for read in codes(drawn(invoice))] == [False] * (pages - 1) + [True]
    assert written(invoice).count("<section>") == pages


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_is_drawn_and_stays_a_name(name):
    invoice = document(customer_name=name)
    (text,) = texts(drawn(invoice))
    for known in ("0.01 EUR", "page 1 of 1", invoice["evidence"], "calls-1: mul, per call"):
        assert known in text
    shown = Shown(written(invoice))
    assert name in shown.text
    assert shown.elements <= {
        *("html", "head", "meta", "title", "style", "body", "section", "h1", "dl", "dt", "dd", "bdi", "table"),
        *("thead", "tbody", "tr", "th", "td", "br", "small", "p", "svg", "path", "code", "footer"),
    }
    assert shown.attributes.keys() <= {"lang", "charset", "class", "viewbox", "shape-rendering", "d"}


def test_what_the_font_has_is_drawn_and_what_it_has_not_is_replaced_visibly():
    (text,) = texts(drawn(document(customer_name=f"{NAMES[0]} {HEBREW} \U0001f600")))
    assert NAMES[0] in flat(text)
    assert HEBREW in text
    assert "\ufffd" not in text  # the face is drawn, though this reader does not tell it
    (text,) = texts(drawn(document(customer_name="a\u6f22\u202eb\nc")))
    assert "a\ufffd\ufffdb\ufffdc" in text


def test_a_long_name_is_there_to_its_end():
    words = " ".join(f"word{number}" for number in range(40))
    (text,) = texts(drawn(document(customer_name=words)))
    assert words in flat(text)


def test_an_endless_description_is_cut_with_an_ellipsis_and_leaves_its_amount_alone():
    (text,) = texts(drawn(document(line(description="d" * 2_000))))
    assert "ddd…" in text
    assert "0.01 EUR" in text


@pytest.mark.parametrize(("currency", "amount"), [("JPY", "-1230"), ("EUR", "-12.30"), ("KWD", "-1.230")])
def test_amounts_have_their_currencys_decimals(currency, amount):
    invoice = document(line(amount=amount, amount_minor=-1230), currency=currency, total=amount, total_minor=-1230)
    (text,) = texts(drawn(invoice))
    assert text.count(f"{amount} {currency}") == 2
    assert Shown(written(invoice)).text.count(f"{amount} {currency}") == 2
    (row,) = csv.DictReader(io.StringIO(focus.write(invoice, seller="V", units={}).decode()))
    assert (row["BilledCost"], row["BillingCurrency"]) == (amount, currency)


def test_a_late_line_says_so_and_what_was_billed_before():
    late = line(late=True, quantity=666, quantity_before=333, owed_minor=666, billed_before_minor=333)
    for text in (texts(drawn(document(late)))[0], Shown(written(document(late))).text):
        assert "LATE · period" in text
        assert "6.66 owed − 3.33 billed before for 333" in text
    assert "ESTIMATED · period" in texts(drawn(document(line(kind="estimated"))))[0]


def test_units_that_are_not_charged_stand_beside_the_lines():
    beside = {
        "license": "lic_1", "service_start_at": at("2026-01-01"), "service_end_at": FEBRUARY, "model": "mul",
        "unit": "call", "unpriced": 0, "unsettled": 7, "quarantined": 0, "dismissed": 2,
    }  # fmt: skip
    for text in (texts(drawn(document(beside=[beside])))[0], Shown(written(document(beside=[beside]))).text):
        assert "Not charged: mul, per call" in text
        assert "7 unsettled, 2 dismissed" in text


def test_a_draft_says_that_it_is_one_on_every_page_and_is_no_row_of_costs(api, biller):
    draft = drafted(biller)
    made = outputs.as_pdf(biller.server, draft["id"])
    assert made.name == f"draft-{draft['id']}.pdf"
    assert sheets.BANNERS["draft"] in texts(made.data)[0]
    assert codes(made.data) == [[]]
    many = document(*(line(number) for number in range(1, 32)), state="draft", number=None, evidence=None)
    assert [sheets.BANNERS["draft"] in text for text in texts(drawn(many | {"finalized_at": None}))] == [
        True,
        True,
    ]
    assert written(many | {"finalized_at": None}).count(sheets.BANNERS["draft"]) == 2
    assert api.get(f"/v1/invoices/{draft['id']}/csv", expect=409)["code"] == "state_conflict"


def test_the_page_is_sent_under_a_policy_that_allows_nothing_but_its_own_style(api, biller):
    final = biller.finalize(drafted(biller)["id"])
    answer = api.client.get(f"/v1/invoices/{final['id']}/html", headers=api.headers)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert not {"script-src", "unsafe-inline", "img-src"} & set(re.split(r"[\s;']+", policy))
    assert not re.search(
        r"https?:|\bon\w+=|style=", answer.text.replace(style, "").replace(biller.server.issuer, "")
    )


def test_a_camera_reads_the_code_of_the_page():
    invoice = document()
    (side,) = re.findall(r'viewBox="0 0 (\d+) \1"', written(invoice))
    image = np.full((int(side), int(side)), 255, np.uint8)
    for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", written(invoice)):
        image[int(y), int(x) : int(x) + int(length)] = 0
    (code,) = zxingcpp.read_barcodes(np.kron(image, np.ones((4, 4), np.uint8)))
    assert code.text == invoice["evidence"]


def test_the_lines_in_focus_columns(api, biller):
    final = biller.finalize(drafted(biller)["id"])
    answer = api.client.get(f"/v1/invoices/{final['id']}/csv", headers=api.headers)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert rows[0].keys() >= {
        *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
        *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
        *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost"),
        *("PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
    }  # all that version 1.2 makes mandatory
    usage, january, february = sorted(
        rows, key=lambda row: (row["ChargeCategory"] != "Usage", row["ChargePeriodStart"])
    )
    assert (usage["BilledCost"], usage["ConsumedQuantity"], usage["ConsumedUnit"]) == ("1.50", "150", "call")
    assert (usage["ChargePeriodStart"], usage["ChargePeriodEnd"]) == (
        "2025-12-31T23:00:00Z",
        "2026-01-31T23:00:00Z",
    )
    assert (usage["ChargeClass"], usage["ChargeFrequency"]) == ("", "Usage-Based")
    assert [row["ChargeCategory"] for row in (january, february)] == ["Purchase", "Purchase"]
    assert [row["PricingUnit"] for row in (january, february)] == ["Licenses", "Licenses"]
    assert {(row["BillingPeriodStart"], row["BillingPeriodEnd"]) for row in rows} == {
        ("2025-12-31T23:00:00Z", february["ChargePeriodEnd"])
    }
    assert {(row["InvoiceId"], row["BillingAccountId"]) for row in rows} == {("INV-000001", biller.customer)}


def test_a_late_line_is_a_correction_of_the_period_in_which_it_was_used(biller):
    device = biller.device(biller.grant())
    biller.use(device, 333, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    biller.finalize(biller.run()[0]["id"])
    biller.use(device, 100, at("2026-01-06"))
    biller.clock.now = MARCH
    final = biller.finalize(biller.run()[0]["id"])
    (row,) = csv.DictReader(io.StringIO(outputs.as_csv(biller.server, final["id"]).data.decode(), newline=""))
    assert (row["ChargeClass"], row["BilledCost"], row["PricingQuantity"]) == ("Correction", "1.00", "100")
    assert row["ChargePeriodEnd"] == "2026-01-31T23:00:00Z"
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-01-31T23:00:00Z", "2026-02-28T23:00:00Z")


def test_no_cell_is_a_formula_and_numbers_below_zero_stay_numbers():
    below = line(amount_minor=-5, description="=1+1", license="@lic", quantity=1, quantity_before=4)
    invoice = document(below, customer_name="+1")
    (row,) = csv.DictReader(io.StringIO(focus.write(invoice, seller="-x", units={}).decode(), newline=""))
    formulas = {name: value for name, value in row.items() if value.startswith(("=", "+", "-", "@", "\t", "\r"))}
    costs = dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), "-0.05")
    assert formulas == costs | {"ConsumedQuantity": "-3", "PricingQuantity": "-3"}
    assert (row["BillingAccountName"], row["ChargeDescription"]) == ("'+1", "'=1+1")


def test_only_who_may_read_billing_gets_them_and_what_is_not_there_is_not_found(api, biller):
    final = biller.finalize(drafted(biller)["id"])
    other = api.post("/v1/api-keys", {"name": "other", "scopes": ["customers:read"]})["key"]
    for way in ("pdf", "html", "csv"):
        path = f"/v1/invoices/{final['id']}/{way}"
        assert api.client.get(path).status_code == 401
        assert api.client.get(path, headers={"authorization": f"Bearer {other}"}).status_code == 403
        answer = api.client.get(path, headers=api.headers)
        assert answer.status_code == 200
        assert f'filename="INV-000001.{way}"' in answer.headers["content-disposition"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert api.get(f"/v1/invoices/inv_none/{way}", expect=404)["code"] == "not_found"


def test_the_command_line_writes_the_same_files(biller, tmp_path):
    final = biller.finalize(drafted(biller)["id"])
    for way, make in (("pdf", outputs.as_pdf), ("html", outputs.as_html), ("csv", outputs.as_csv)):
        path = tmp_path / f"out.{way}"
        done = biller.invoke("--json", "invoice", way, final["id"], "--output", str(path))
        assert done.exit_code == 0, done.output
        data = make(biller.server, final["id"]).data
        assert path.read_bytes() == data
        assert json.loads(done.stdout) == {"file": str(path), "bytes": len(data)}


def test_no_member_of_an_invoice_is_left_out_unthought_of():
    """A new member must be drawn, or be added here: a PDF that is silent about a tax would be a wrong one."""
    drawn_or_meant = {
        *("v", "id", "number", "customer", "customer_name", "currency", "run", "finalized_at", "lines", "beside"),
        *("total_minor", "total", "evidence", "kind", "taxes", "credits", "balance_minor", "due_minor", "due"),
        *("replaces", "time_zone"),
    }
    assert set(evidence.INVOICE_MEMBERS._shapes) == drawn_or_meant


def settled(biller) -> dict[str, dict]:
    """An invoice of 100.00 at 19 % of which a credit pays 30.00, the credit note that lowers it, and both void."""
    tax(biller, "19")
    credit(biller, "30", starts_at=0)
    device = falling(biller)
    biller.use(device, 100, at("2026-01-05"))
    biller.clock.now = FEBRUARY
    invoice = biller.finalize(biller.run()[0]["id"])
    biller.use(device, 1, at("2026-01-06"))
    disputing.concede(biller.server, invoice["id"], line=1, amount="1", note="so")
    biller.clock.now += 60
    return {"invoice": invoice, "note": biller.finalize(biller.run()[0]["id"])}


def as_text(biller, invoice_id: str) -> tuple[str, str]:
    page = Shown(outputs.as_html(biller.server, invoice_id).data.decode()).text
    return flat(texts(outputs.as_pdf(biller.server, invoice_id).data)[0]), flat(page)


def costs(biller, invoice_id: str) -> list[dict]:
    data = outputs.as_csv(biller.server, invoice_id).data.decode()
    return list(csv.DictReader(io.StringIO(data, newline="")))


def test_a_taxed_invoice_shows_its_taxes_what_was_paid_ahead_and_what_is_due(biller):
    invoice = settled(biller)["invoice"]
    for text in as_text(biller, invoice["id"]):
        assert "Invoice INV-000001" in text
        assert "VAT: 19 % of 100.00 EUR" in text
        assert "19.00 EUR" in text
        assert "Paid from a prepaid credit" in text
        assert "-30.00 EUR" in text
        assert "119.00 EUR" in text
        assert "Total due 89.00 EUR" in text
        assert "VOID" not in text
    usage, vat = costs(biller, invoice["id"])
    assert (usage["BilledCost"], usage["ChargeCategory"]) == ("100.00", "Usage")
    assert (vat["BilledCost"], vat["ChargeCategory"], vat["ChargeClass"]) == ("19.00", "Tax", "")
    assert vat["ChargeDescription"] == "VAT: 19 % of 100.00"
    empty = ("SkuPriceId", "SkuId", "PricingQuantity", "PricingUnit", "ConsumedQuantity", "SubAccountId")
    assert {vat[name] for name in empty} == {""}
    assert (vat["ChargePeriodStart"], vat["ChargePeriodEnd"]) == (
        usage["ChargePeriodStart"],
        usage["ChargePeriodEnd"],
    )


def test_a_credit_note_shows_what_it_lowers_and_where_the_money_went(biller):
    """−49.50 and −1.00, and 19 % of it, 9.595: 9.60. Of 60.10 the credit gets its 30.00, the balance 30.10."""
    note = settled(biller)["note"]
    assert (note["total"], note["balance_minor"]) == ("-60.10", -3010)
    for text in as_text(biller, note["id"]):
        assert "Credit note CN-000001" in text
        assert "lowers INV-000001" in text
        assert "credited of INV-000001" in text
        assert "Given back to a prepaid credit" in text
        assert "Added to your balance" in text
        assert "30.10 EUR" in text
        assert "Total -60.10 EUR" in text
        assert "Total due" not in text
    rows = {row["x_Kind"]: row for row in costs(biller, note["id"])}
    assert {kind: row["BilledCost"] for kind, row in rows.items()} == {
        "measured": "-49.50",
        "concession": "-1.00",
        "tax": "-9.60",
    }
    assert {kind: row["ChargeCategory"] for kind, row in rows.items()} == {
        "measured": "Usage",
        "concession": "Credit",
        "tax": "Tax",
    }
    assert {(row["ChargeClass"], row["x_Lowers"], row["InvoiceId"]) for row in rows.values()} == {
        ("Correction", "INV-000001", "CN-000001")
    }
    assert (rows["concession"]["PricingQuantity"], rows["concession"]["ChargeFrequency"]) == ("", "One-Time")


def test_a_void_document_says_so_on_every_page_and_its_replacement_names_it(biller):
    made = settled(biller)
    for each in (made["note"], made["invoice"]):
        settling.void(biller.server, each["id"], note="wrong address")
        for text in as_text(biller, each["id"]):
            assert flat(sheets.BANNERS["void"]) in text
    biller.clock.now += 60
    again = biller.finalize(biller.run()[0]["id"])
    for text in as_text(biller, again["id"]):
        assert "CN-000001, INV-000001" in text
        assert "VOID" not in text


@pytest.mark.parametrize("currency", ["EUR", "JPY", "KWD"])
def test_costs_add_up_to_the_document_s_total(currency):
    taxes = [
        {"name": "=VAT", "percent": "19", "base_minor": 1230, "tax_minor": 234},
        {"name": "GST", "percent": "0", "base_minor": -30, "tax_minor": 0},
    ]
    lines = (line(amount_minor=1230), line(amount_minor=-30, kind="concession", lowers="INV-000001"))
    rows = list(
        csv.DictReader(
            io.StringIO(
                focus.write(document(*lines, currency=currency, taxes=taxes), seller="V", units={}).decode()
            )
        )
    )
    total = sum(Decimal(row["BilledCost"]) for row in rows)
    assert total == Decimal(1434).scaleb({"EUR": -2, "JPY": 0, "KWD": -3}[currency])
    assert rows[2]["ChargeDescription"].startswith("'=VAT: 19 %")


def test_an_invoice_that_credits_pay_whole_says_that_nothing_is_due():
    whole = document(due_minor=0, due="0.00", credits=[{"credit": "cred_1", "amount_minor": 1}])
    (text,) = texts(drawn(whole))
    assert "Total due 0.00 EUR" in flat(text)
