"""`meterkit-server serve` as a real process on a fleet's database: to be asked, killed, and started again."""

import subprocess
import sys
import time
from pathlib import Path

import httpx2
from fleet import Fleet
from plain_http import NO_TLS
from ports import held_port

from meterkit.exchange import BATCH_MEDIA_TYPE, Reply, read_reply

COMMAND = Path(sys.executable).parent / "meterkit-server"


class Serving:
    """One process at a time, always on the same port, its own or another's; it logs into `serve-<port>.log`."""

    def __init__(self, fleet: Fleet, logs: Path, *flags: str, beside: "Serving | None" = None) -> None:
        self._flags = flags
        self._fleet = fleet
        self._held = held_port() if beside is None else beside._held.dup()
        self._port = int(self._held.getsockname()[1])
        self._log = (logs / f"serve-{self._port}.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and return when it is ready."""
        arguments = [
            "serve",
            "--directory",
            str(self._fleet.server.directory),
            "--port",
            str(self._port),
            *self._flags,
        ]
        self._process = subprocess.Popen(
            [COMMAND, *arguments], stdout=self._log, stderr=subprocess.STDOUT, env=self._fleet.environment
        )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                if httpx2.get(f"{self.url}/readyz", verify=NO_TLS).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            assert self._process.poll() is None, "the server ended"
            time.sleep(0.05)
        raise RuntimeError("the server did not come up")

    @property
    def pid(self) -> int:
        """The running process's id."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """Ask it to end; gives its exit status."""
        return self._end(kill=False)

    def kill(self) -> None:
        """End it wherever it is."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> int:
        if self._process is None:
            return 0
        self._process.kill() if kill else self._process.terminate()
        status = self._process.wait(30)
        self._process = None
        return status

    def close(self) -> None:
        self.stop()
        self._log.close()
        self._held.close()


def exchange(url: str, *texts: str) -> Reply:
    """Hand batches over as a device does; raises TransportError where nobody answers."""
    body = "\n".join(texts).encode()
    headers = {"content-type": BATCH_MEDIA_TYPE}
    answer = httpx2.post(f"{url}/v1/exchanges", content=body, headers=headers, timeout=60, verify=NO_TLS)
    assert answer.status_code == 200, answer.text
    return read_reply(answer.content)
