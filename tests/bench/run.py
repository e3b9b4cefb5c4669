"""`make bench`: measure, print a table, write `build/bench.json`. Names of groups choose among them."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(Path(__file__).resolve().parent)]

import billing  # noqa: E402
import disk  # noqa: E402
import gate  # noqa: E402
import harness  # noqa: E402
import ingest  # noqa: E402
import returning  # noqa: E402
import start  # noqa: E402
import tokens  # noqa: E402

GROUPS = {
    "gate": gate.rows,
    "start": start.rows,
    "disk": disk.rows,
    "tokens": tokens.rows,
    "ingest": ingest.rows,
    "returning": returning.rows,
    "billing": billing.rows,
}


def main() -> None:
    """Run the chosen groups, or all."""
    chosen = sys.argv[1:] or list(GROUPS)
    rows = [row for name in chosen for row in GROUPS[name]()]
    print(harness.show(rows))
    harness.write(rows, ROOT / "build" / "bench.json")


main()
