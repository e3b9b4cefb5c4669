"""Starting `device_worker.py` as real processes, ending them, and counting what they delivered."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from device_site import Site
from vendor import PRODUCT

_SCRIPT = Path(__file__).with_name("device_worker.py")


class Worker:
    """One process that runs the licensed model in some threads. What it delivered is in `delivered`.

    With `go` it makes one call, says that it is ready, and waits until there is a file of that name.
    """

    def __init__(self, site: Site, threads: int, calls: int | None = None, go: Path | None = None) -> None:
        trust = site.vendor.trust
        rest = [] if calls is None else [calls]
        argv = [sys.executable, _SCRIPT, site.path, trust.issuer, trust.roots[0], PRODUCT, threads, *rest]
        # A file, not a pipe: it takes any number of bytes from a process that nobody may wait for.
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self._process = subprocess.Popen(
            [str(arg) for arg in argv],
            stdout=self._told,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **({"DEVICE_WORKER_GO": str(go)} if go else {})},
        )
        self.threads = threads
        self.delivered = 0
        self.said: list[str] = []

    def wait_ready(self) -> None:
        """Return when it is about to begin."""
        line = self._process.stderr.readline().strip()
        assert line == "ready", line + self._process.stderr.read()

    def wait_delivered(self, calls: int) -> None:
        """Return when it has delivered so many, or has ended."""
        while os.fstat(self._told.fileno()).st_size < calls and self._process.poll() is None:
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self._process.kill()
        self.end()

    def end(self) -> "Worker":
        """Wait for its end, however it comes."""
        self.said += self._process.communicate(timeout=60)[1].split()
        self.delivered = self._told.seek(0, 2)
        self._told.close()
        return self

    @property
    def returncode(self) -> int:
        return self._process.returncode
