"""Process start → first gated answer ÷ the same with plain ONNX Runtime, whole processes in turns.

A process says itself when it has its answer: how it ends, ONNX Runtime's own farewell included, is not measured.
`cpu` is what the main thread computes: the threads that ONNX Runtime keeps ready spin while they wait.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Row
from vendor import ISSUER, PRODUCT, Vendor, call_model, code, new_id
from world import add_model

from device_sdk import Device, LicensedSession, timekeeper
from meterkit.exchange import Reply

RUNS = 40
RECORDS, REVOKED, LEFT_BEHIND = 10_000, 100, 20
PLAIN = """
import time
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({model!r})
session.run(None, {{"X": np.ones(1, np.float32)}})
print(time.monotonic(), time.thread_time())
"""
GATED = """
import time
import numpy as np
from device_sdk import Device, LicensedSession, Trust
device = Device.open({directory!r}, trust=Trust(issuer={issuer!r}, roots=[{root!r}]), product={product!r})
session = LicensedSession({model!r}, device=device, model="add")
session.run(None, {{"X": np.ones(1, np.float32)}})
print(time.monotonic(), time.thread_time())
"""


def rows() -> list[Row]:
    """A device as it is after its activation, and one that has been used for long."""
    return [measure("add", used=False), measure("add, a used device", used=True)]


def measure(name: str, *, used: bool) -> Row:
    """Starts of one device in turns with plain ones."""
    with tempfile.TemporaryDirectory(prefix="meterkit-bench-") as folder:
        work = Path(folder)
        names = prepare(work, used=used)
        plain, gated = work / "plain.py", work / "gated.py"
        plain.write_text(PLAIN.format(**names))
        gated.write_text(GATED.format(**names))
        took(plain)  # the first time writes the bytecode that an installed package has
        for _ in range(LEFT_BEHIND if used else 1):
            took(gated)  # each ends without closing its device, and leaves its cells behind
        ratios, nulls, cpu = [], [], []
        for _ in range(RUNS):
            (first, first_cpu), (second, second_cpu), (third, third_cpu) = took(plain), took(gated), took(plain)
            ratios.append(2 * second / (first + third))
            nulls.append(third / first)
            cpu.append(2 * second_cpu / (first_cpu + third_cpu))
    low, _, high = statistics.quantiles(ratios, n=4)
    values = {"q1": low, "q3": high, "cpu": statistics.median(cpu)}
    name = f"process start → first gated answer ÷ plain, {name}"
    return Row(name, statistics.median(ratios), statistics.median(nulls), RUNS, values=values)


def prepare(work: Path, *, used: bool) -> dict[str, str]:
    """A device that is activated, and the model in a file. A used one has a receipt, a revocation list, and many
    records that were not handed over yet.
    """
    model = work / "add.onnx"
    model.write_bytes(add_model())
    vendor = Vendor(now=int(time.time()))
    terms = [call_model("add", hashlib.sha256(model.read_bytes()).hexdigest())]
    with Device.open(work / "device", trust=vendor.trust, product=PRODUCT) as device:
        device.take_reply(vendor.answer_activation(device.request_activation(code()), terms))
        if used:
            use(device, str(model), vendor)
    return {
        "model": str(model),
        "directory": str(work / "device"),
        "issuer": ISSUER,
        "product": PRODUCT,
        "root": vendor.root.verify_key.text,
    }


def use(device: Device, model: str, vendor: Vendor) -> None:
    """One real answer, a sync, and then as many records of it as a device makes in a hundred days."""
    LicensedSession(model, device=device, model="add").run(None, {"X": np.ones(1, np.float32)})
    revoked = vendor.revocations(1, tokens=[new_id("tok") for _ in range(REVOKED)])
    device.take_reply(vendor.accept(device.make_batches()))
    device.take_reply(Reply(revocations=revoked).to_bytes())
    with device.counter.transaction() as tx:
        now = timekeeper.observe(tx, device.counter.clocks)
        bodies = [json.loads(body) for body in tx.bodies(1)]
        record = next(body for body in bodies if body["kind"] == "usage")
        members = {name: value for name, value in record.items() if name not in ("v", "seq", "time", "boot")}
        for _ in range(RECORDS):
            tx.append(members, time=now.effective_s, boot=now.boot)


def took(program: Path) -> tuple[float, float]:
    """Seconds of one process until its answer: by the clock, and of its main thread on a processor."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.monotonic()
    done = subprocess.run([sys.executable, program], check=True, env=environment, capture_output=True, text=True)
    answered, cpu = map(float, done.stdout.split())
    return answered - start, cpu
