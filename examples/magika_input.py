"""How magika's model is fed: the first and last kilobyte of each file, padded, as one row of an array."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np

ROW_ITEMS = 1024
PEEK_BYTES = 4096
PADDING = 256
BYTES_MIN = 8  # smaller files are not for a model to tell


def model_directory() -> Path:
    """Where the model lies inside the installed `magika` package, found without importing it."""
    spec = find_spec("magika")
    if spec is None or spec.origin is None:
        raise SystemExit("the package magika is not installed")
    return Path(spec.origin).parent / "models" / "standard_v3_3"


def labels() -> list[str]:
    """The file types that the model tells apart, in the order of its output."""
    config = json.loads((model_directory() / "config.min.json").read_text("utf-8"))
    found: list[str] = config["target_labels_space"]
    return found


def features(path: Path) -> np.ndarray:
    """The 2,048 numbers that stand for one file."""
    with path.open("rb") as file:
        head = file.read(PEEK_BYTES)
        file.seek(max(0, path.stat().st_size - PEEK_BYTES))
        tail = file.read(PEEK_BYTES)
    beginning = head.lstrip()[:ROW_ITEMS]
    end = tail.rstrip()[-ROW_ITEMS:]
    row = np.full(2 * ROW_ITEMS, PADDING, np.int32)
    row[: len(beginning)] = np.frombuffer(beginning, np.uint8)
    row[2 * ROW_ITEMS - len(end) :] = np.frombuffer(end, np.uint8)
    return row
