"""A vendor's server as real processes: made by `meterkit-server init`, served on loopback, asked over HTTP."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
from plain_http import NO_TLS
from ports import held_port

BIN = Path(sys.executable).parent
SUPPORT = Path(__file__).resolve().parent
ISSUER = "vendor.example"
PRODUCT = "camera"
PATIENCE_S = 60  # how long a test waits for an answer before it fails; nothing is measured


class RealServer:
    """One server directory and, between `start` and `stop`, its process."""

    def __init__(self, path: Path) -> None:
        self.directory = path / "server"
        self.clock_file = path / "clock"
        self.clock_file.write_text("0")
        command = [BIN / "meterkit-server", "--json", "init", self.directory, "--issuer", ISSUER]
        made = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        self.root = made["root"]
        self.fingerprint = made["fingerprint"]
        self.api_key = made["api_key"]
        self._held = held_port()
        self.port = self._held.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def run_cli(self, *arguments: str) -> str:
        command = [BIN / "meterkit-server", "--directory", self.directory, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def now(self) -> int:
        return int(time.time()) + int(self.clock_file.read_text())

    def move_clock(self, seconds: int) -> None:
        temporary = self.clock_file.with_suffix(".new")
        temporary.write_text(str(int(self.clock_file.read_text()) + seconds))
        temporary.replace(self.clock_file)

    def start(self) -> None:
        command = [sys.executable, SUPPORT / "clocked_server.py", self.directory, str(self.port), self.clock_file]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                if httpx2.get(f"{self.url}/readyz", verify=NO_TLS).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.05)
        raise RuntimeError("the server did not come up")

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(PATIENCE_S)
            self.process = None

    def close(self) -> None:
        self.stop()
        self._held.close()

    def ask(self, method: str, path: str, body: Any = None, *, expect: int | None = None) -> Any:
        headers = {"authorization": f"Bearer {self.api_key}"}
        url = f"{self.url}/v1{path}"
        answer = httpx2.request(method, url, json=body, headers=headers, timeout=PATIENCE_S, verify=NO_TLS)
        assert expect is None or answer.status_code == expect, answer.text
        assert expect is not None or answer.status_code < 300, answer.text
        kind = answer.headers["content-type"].split(";")[0]
        return answer.json() if kind.endswith("json") else answer.content

    def offer(self, model: str, digest: str, plan: dict[str, Any], *, unit: str = "call", axis: Any = None):
        """Name the product, its model and a plan, and a customer."""
        self.ask("POST", "/products", {"name": PRODUCT})
        body = {"name": model, "unit": unit, "axis": axis, "sha256": [digest]}
        self.ask("POST", f"/products/{PRODUCT}/models", body)
        self.plan = self.ask("POST", "/plans", {"name": "standard", "body": plan})["id"]
        self.customer = self.ask("POST", "/customers", {"name": "ACME", "time_zone": "Europe/Berlin"})["id"]
        self.model = model

    def grant(self, *, limit: int | None = None, **changes: Any) -> str:
        """Grant a license; gives its id."""
        body = {
            "customer": self.customer,
            "plan": self.plan,
            "product": PRODUCT,
            "models": [{"name": self.model, "token_units_max": limit}],
            "devices_max": 10,
            **changes,
        }
        return self.ask("POST", "/licenses", body)["id"]

    def code(self, license_id: str) -> str:
        return self.ask("POST", f"/licenses/{license_id}/codes", {})["code"]
