"""The main job, played by real processes: a vendor, a server, a device without a network, a customer.

Every number that it prints was read back from the system. It exits with 1 if a delivered answer went uncounted, if
more than the one call in flight at the kill is ahead, or if recorded, receipted and invoiced units differ.
"""

import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magika_input import BYTES_MIN, model_directory

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
ISSUER = "Filetype Labs"
PRODUCT, MODEL = "file-sorter", "magika"
FILES, ARRAY, LIMIT = 560, 8, 404
CALLS_BEFORE_KILL = 20


@dataclass
class Heard:
    """What a device process wrote to its pipe: answers, and how many units its last, unanswered call held."""

    answers: list[str] = field(default_factory=list)
    in_flight_units: int = 0
    calls: int = 0
    refusal: str = ""

    def take(self, line: str) -> None:
        """Take in one line."""
        verb, _, rest = line.strip().partition(" ")
        if verb == "call":
            self.calls += 1
            self.in_flight_units = int(rest)
        elif verb == "answer":
            self.answers.append(rest)
            self.in_flight_units = 0
        elif verb == "refused":
            self.refusal = rest
            self.in_flight_units = 0


class Server:
    """The vendor's server: its commands, and its process on loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.made = self._json("init", directory, "--issuer", ISSUER, beside=False)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    def _json(self, *arguments: object, beside: bool = True) -> Any:
        where = ["--directory", self.directory] if beside else []
        return json.loads(output(BIN / "meterkit-server", *where, "--json", *arguments))

    def __call__(self, *arguments: object) -> Any:
        """Run a command of the vendor's, and read its JSON."""
        return self._json(*arguments)

    def start(self) -> None:
        """Serve, and wait until it is ready."""
        command = [BIN / "meterkit-server", "--directory", self.directory, "serve", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(300):
            probe = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
            try:
                probe.request("GET", "/readyz")
                if probe.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.1)
            finally:
                probe.close()
        raise SystemExit("the server did not come up")

    def stop(self) -> None:
        """Stop serving: for the device, the network is gone."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


def output(*command: object) -> str:
    """Run a command and give what it printed; its failure is ours."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr}{done.stdout}")
    return done.stdout


def real_files() -> Iterator[Path]:
    """Files of this machine, in a fixed order: Python's own library and documents of all kinds around it."""
    for top in (Path(os.__file__).parent, Path("/usr/share"), Path(sys.prefix)):
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    yield path


def chosen_files() -> tuple[list[Path], int]:
    """Several hundred files, few of each kind of name first, and how many were too small to tell."""
    taken: list[Path] = []
    seen: Counter[str] = Counter()
    skipped = 0
    for path in itertools.islice(real_files(), 60_000):
        if seen[path.suffix] >= 60 or len(taken) == FILES:
            continue
        if path.stat().st_size < BYTES_MIN:
            skipped += 1
            continue
        seen[path.suffix] += 1
        taken.append(path)
    return taken, skipped


class DemoDevice:
    """The device: its directory, and the vendor's program that runs on it."""

    def __init__(self, directory: Path, root: str) -> None:
        self.directory = directory
        self.root = root

    def program(self, *arguments: object) -> list[str]:
        """The command line of the vendor's program."""
        fixed = [sys.executable, HERE / "demo_device.py", self.directory, ISSUER, self.root]
        return [str(part) for part in (*fixed, *arguments)]

    def command(self, *arguments: object) -> str:
        """Run `meterkit-device` on the directory."""
        fixed = [
            f"--directory={self.directory}",
            f"--issuer={ISSUER}",
            f"--root={self.root}",
            f"--product={PRODUCT}",
        ]
        return output(BIN / "meterkit-device", *fixed, *arguments)

    def classify(self, listed: Path, start: int, *, kill_at_call: int | None = None) -> Heard:
        """Run the program until it ends, or kill it while the model works on a call."""
        heard = Heard()
        command = self.program("classify", listed, start, ARRAY)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                heard.take(line)
                if heard.calls == kill_at_call and heard.in_flight_units:
                    time.sleep(0.002)  # into the call, which takes ten times as long
                    process.send_signal(signal.SIGKILL)
        return heard


def inspected(path: Path, *options: object) -> list[dict[str, Any]]:
    """What `meterkit inspect` says of a file."""
    found: list[dict[str, Any]] = json.loads(output(BIN / "meterkit", "inspect", path, "--json", *options))
    return found


def recorded_units(batches: Path) -> int:
    """Units in the signed records that the device would hand over."""
    return sum(sum(batch["says"]["units"].values()) for batch in inspected(batches))


def receipted_units(directory: Path, root: str) -> int:
    """Units in the receipt that the device holds, its signature checked from the root on."""
    (receipt,) = inspected(directory / "receipt.jws", "--with", directory / "keyring.json", f"--root={root}")
    if receipt["state"] != "holds":
        raise SystemExit(f"the receipt does not hold: {receipt}")
    return sum(total["units"] for total in receipt["says"]["totals"])


def license_model(server: Server) -> tuple[str, str]:
    """The vendor names a product, its model, a plan and a customer, and grants a license; gives it and a code."""
    server("product", "create", PRODUCT)
    model = model_directory() / "model.onnx"
    server("model", "create", PRODUCT, MODEL, "--file", model, "--unit", "item", "--axis-input", "bytes")
    plan = server("plan", "create", "per-file", HERE / "plan.json")["id"]
    customer = server("customer", "create", "Archive & Sons", "--time-zone", "Europe/Berlin")["id"]
    granted = server(
        "license", "grant", "--customer", customer, "--plan", plan, "--product", PRODUCT,
        "--model", f"{MODEL},token_units_max={LIMIT}",
    )  # fmt: skip
    return granted["id"], server("code", "create", granted["id"])["code"]


def draw_up(server: Server, into: Path) -> tuple[dict[str, Any], Path]:
    """Bill, finalize, and hand out the evidence; gives the invoice and the evidence file."""
    server("billing", "run")
    (draft,) = server("invoice", "list")["items"]
    server("invoice", "finalize", draft["id"])
    evidence = into / "evidence.zip"
    server("invoice", "evidence", draft["id"], "--out", evidence)
    return server("invoice", "show", draft["id"]), evidence


@dataclass(frozen=True)
class Sums:
    """Units as the parts of the system say them, each read back from its own place."""

    delivered: int
    in_flight: int
    recorded: int
    receipted: int
    accepted: int
    invoiced: int

    def failures(self) -> list[str]:
        """What must never be, and is."""
        failures = []
        if self.recorded < self.delivered:
            failures.append(f"{self.delivered - self.recorded} delivered answers went uncounted")
        if self.recorded > self.delivered + self.in_flight:
            failures.append(f"{self.recorded - self.delivered} units ahead, only {self.in_flight} were in flight")
        if len({self.recorded, self.receipted, self.accepted, self.invoiced}) != 1:
            failures.append("recorded, receipted, accepted and invoiced units differ")
        return failures


def play(work: Path) -> list[str]:
    """Play the story; gives what went wrong."""
    files, skipped = chosen_files()
    listed = work / "files.txt"
    listed.write_text("\n".join(map(str, files)), "utf-8")

    server = Server(work / "server")
    root = server.made["root"]
    license_id, code = license_model(server)
    print(f"1. {ISSUER} licensed the model {MODEL} to a customer: at most {LIMIT} files until the next sync.")
    server.start()
    try:
        device = DemoDevice(work / "device", root)
        output(*device.program("activate", code, server.url))
        print(f"2. A device activated itself: {next(iter(device.command('status').splitlines())).split()[-1]}")
        server.stop()
        print("3. The server is stopped: from here on the device has no network.")

        first = device.classify(listed, 0, kill_at_call=CALLS_BEFORE_KILL)
        print(
            f"4. It told the types of {len(first.answers)} files in arrays of {ARRAY}, then was killed (SIGKILL) "
            f"while {first.in_flight_units} more were in the model's hands."
        )
        second = device.classify(listed, len(first.answers))
        answers = first.answers + second.answers
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(answers).most_common(4))
        print(f"5. Started again, it went on to {len(answers)} files ({kinds}, …; {skipped} too small to tell).")
        print(f"6. Then it was refused: {second.refusal}")

        device.command("export", work / "usage.mkbatch")
        recorded = recorded_units(work / "usage.mkbatch")
        server.start()
        device.command("sync")
        receipted = receipted_units(device.directory, root)
        accepted = sum(item["units"] for item in server("usage", "--license", license_id)["items"])
        print(f"7. The server is back. The device synced: {recorded} recorded, {receipted} receipted.")

        invoice, evidence = draw_up(server, work)
        lines = {line["charge"]: line for line in invoice["lines"]}
        print(f"8. Invoice {invoice['number']}, finalized:")
        rows = [(each["description"], each["quantity"], each["amount"]) for each in invoice["lines"]]
        for what, quantity, amount in [*rows, ("total", "", invoice["total"])]:
            print(f"     {what:<42} {quantity:>5}  {amount:>8} {invoice['currency']}")
    finally:
        server.stop()

    fingerprint = server.made["fingerprint"]
    audit = json.loads(output(BIN / "meterkit", "audit", evidence, "--json", "--root", fingerprint))
    print(f"9. The customer audited it offline, {len(audit['lines'])} lines: it holds = {audit['holds']}.")
    sums = Sums(
        delivered=len(answers),
        in_flight=first.in_flight_units,
        recorded=recorded,
        receipted=receipted,
        accepted=accepted,
        invoiced=lines["files"]["quantity"],
    )
    print(f"   {sums}")
    failures = sums.failures()
    if not second.refusal or not first.in_flight_units:
        failures.append("the story did not happen: no refusal, or no call in flight at the kill")
    if not audit["holds"]:
        failures.append("the audit does not hold")
    return failures


def main() -> int:
    """Play it in a folder of its own, and clean up."""
    work = Path(tempfile.mkdtemp(prefix="meterkit-demo-"))
    try:
        failures = play(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for failure in failures:
        print(f"FAILED: {failure}")
    print("It all adds up." if not failures else "It does not add up.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
