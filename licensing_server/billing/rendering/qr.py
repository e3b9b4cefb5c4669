"""The QR code of an invoice's evidence digest, as the bars that it is made of. Pure."""

from collections.abc import Iterator
from itertools import groupby

import segno

QUIET = 4  # modules of nothing around a code, as ISO/IEC 18004 asks for


def side(text: str) -> int:
    """How many modules wide and high the code of a text is, with its quiet zone."""
    return len(_matrix(text)) + 2 * QUIET


def bars(text: str) -> Iterator[tuple[int, int, int]]:
    """The dark bars of a text's code, in modules: from the left, from the top, and how long."""
    for y, row in enumerate(_matrix(text)):
        x = 0
        for dark, run in groupby(row):
            length = len(list(run))
            if dark:
                yield x + QUIET, y + QUIET, length
            x += length


def _matrix(text: str) -> tuple[bytearray, ...]:
    code = segno.make(text, error="m", micro=False, boost_error=False)
    return tuple(bytearray(module & 1 for module in row) for row in code.matrix)
