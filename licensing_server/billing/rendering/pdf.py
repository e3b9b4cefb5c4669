"""A laid out invoice as a PDF. Pure: the same sheet gives the same bytes, under the same versions of libraries.

It is set in DejaVu Sans, which draws the Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic, Lao, N'Ko and
Tifinagh scripts, and many symbols. What it cannot draw is drawn as �, as is a control character: a name can
neither break a line nor turn the direction of what follows it.
"""

import datetime as dt
import unicodedata
from importlib import resources

from fpdf import FPDF
from fpdf.enums import Align, MethodReturnValue, WrapMode
from fpdf.fonts import TTFFont

from licensing_server.billing.rendering import qr
from licensing_server.billing.rendering.sheets import Row, Sheet

_FONT = "DejaVuSans"
_LEFT, _RIGHT, _WIDTH = 15.0, 195.0, 180.0  # millimeters, as all lengths here; A4
_HEAD_TOP, _TABLE_TOP, _ROW_HEIGHT = 12.0, 64.0, 6.1
_NAME_TOP, _NAME_BOTTOM, _HALF = 34.0, 59.0, 86.0
_END_TOP, _QR_SIDE, _FOOT_TOP = 250.0, 32.0, 285.0
_TEXT_COLUMN, _QUANTITY_COLUMN, _AMOUNT_COLUMN = 96.0, 42.0, 42.0
_LARGE, _NORMAL, _SMALL, _LEAST = 15.0, 8.0, 6.0, 4.5  # points
_GRAY = 90
_REPLACED = "\N{REPLACEMENT CHARACTER}"
_INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = {*"\u061c\u200e\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


class _Pen(FPDF):
    """Writes what fits where it is told to, and nothing that the font does not have."""

    def __init__(self) -> None:
        super().__init__(format="A4")
        self.set_auto_page_break(auto=False)
        self.set_margin(0)
        self.c_margin = 0.0
        self.str_alias_nb_pages = ""  # a name is no placeholder for the number of pages
        with resources.as_file(resources.files(__package__) / f"{_FONT}.ttf") as path:
            self.add_font(_FONT, fname=path)
        self.set_font(_FONT, size=_NORMAL)
        self.set_text_shaping(use_shaping_engine=True, features={"liga": False})
        font = self.fonts[_FONT.lower()]
        self._drawable = frozenset(font.cmap if isinstance(font, TTFFont) else ())

    def visible(self, text: str) -> str:
        """Replace what cannot be drawn by what shows that something is there."""
        return "".join(each if self._draws(each) else _REPLACED for each in text)

    def _draws(self, each: str) -> bool:
        hidden = each in _TURNING or unicodedata.category(each) in _INVISIBLE
        return not hidden and ord(each) in self._drawable

    def write_line(
        self, text: str, at: tuple[float, float], width: float, *, size: float = _NORMAL, align: Align = Align.L
    ) -> None:
        """Write one line: smaller where it is too wide, and cut, with an ellipsis, where that is not enough."""
        text = self.visible(text)
        self.set_font_size(size)
        while self.get_string_width(text) > width and self.font_size_pt > _LEAST:
            self.set_font_size(self.font_size_pt - 0.5)
        while self.get_string_width(text) > width:
            text = f"{text[: -2 - len(text) // 20]}…"
        self.set_xy(*at)
        self.cell(width, self.font_size * 1.2, text, align=align)

    def write_name(self, text: str, at: tuple[float, float], width: float, height: float) -> None:
        """Write a name over as many lines as it needs, smaller where they would be too many."""
        text = self.visible(text)
        self.set_font_size(_NORMAL)
        while self._write_wrapped(text, at, width, dry=True) > height and self.font_size_pt > _LEAST:
            self.set_font_size(self.font_size_pt - 0.5)
        self._write_wrapped(text, at, width, dry=False)

    def _write_wrapped(self, text: str, at: tuple[float, float], width: float, *, dry: bool) -> float:
        self.set_xy(*at)
        return float(
            self.multi_cell(  # type: ignore[arg-type]  # a height, as it is asked for
                width,
                self.font_size * 1.2,
                text,
                align=Align.L,
                wrapmode=WrapMode.WORD,
                dry_run=dry,
                output=MethodReturnValue.HEIGHT,
            )
        )


def draw(sheet: Sheet) -> bytes:
    """Draw an invoice, page by page."""
    pen = _Pen()
    pen.set_title(sheet.title)
    pen.set_author(sheet.seller)
    pen.set_producer("meterkit")
    pen.set_creation_date(dt.datetime.fromtimestamp(sheet.made_at, tz=dt.UTC))
    for number, rows in enumerate(sheet.pages, start=1):
        pen.add_page()
        _draw_head(pen, sheet)
        _draw_rows(pen, rows)
        if number == len(sheet.pages):
            _draw_end(pen, sheet)
        _draw_foot(pen, sheet, f"page {number} of {len(sheet.pages)}")
    return bytes(pen.output())


def _draw_head(pen: _Pen, sheet: Sheet) -> None:
    pen.write_line(sheet.title, (_LEFT, _HEAD_TOP), _HALF, size=_LARGE)
    if sheet.banner is not None:
        pen.write_line(sheet.banner, (_LEFT, _HEAD_TOP + 8), _WIDTH)
    pen.write_line("From", (_LEFT, 25), 12, size=_SMALL)
    pen.write_line(sheet.seller, (_LEFT + 12, 25), _HALF - 12)
    pen.write_line("To", (_LEFT, 30), 12, size=_SMALL)
    pen.write_line(sheet.buyer[1], (_LEFT + 12, 30), _HALF - 12)
    pen.write_name(sheet.buyer[0], (_LEFT, _NAME_TOP), _HALF, _NAME_BOTTOM - _NAME_TOP)
    for place, (label, text) in enumerate(sheet.facts):
        y = 25 + 5 * place
        pen.write_line(label, (_RIGHT - _HALF, y), 22, size=_SMALL)
        pen.write_line(text, (_RIGHT - _HALF + 22, y), _HALF - 22)


def _draw_rows(pen: _Pen, rows: tuple[Row, ...]) -> None:
    top = _TABLE_TOP - 4
    pen.write_line("Line", (_LEFT, top), _TEXT_COLUMN, size=_SMALL)
    pen.write_line("Quantity", (_LEFT + _TEXT_COLUMN, top), _QUANTITY_COLUMN - 3, size=_SMALL, align=Align.R)
    pen.write_line("Amount", (_RIGHT - _AMOUNT_COLUMN, top), _AMOUNT_COLUMN, size=_SMALL, align=Align.R)
    pen.set_draw_color(_GRAY)
    pen.line(_LEFT, _TABLE_TOP - 0.5, _RIGHT, _TABLE_TOP - 0.5)
    for place, row in enumerate(rows):
        _draw_row(pen, row, _TABLE_TOP + place * _ROW_HEIGHT)


def _draw_row(pen: _Pen, row: Row, y: float) -> None:
    free = 0.0 if row.amount else _AMOUNT_COLUMN
    quantity_at = _LEFT + _TEXT_COLUMN
    pen.write_line(row.text, (_LEFT, y), _TEXT_COLUMN - 3)
    pen.write_line(row.quantity, (quantity_at, y), _QUANTITY_COLUMN + free - 3, align=Align.R)
    if row.amount:
        pen.write_line(row.amount, (_RIGHT - _AMOUNT_COLUMN, y), _AMOUNT_COLUMN, align=Align.R)
    pen.set_text_color(_GRAY)
    pen.write_line(row.detail, (_LEFT, y + 3.2), _WIDTH, size=_SMALL)
    pen.set_text_color(0)


def _draw_end(pen: _Pen, sheet: Sheet) -> None:
    pen.line(_LEFT, _END_TOP - 1, _RIGHT, _END_TOP - 1)
    label, total = sheet.total
    pen.write_line(label, (_RIGHT - _HALF, _END_TOP), 28, size=_LARGE)
    pen.write_line(total, (_RIGHT - _HALF + 28, _END_TOP), _HALF - 28, size=_LARGE, align=Align.R)
    if sheet.digest is None:
        return
    _draw_code(pen, sheet.digest, (_LEFT, _END_TOP))
    beside = _LEFT + _QR_SIDE + 3
    pen.write_line("SHA-256 of the evidence", (beside, _END_TOP + 20), _WIDTH, size=_SMALL)
    pen.write_line(sheet.digest, (beside, _END_TOP + 24), _RIGHT - beside)


def _draw_code(pen: _Pen, text: str, at: tuple[float, float]) -> None:
    module = _QR_SIDE / qr.side(text)
    pen.set_fill_color(0)
    for x, y, length in qr.bars(text):
        pen.rect(at[0] + x * module, at[1] + y * module, length * module, module, style="F")


def _draw_foot(pen: _Pen, sheet: Sheet, page: str) -> None:
    pen.write_line(sheet.banner or sheet.title, (_LEFT, _FOOT_TOP), _HALF, size=_SMALL)
    pen.write_line(page, (_RIGHT - _HALF, _FOOT_TOP), _HALF, size=_SMALL, align=Align.R)
