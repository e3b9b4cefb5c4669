"""`meterkit-server reconcile`."""

import csv
import json
import sys

import click

from licensing_server import shell
from licensing_server.pages import Document
from licensing_server.reconciliation import service, sheet
from licensing_server.reconciliation.service import Asked, Reading
from meterkit.errors import CODES

_FIGURES = ("granted", "reported", "over_limit", "unsettled", "quarantined", "dismissed", "repeated", "exposure")
_BOUNDLESS = "no limit"


@click.command("reconcile", cls=shell.Command)
@click.option("--period", default=None, help="2026, 2026-01 or 2026-01-31; days of the customer, or UTC.")
@click.option("--from", "from_at", type=shell.INSTANT, default=None, help="Or from this instant on,")
@click.option("--to", "to_at", type=shell.INSTANT, default=None, help="and before this one.")
@click.option("--customer", default=None, help="Of this customer only.")
@click.option("--license", "license_id", default=None, help="Of this license only.")
@click.option("--devices", "by_device", is_flag=True, help="Print each device, too.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a row for each device and meter, for a spreadsheet.")
@shell.pass_shell
def reconcile(
    sh: shell.Shell,
    *,
    period: str | None,
    from_at: int | None,
    to_at: int | None,
    customer: str | None,
    license_id: str | None,
    by_device: bool,
    as_csv: bool,
) -> None:
    """State what was granted, reported and is still out in a period, and whether it adds up.

    Exit status 1 if what devices signed is not what is counted.
    """
    asked = Asked(period=period, from_at=from_at, to_at=to_at, customer=customer, license_id=license_id)
    with service.reading(sh.server(), asked) as reading:
        if as_csv:
            summary = _print_csv(reading)
        elif sh.as_json:
            summary = _print_json(reading)
        else:
            summary = _print_tables(sh, reading, by_device=by_device)
    if not summary["conservation"]["holds"]:
        click.echo(f"{shell.PROGRAM}: {CODES[service.BROKEN].sentence} [{service.BROKEN}]", err=True)
        raise click.exceptions.Exit(1)


def _print_csv(reading: Reading) -> Document:
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow(sheet.COLUMNS)
    for line in reading.lines:
        writer.writerows(sheet.rows(reading.head, line))
    return reading.summarize()


def _print_json(reading: Reading) -> Document:
    """Print the document that the API answers, line by line: a fleet need not fit into memory."""
    click.echo('{"items": [', nl=False)
    for number, line in enumerate(reading.lines):
        click.echo(("," if number else "") + json.dumps(line.to_document(), ensure_ascii=False))
    summary = reading.summarize()
    holds = summary["conservation"]["holds"]
    rest = {
        **reading.head,
        "holds": holds,
        "code": None if holds else service.BROKEN,
        "summary": summary,
        "next": None,
    }
    click.echo("], " + json.dumps(rest, ensure_ascii=False)[1:])
    return summary


def _print_tables(sh: shell.Shell, reading: Reading, *, by_device: bool) -> Document:
    head = reading.head
    first, last, known = (sheet.instant(head[name]) for name in ("from", "to", "known_at"))
    click.echo(f"From {first} to {last}, as known at {known}")
    for line in reading.lines:
        if by_device:
            document = line.to_document()
            click.echo(f"\n{document['license']}  {document['device']}  {_reported(document['coverage'])}")
            _print_meters(sh, document["meters"])
    summary = reading.summarize()
    for each in summary["licenses"]:
        coverage = each["coverage"]
        click.echo(f"\n{each['license']}  {each['customer']}  {_of(coverage, head)}")
        _print_meters(sh, each["meters"])
    _print_end(sh, summary, head)
    return summary


def _of(coverage: Document, head: Document) -> str:
    counted = f"{coverage['reported']} of {coverage['expected']} devices"
    return f"{counted} have reported through {sheet.instant(head['through'])}"


def _reported(coverage: Document) -> str:
    if coverage["through"] is None:
        return "has not reported"
    return f"has reported through {sheet.instant(coverage['through'])}"


def _print_meters(sh: shell.Shell, meters: list[Document]) -> None:
    if not meters:
        return
    shown = [
        {
            **each,
            "granted": _BOUNDLESS if each["granted_unlimited"] else each["granted_units"],
            "exposure": _exposure(each),
        }
        for each in meters
    ]
    sh.show_list({"items": shown}, ("model", "unit", *_FIGURES))


def _exposure(meter: Document) -> str:
    if meter["exposure_unbounded"]:
        return _BOUNDLESS
    past = meter["exposure_past_grace"]
    return f"{meter['exposure']}" + (f", {past} past grace" if past else "")


def _print_end(sh: shell.Shell, summary: Document, head: Document) -> None:
    coverage = summary["coverage"]
    click.echo(f"\nIn all: {_of(coverage, head)}")
    if coverage["missing"]:
        click.echo("\nHave not:")
        missing = [{**each, "through_at": each["through"]} for each in coverage["missing"]]
        columns = ("device", "license", "state", "through_at", "seen_at", "sdk", "runtime")
        sh.show_list({"items": missing}, columns)
    if summary["exceptions"]:
        click.echo("\nExceptions:")
        sh.show_list({"items": summary["exceptions"]}, ("kind", "open", "acknowledged", "resolved"))
    found = summary["conservation"]
    click.echo(f"\nSigned by devices, ever   {found['signed']}")
    click.echo(f"accepted                  {found['accepted']}")
    click.echo(f"quarantined               {found['quarantined']}")
    click.echo(f"dismissed                 {found['dismissed']}")
    click.echo(f"repeated                  {found['repeated']}")
    click.echo("It adds up." if found["holds"] else "It does not add up:")
    if found["differences"]:
        became = ("accepted", "quarantined", "dismissed", "repeated")
        sh.show_list({"items": found["differences"]}, ("device", "model", "unit", "signed", *became))
    for license_id in found["wrong_sums"]:
        click.echo(f"{license_id}: its total is not the sum of its devices'")


groups: list[click.Command] = [reconcile]
