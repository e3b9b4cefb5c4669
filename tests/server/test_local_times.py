"""Invoices for people are by their customer's clock, whose zone is named once; JSON stays UTC."""

import datetime as dt
import json
import re

import pypdfium2
import pytest
from billing_fleet import at
from click.testing import CliRunner

from licensing_server.billing import outputs, service
from meterkit.cli import meterkit
from meterkit.local_times import UTC
from meterkit.terminal import local_times

NOON = int(dt.datetime(2026, 3, 1, 11, tzinfo=dt.UTC).timestamp())


def invoiced(biller, zone: str, used_at: int, until: int, *, interval: str = "month") -> dict:
    """The invoice of a new customer who lives in a zone, and used one call."""
    customer = biller.add_customer(zone)
    biller.clock.now = min(biller.clock.now, used_at - 3_600)
    plan = biller.plan_of(biller.calls("1"), interval=interval)
    device = biller.device(biller.grant(customer=customer, plan=plan, starts_at=used_at - 7_200))
    biller.use(device, 1, used_at)
    biller.clock.now = until
    (draft,) = biller.run(cut_off=until, customer=customer)
    return biller.finalize(draft["id"])


def shown(biller, invoice: dict) -> tuple[str, str, str]:
    """What a PDF, a page, and an explanation say."""
    page = outputs.as_html(biller.server, invoice["id"]).data.decode()
    with pypdfium2.PdfDocument(outputs.as_pdf(biller.server, invoice["id"]).data) as read:
        drawn = "\n".join(each.get_textpage().get_text_range() for each in read)
    told = "\n".join(service.explain(biller.server, invoice["id"], 1))
    return re.sub(r"\s+", " ", drawn), re.sub(r"<[^>]+>", " ", page), told


@pytest.mark.parametrize(
    ("zone", "date"),
    [("Pacific/Kiritimati", "2026-03-02 01:00"), ("Pacific/Pago_Pago", "2026-03-01 00:00")],
)
def test_on_both_sides_of_the_date_line(biller, zone, date):
    """One instant is two days: 2026-03-01 11:00 UTC. A license that starts on the 10th by its clock."""
    there = local_times({"time_zone": zone}).zone
    invoice = invoiced(biller, zone, at("2026-01-10T12:00", there), NOON)
    drawn, page, told = shown(biller, invoice)
    for text in (drawn, page):
        assert f"Date {date}" in re.sub(r"\s+", " ", text)
        assert "period 2026-01-10 00:00 – 2026-02-10 00:00" in text
        assert f"billed {date}" in text
        assert text.count(zone) == 1
        assert "UTC" not in text
    assert f"for 2026-01-10 00:00:00 – 2026-02-10 00:00:00 ({zone})," in told
    assert "records from 2026-01-10 12:00:00 to 2026-01-10 12:00:00" in told
    assert told.count(zone) == 1
    assert "UTC" not in told
    assert invoice["finalized_at"] == invoice["run"]["cut_off"] == NOON
    assert invoice["time_zone"] == zone
    assert biller.audit(invoice["id"]).findings == ()


@pytest.mark.parametrize(
    ("day", "following", "hours"), [("2026-03-29", "2026-03-30", 23), ("2026-10-25", "2026-10-26", 25)]
)
def test_a_day_of_23_or_25_hours_is_from_midnight_to_midnight(biller, day, following, hours):
    invoice = invoiced(biller, "Europe/Berlin", at(f"{day}T12:00"), at(f"{following}T01:00"), interval="day")
    (line,) = invoice["lines"]
    assert line["service_end_at"] - line["service_start_at"] == hours * 3_600
    drawn, page, told = shown(biller, invoice)
    assert f"period {day} 00:00 – {following} 00:00" in drawn
    assert f"period {day} 00:00 – {following} 00:00" in page
    assert f"for {day} 00:00:00 – {following} 00:00:00 (Europe/Berlin)" in told


def test_a_time_that_comes_twice_says_which_one_it_is():
    berlin = local_times({"time_zone": "Europe/Berlin"})
    first, second = (at("2026-10-25T02:30") + late for late in (0, 3_600))
    assert [berlin.minute(each) for each in (first, second)] == [
        "2026-10-25 02:30 (+0200)",
        "2026-10-25 02:30 (+0100)",
    ]
    assert berlin.second(first - 3_600) == "2026-10-25 01:30:00"
    assert berlin.minute(second + 3_661) == "2026-10-25 03:31:01"


@pytest.mark.parametrize("zone", ["Nowhere/Atall", "../../etc/passwd", "Europe", "/etc/passwd", "a\x00b", ""])
def test_a_zone_that_is_not_known_here_is_utc_s(zone):
    assert local_times({"time_zone": zone}) == UTC
    assert local_times({}).name == UTC.name


def test_evidence_is_explained_by_the_same_clock(biller, tmp_path):
    invoice = invoiced(biller, "Asia/Tokyo", at("2026-01-10T12:00"), NOON + 20 * 86_400)
    number, data = service.show_evidence(biller.server, invoice["id"])
    path = tmp_path / f"{number}.zip"
    path.write_bytes(data)
    ran = CliRunner().invoke(meterkit, ["explain", str(path), "--line", "1"])
    assert ran.exit_code == 0, ran.output
    assert ran.output.splitlines() == service.explain(biller.server, invoice["id"], 1)
    assert "00:00:00 (Asia/Tokyo)" in ran.output
    listed = biller.invoke("--json", "invoice", "show", invoice["id"])
    assert json.loads(listed.stdout)["lines"][0]["service_start_at"] == invoice["lines"][0]["service_start_at"]
