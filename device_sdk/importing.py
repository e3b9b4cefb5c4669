"""Importing without looking for garbage meanwhile: a tenth of what importing this package would take."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def all_kept() -> Iterator[None]:
    """Import what stays until the process ends, and let the collector take it for what has long been there.

    Otherwise it looks through all of it twice, for nothing. What a program has frozen itself, or a collector that
    it has turned off, stays as it is.
    """
    if not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()
        gc.enable()
