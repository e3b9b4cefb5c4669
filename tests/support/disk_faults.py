"""Real faults of a disk, made and ended while a process runs: each a context manager over a `Disk`."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from device_site import Site
from vendor import PRODUCT

_SCRIPT = Path(__file__).with_name("disk_device.py")
_SIZE = 2 * 1024 * 1024


def needed(what: str) -> None:
    """Skip a test for want of something; under METERKIT_TEST_NO_SKIP that is a failure."""
    if os.environ.get("METERKIT_TEST_NO_SKIP"):
        pytest.fail(f"not to be skipped, but {what}")
    pytest.skip(what)


def run(*argv: object) -> bool:
    """Run one of the system's commands; whether it did what it should."""
    words = [str(word) for word in argv]
    if shutil.which(words[0]) is None:
        return False
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


class Disk:
    """A small file system of its own, with a device's directory on it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "disk"
        self.root.mkdir()
        self.mount()
        self.site = Site(self.root / "device")
        self.site.time.set_true()
        self.hosts: list[Host] = []

    def mount(self) -> None:
        if not run("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", self.root):
            needed("mounting a file system is refused here")

    def start(self) -> "Host":
        """A process that is about to open the device."""
        self.hosts.append(Host(self.site))
        return self.hosts[-1]

    def close(self) -> None:
        for host in self.hosts:
            host.end()
        self.site.close()
        run("umount", "--lazy", self.root)


class Host:
    """A process of `disk_device.py`, and what it has delivered so far."""

    def __init__(self, site: Site) -> None:
        trust = site.vendor.trust
        argv = [sys.executable, _SCRIPT, site.path, trust.issuer, trust.roots[0], PRODUCT]
        self.process = subprocess.Popen(
            [str(arg) for arg in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.delivered = 0
        self.stderr = ""

    def tell(self, *words: object) -> dict:
        """Tell it one line, and wait for its answer."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.end()
            pytest.fail(f"the host program died of {words}, {self.process.returncode}: {self.stderr}")
        answer = json.loads(line)
        self.delivered += answer.get("delivered", 0)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)

    def end(self) -> tuple[int, str]:
        """Let it end by itself; its exit code, and what it wrote on stderr."""
        if self.process.stdin and not self.process.stdin.closed:
            self.stderr += self.process.communicate(timeout=60)[1]
        return self.process.returncode, self.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class KernelDisk(Disk):
    """An ext4 file system in a file, which the kernel makes read-only for good at its first error."""

    def mount(self) -> None:
        image = self.root.with_name("image")
        image.touch()
        os.truncate(image, 8 * 1024 * 1024)
        made = run("mkfs.ext4", "-q", "-F", image)
        if not made or not run("mount", "-o", "loop,errors=remount-ro", image, self.root):
            needed("making a file system in a file is refused here")

    def fail(self) -> None:
        """Let the kernel find an error."""
        found = subprocess.run(["findmnt", "-no", "SOURCE", self.root], capture_output=True, text=True, check=True)
        Path("/sys/fs/ext4", Path(found.stdout.strip()).name, "trigger_fs_error").write_text("1")


# -- faults


@contextmanager
def full(disk: Disk, _host: Host | None) -> Iterator[None]:
    """No byte more fits on it."""
    filler = disk.root / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\x00" * 512)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(disk: Disk, host: Host | None) -> Iterator[None]:
    """Whatever is opened from now on is read-only. What was open before is let go of, as a failed commit does."""
    done = run("mount", "--bind", disk.site.path, disk.site.path)
    if not done or not run("mount", "-o", "remount,bind,ro", disk.site.path):
        needed("mounting read-only is refused here")
    if host is not None:
        host.tell("reconnect")
    try:
        yield
    finally:
        assert run("umount", "--lazy", disk.site.path)


@contextmanager
def moved_away(disk: Disk, _host: Host | None) -> Iterator[None]:
    """Its directory is not there."""
    elsewhere = disk.site.path.with_name("elsewhere")
    disk.site.path.rename(elsewhere)
    try:
        yield
    finally:
        if disk.site.path.exists():
            shutil.rmtree(disk.site.path)
        elsewhere.rename(disk.site.path)


_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(disk: Disk, _host: Host | None) -> Iterator[None]:
    """Another process was stopped in the midst of a transaction."""
    argv = [sys.executable, "-c", _LOCKER, str(disk.site.path / "ledger.sqlite")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        holder.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            holder.send_signal(signal.SIGCONT)
            holder.communicate(timeout=60)


@contextmanager
def limited(which: int, value: int, host: Host | None) -> Iterator[None]:
    before = resource.prlimit(host.process.pid, which)
    resource.prlimit(host.process.pid, which, (value, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it was killed meanwhile
            resource.prlimit(host.process.pid, which, before)


def no_descriptors(_disk: Disk, host: Host | None):
    """The process may open nothing more: what it holds is let go of before."""
    host.tell("reconnect")
    return limited(resource.RLIMIT_NOFILE, 3, host)


def small_files(_disk: Disk, host: Host | None):
    """No file may grow, nor be written beyond its first bytes."""
    return limited(resource.RLIMIT_FSIZE, 100, host)


@contextmanager
def injected(host: Host, *what: str) -> Iterator[None]:
    """System calls of a running process fail as said, until the end."""
    rules = [word for each in what for word in ("-e", f"inject={each}")]
    argv = ["strace", "-f", "-o", "/dev/null", "-e", "trace=" + ",".join(each.split(":")[0] for each in what)]
    if shutil.which("strace") is None:
        needed("there is no strace here")
    tracer = subprocess.Popen([*argv, *rules, "-p", str(host.process.pid)], stderr=subprocess.PIPE, text=True)
    told = tracer.stderr.readline()
    if "attached" not in told:
        tracer.communicate()
        needed(f"strace: {told}")
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=60)


def failing(calls: str, error: str = "EIO"):
    """These system calls fail, all of them."""
    return lambda _disk, host: injected(host, f"{calls}:error={error}")
