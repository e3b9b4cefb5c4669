"""Plays a year of a small fleet in which everything goes wrong, billed month by month, and audits every document.

    python tests/year.py [SEED]

It ends with 1 if a document is not what its evidence proves, if a unit was lost or billed twice, or if the journal
does not come to the same as the documents.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

from year_checks import check, table
from year_fleet import Year


def main() -> int:
    """Play one year, and print what came of it."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        year = Year.begin(Path(folder), seed)
        year.live()
        lived = time.monotonic() - start
        found = check(year)
        print(*table(year, found), sep="\n")
        print(f"seed {seed}: lived in {lived:.0f} s, checked in {time.monotonic() - start - lived:.0f} s")
        year.biller.remove()
    print(*(f"  DIFFERS: {each}" for each in found.differences), sep="\n", end="")
    return 1 if found.differences else 0


if __name__ == "__main__":
    sys.exit(main())
