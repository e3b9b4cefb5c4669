"""What the ledger writes: disk syncs per million inferences, and its size after a year."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Row

CALLS = 1_000_000
PROGRAM = """
import sys
sys.path[:0] = {path!r}
from functools import partial
from world import licensed_device, sessions
with licensed_device() as device:
    _, gated, feed = sessions(device, "add")
    gated.run(None, feed)
    step = partial(gated.run, None, feed)
    print("begin", flush=True)
    for _ in range({calls}):
        step()
    print("end", flush=True)
"""


def rows() -> list[Row]:
    """Syncs per million; where strace is missing, no row."""
    if shutil.which("strace") is None:
        return []
    path = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "support")]
    with tempfile.TemporaryDirectory() as folder:
        program, trace = Path(folder, "program.py"), Path(folder, "trace")
        program.write_text(PROGRAM.format(path=path, calls=CALLS))
        watched = "trace=fsync,fdatasync,msync,write"
        command = ["strace", "-f", "-e", watched, "-s", "8", "-o", trace, sys.executable, program]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = trace.read_text().splitlines()
    begin = next(place for place, line in enumerate(lines) if 'write(1, "begin' in line)
    end = next(place for place, line in enumerate(lines) if 'write(1, "end' in line)
    counted = [match[1] for line in lines[begin:end] if (match := re.search(r"\b(fsync|fdatasync|msync)\(", line))]
    syncs = sum(name != "msync" for name in counted)
    values = {"msync": float(len(counted) - syncs)}
    return [Row("disk syncs per million inferences, add", float(syncs), None, 1, "syncs", values)]
