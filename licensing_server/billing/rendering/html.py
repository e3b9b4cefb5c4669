"""A laid out invoice as a web page: no script, nothing loaded from elsewhere, everything escaped. Pure."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape

from licensing_server.billing.rendering import qr
from licensing_server.billing.rendering.sheets import Row, Sheet

_STYLE = """
@page { size: A4; margin: 12mm 15mm }
body { font: 9pt "DejaVu Sans", sans-serif; margin: 0 auto; max-width: 180mm }
section { break-after: page; padding: 1em 0 }
section:last-child { break-after: auto }
h1 { font-size: 15pt; margin: 0 }
strong { display: block }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1em; overflow-wrap: anywhere }
dd { margin: 0 }
table { border-collapse: collapse; table-layout: fixed; width: 100% }
tr { break-inside: avoid }
th, td { border-top: 1px solid #999; font-weight: normal; overflow-wrap: anywhere; padding: 1px 4px;
  text-align: left; vertical-align: top }
th:nth-child(n+2), td:nth-child(n+2) { text-align: right; width: 20% }
small { color: #555; font-size: 7pt }
p.total { font-size: 15pt; text-align: right }
svg { height: 32mm; width: 32mm }
code { overflow-wrap: anywhere }
footer { color: #555; text-align: right }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
)


def write(sheet: Sheet) -> bytes:
    """Write an invoice as a page for a browser, to be sent with `SECURITY_POLICY`. It prints page for page."""
    return "".join(_parts(sheet)).encode()


def _parts(sheet: Sheet) -> Iterator[str]:
    yield f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(sheet.title)}</title>\n'
    yield f"<style>{_STYLE}</style></head><body>\n"
    for number, rows in enumerate(sheet.pages, start=1):
        yield from _page(sheet, rows, number)
    yield "</body></html>\n"


def _page(sheet: Sheet, rows: tuple[Row, ...], number: int) -> Iterator[str]:
    yield f"<section><h1>{_text(sheet.title)}</h1>\n"
    if sheet.banner is not None:
        yield f"<strong>{_text(sheet.banner)}</strong>\n"
    name, customer = sheet.buyer
    yield "<dl>"
    for label, text in (("From", sheet.seller), ("To", name), ("Customer", customer), *sheet.facts):
        yield f"<dt>{label}</dt><dd>{_text(text)}</dd>"
    yield "</dl>\n<table><thead><tr><th>Line</th><th>Quantity</th><th>Amount</th></tr></thead><tbody>\n"
    for row in rows:
        yield f"<tr><td>{_text(row.text)}<br><small>{_text(row.detail)}</small></td>"
        yield f"<td>{_text(row.quantity)}</td><td>{_text(row.amount)}</td></tr>\n"
    yield "</tbody></table>\n"
    if number == len(sheet.pages):
        yield from _end(sheet)
    yield f"<footer>page {number} of {len(sheet.pages)}</footer></section>\n"


def _end(sheet: Sheet) -> Iterator[str]:
    yield f'<p class="total">{sheet.total[0]} {_text(sheet.total[1])}</p>\n'
    if sheet.digest is not None:
        yield f"<p>{_code(sheet.digest)}<br><small>SHA-256 of the evidence</small> "
        yield f"<code>{_text(sheet.digest)}</code></p>\n"


def _code(text: str) -> str:
    side = qr.side(text)
    bars = "".join(f"M{x} {y}h{length}v1h-{length}z" for x, y, length in qr.bars(text))
    return f'<svg viewBox="0 0 {side} {side}" shape-rendering="crispEdges"><path d="{bars}"/></svg>'


def _text(text: str) -> str:
    """Escape a text, and keep its direction to itself."""
    return f"<bdi>{escape(text)}</bdi>" if not text.isascii() else escape(text)
