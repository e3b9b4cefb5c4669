"""What a device writes when there is nothing to write: nothing. Seen from outside, by its system calls."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from device_site import MUL, NS, recorded, session, unchanged, use
from vendor import PRODUCT

from meterkit import limits

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "idle_device.py"
WRITES = (
    "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,msync,ftruncate,truncate,fallocate,"
    "rename,renameat,renameat2,unlink,unlinkat,link,linkat,mkdir,mkdirat,utimensat,chmod,fchmod,fchmodat"
)


def traced(argv: list[str], trace: Path) -> dict[str, list[str]]:
    """Run a program under strace; the calls that write, by what it said it was doing."""
    command = ["strace", "-f", "-e", f"trace={WRITES}", "-o", str(trace), *argv]
    done = subprocess.run(command, check=False, capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {"starting": []}
    for line in trace.read_text().splitlines():
        marked = re.search(r'write\(2, "MARK (\w+)', line)
        if marked:
            found[marked[1]] = []
        elif re.match(r"\d+ +\w+\(", line):
            found[list(found)[-1]].append(line)
    return found


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to see the system calls")
def test_a_device_that_is_idle_or_only_looked_at_writes_nothing(site, tmp_path):
    site.time.set_true()
    site.activated(MUL, real_clocks=True).close()
    trust = site.vendor.trust
    argv = [sys.executable, str(SCRIPT), str(site.path), trust.issuer, trust.roots[0], PRODUCT]
    calls = traced(argv, tmp_path / "trace")
    assert list(calls) == ["starting", "using", "idle", "folding", "looking", "closing"]
    assert calls["using"], "the trace shows no write at all"
    assert calls["closing"]
    assert calls["idle"] == []
    assert calls["looking"] == []


def test_looking_twice_writes_once(site):
    device = site.activated(MUL)
    use(session(device), 3)
    device.status()
    with unchanged(site.path):
        for _ in range(20):
            site.time.run_on(40)
            assert device.status().time == site.time.now_s
            device.make_batches()
    assert recorded(device) == 3


def test_the_time_that_passed_is_stored_once_a_window_even_if_nothing_else_happens(site):
    """Else a device that is only looked at could be set back by all the time that it was on."""
    device = site.activated(MUL)
    for _ in range(40):
        site.time.run_on(limits.WINDOW_S / 3)
        device.status()
    passed = site.time.now_s
    device._store.drop()
    site.time.reboot(off_s=0)
    site.time.wall_ns -= 100_000 * NS
    assert passed - limits.WINDOW_S < site.open().status().time <= passed + 60


def test_the_time_that_passed_is_stored_when_a_device_is_closed_that_counted_nothing(site):
    site.activated(MUL).close()
    device = site.open()
    site.time.run_on(6 * 86_400)
    passed = site.time.now_s
    device.close()
    site.time.reboot(off_s=0)
    site.time.wall_ns = 30 * NS
    assert site.open().status().time >= passed


def test_a_clock_that_was_set_back_is_noted_by_looking_alone(site):
    """Between two looks it comes back: the next step back is measured from there, and adds to the first."""
    device = site.activated(MUL)
    for _ in range(2):
        site.time.set_wall(-200)
        device.status()
        site.time.set_wall(200)
        device.status()
    assert device.status().clock_suspect
