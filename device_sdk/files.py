"""What several parts do with files. Paths are text here: `pathlib` would cost a start more than SQLite does."""

from __future__ import annotations

import os
from contextlib import suppress


def remove_file(path: str) -> None:
    """Unlink a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Make renames and unlinks in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
