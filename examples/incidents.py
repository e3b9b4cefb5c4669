"""Four things that go wrong in the field, played by real processes: what the vendor's statement says of each.

A machine is cloned; a machine is copied while it runs; a ledger is deleted; a reply is lost. Each has a license of
its own, whose reconciliation statement is printed before and after. It exits with 1 if a figure is not what was
played.
"""

import http.client
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from demo import BIN, HERE, ISSUER, Server, output
from incidents_device import MODEL, MODEL_PATH, PRODUCT

LIMIT = 1_000
PLAN = """{"v": 1, "currency": "EUR", "interval": "month", "charges": [{"id": "calls", "type": "usage",
"meter": {"model": "mul", "unit": "call"}, "price": {"model": "per_unit", "unit_amount": "0.01"}}]}"""


class Machine:
    """A device: its directory, and what the vendor's programs do with it."""

    def __init__(self, directory: Path, root: str) -> None:
        self.directory = directory
        self.root = root

    def program(self, *arguments: object) -> list[str]:
        """The command line of the vendor's program."""
        fixed = [sys.executable, HERE / "incidents_device.py", self.directory, ISSUER, self.root]
        return [str(part) for part in (*fixed, *arguments)]

    def use(self, calls: int) -> None:
        """Call the model so often, in a process of its own."""
        output(*self.program("use", calls))

    def sync(self, *options: str) -> bool:
        """Sync; tells whether a reply came."""
        told = [
            f"--directory={self.directory}",
            f"--issuer={ISSUER}",
            f"--root={self.root}",
            f"--product={PRODUCT}",
        ]
        command = [BIN / "meterkit-device", *told, "sync", *options]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def copied(self, name: str) -> "Machine":
        """An image of the machine's disk, on another one."""
        directory = self.directory.with_name(name)
        shutil.copytree(self.directory, directory)
        return Machine(directory, self.root)


class Scene:
    """One incident: a license, a machine that has reported 10 calls, and the statement before and after."""

    def __init__(self, server: Server, work: Path, title: str) -> None:
        self.server = server
        plan = work / "plan.json"
        plan.write_text(PLAN, "utf-8")
        named = title.rsplit(maxsplit=1)[-1].rstrip(".")
        plan_id = server("plan", "create", f"per-call-{named}", plan)["id"]
        customer = server("customer", "create", f"The customer of the {named}")["id"]
        granted = server(
            "license", "grant", "--customer", customer, "--plan", plan_id, "--product", PRODUCT,
            "--model", f"{MODEL},token_units_max={LIMIT}", "--devices-max", "5",
        )  # fmt: skip
        self.license_id = granted["id"]
        self.machine = Machine(work / named, server.made["root"])
        code = server("code", "create", self.license_id)["code"]
        output(*self.machine.program("activate", code, server.url))
        self.machine.use(10)
        self.machine.sync()
        print(f"\n=== {title}")
        self.tell("Before:")

    def tell(self, when: str) -> None:
        """Print the vendor's statement of the license."""
        directory = ["--directory", self.server.directory]
        lines = output(BIN / "meterkit-server", *directory, "reconcile", "--license", self.license_id).splitlines()
        print(when)
        print("\n".join(f"   | {line}" for line in lines if line))

    def found(self) -> dict[str, Any]:
        """The statement's figures: of the one meter, and how many exceptions of which kinds."""
        done = self.server("reconcile", "--license", self.license_id)
        (meter,) = done["summary"]["totals"]
        return {
            "reported": meter["reported"],
            "repeated": meter["repeated"],
            "exposure": meter["exposure"],
            "exceptions": sorted(each["kind"] for each in done["summary"]["exceptions"]),
            "adds up": done["summary"]["conservation"]["holds"],
        }

    def compare(self, *kinds: str, reported: int, repeated: int = 0, exposure: int = LIMIT) -> list[str]:
        """What the statement says that is not what was played."""
        played = {
            "reported": reported,
            "repeated": repeated,
            "exposure": exposure,
            "exceptions": sorted(kinds),
            "adds up": True,
        }
        found = self.found()
        return [f"{name}: {found[name]}, not {value}" for name, value in played.items() if found[name] != value]


def play_clone(scene: Scene) -> list[str]:
    """An image of the disk starts a second machine; both work on."""
    clone = scene.machine.copied("second machine")
    scene.machine.use(5)
    clone.use(7)
    scene.machine.sync()
    clone.sync()
    scene.tell("The machine used 5 more, its clone 7. Both signed; both count, and the fork is proved:")
    return scene.compare("fork", reported=10 + 5 + 7)


def play_snapshot(scene: Scene) -> list[str]:
    """A machine is copied while a process runs on it whose counts no ledger holds yet."""
    command = scene.machine.program("hold", 8, 4)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdout.readline() != "counted\n":
            raise SystemExit("the program did not count")
        restored = scene.machine.copied("restored machine")
        process.communicate("go on\n", timeout=60)
    scene.machine.sync()
    restored.use(3)
    restored.sync()
    scene.tell("Both ledgers tell of the 8 calls made before the snapshot; they count once, and 4 and 3 after it:")
    return scene.compare("fork", "repeated_range", reported=10 + 8 + 4 + 3, repeated=8)


def play_reset(scene: Scene) -> list[str]:
    """Somebody deletes the ledger, to be at 0 again."""
    (scene.machine.directory / "ledger.sqlite").unlink()
    scene.machine.sync()
    scene.machine.use(4)
    scene.machine.sync()
    scene.tell("A new ledger began, and its genesis is an exception. What the old one could still use stays out:")
    failures = scene.compare("reset", reported=10 + 4, exposure=2 * LIMIT)
    old = _old_epoch(scene)
    scene.server("device", "write-off", *old, "the disk is wiped")
    scene.tell("Written off, by name; the 10 it had reported stay:")
    return failures + scene.compare("reset", reported=10 + 4)


def _old_epoch(scene: Scene) -> tuple[str, str]:
    (device,) = scene.server("device", "list", "--license", scene.license_id)["items"]
    (reset,) = scene.server("exception", "list", "--device", device["id"])["items"]
    return device["id"], str(reset["evidence"]["previous"]["epoch"])


def play_reply(scene: Scene) -> list[str]:
    """The server takes the usage in, and its reply never arrives."""
    scene.machine.use(9)
    with LosingProxy(scene.server.port) as proxy:
        heard = scene.machine.sync("--server", f"http://127.0.0.1:{proxy.server_port}")
    scene.tell("It is taken in, and the device does not know:")
    failures = ["the reply was not lost"] if heard else scene.compare(reported=10 + 9)
    scene.machine.sync()
    scene.tell("The device sent the same again. It counts once:")
    return failures + scene.compare(reported=10 + 9)


class _Losing(BaseHTTPRequestHandler):
    """Hands a request on, and drops what comes back."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=30)  # type: ignore[attr-defined]
        upstream.request("POST", self.path, body, dict(self.headers.items()))
        upstream.getresponse().read()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class LosingProxy(HTTPServer, AbstractContextManager["LosingProxy"]):
    """A way to the server that loses every reply."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Losing)
        self.upstream_port = upstream_port
        Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


INCIDENTS: tuple[tuple[str, Callable[[Scene], list[str]]], ...] = (
    ("A machine is cloned: the clone.", play_clone),
    ("A machine is copied while it runs: the snapshot.", play_snapshot),
    ("A ledger is deleted: the reset.", play_reset),
    ("A reply is lost: the reply.", play_reply),
)


def play(work: Path) -> list[str]:
    """Play all of them against one server; gives what went wrong."""
    server = Server(work / "server")
    server("product", "create", PRODUCT)
    server("model", "create", PRODUCT, MODEL, "--file", MODEL_PATH, "--unit", "call")
    server.start()
    try:
        failures = []
        for title, incident in INCIDENTS:
            found = incident(Scene(server, work, title))
            failures += [f"{title} {each}" for each in found]
        return failures
    finally:
        server.stop()


def main() -> int:
    """Play it in a folder of its own, and clean up."""
    work = Path(tempfile.mkdtemp(prefix="meterkit-incidents-"))
    try:
        failures = play(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for failure in failures:
        print(f"FAILED: {failure}")
    print("\nIt all adds up." if not failures else "\nIt does not add up.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
