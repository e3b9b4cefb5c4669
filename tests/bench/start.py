"""Process start → first gated answer ÷ the same with plain ONNX Runtime, whole processes in turns.

A process says itself when it has its answer: how it ends, ONNX Runtime's own farewell included, is not measured.
"""

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Row
from vendor import ISSUER, PRODUCT, Vendor, call_model, code
from world import add_model

from device_sdk import Device

RUNS = 40
PLAIN = """
import time
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({model!r})
session.run(None, {{"X": np.ones(1, np.float32)}})
print(time.monotonic(), time.process_time())
"""
GATED = """
import time
import numpy as np
from device_sdk import Device, LicensedSession, Trust
device = Device.open({directory!r}, trust=Trust(issuer={issuer!r}, roots=[{root!r}]), product={product!r})
session = LicensedSession({model!r}, device=device, model="add")
session.run(None, {{"X": np.ones(1, np.float32)}})
print(time.monotonic(), time.process_time())
"""


def rows() -> list[Row]:
    """One row."""
    with tempfile.TemporaryDirectory(prefix="meterkit-bench-") as folder:
        work = Path(folder)
        names = prepare(work)
        plain, gated = work / "plain.py", work / "gated.py"
        plain.write_text(PLAIN.format(**names))
        gated.write_text(GATED.format(**names))
        took(plain), took(gated)  # the first time writes the bytecode that an installed package has
        ratios, nulls, cpu = [], [], []
        for _ in range(RUNS):
            (first, first_cpu), (second, second_cpu), (third, third_cpu) = took(plain), took(gated), took(plain)
            ratios.append(2 * second / (first + third))
            nulls.append(third / first)
            cpu.append(2 * second_cpu / (first_cpu + third_cpu))
    low, _, high = statistics.quantiles(ratios, n=4)
    name = "process start → first gated answer ÷ plain, add"
    values = {"q1": low, "q3": high, "cpu": statistics.median(cpu)}
    return [Row(name, statistics.median(ratios), statistics.median(nulls), RUNS, values=values)]


def prepare(work: Path) -> dict[str, str]:
    """A device that is activated, and the model in a file."""
    model = work / "add.onnx"
    model.write_bytes(add_model())
    vendor = Vendor(now=int(time.time()))
    with Device.open(work / "device", trust=vendor.trust, product=PRODUCT) as device:
        terms = [call_model("add", hashlib.sha256(model.read_bytes()).hexdigest())]
        device.take_reply(vendor.answer_activation(device.request_activation(code()), terms))
    return {
        "model": str(model),
        "directory": str(work / "device"),
        "issuer": ISSUER,
        "product": PRODUCT,
        "root": vendor.root.verify_key.text,
    }


def took(program: Path) -> tuple[float, float]:
    """Seconds of one process until its answer, by the clock and of the processor."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.monotonic()
    done = subprocess.run([sys.executable, program], check=True, env=environment, capture_output=True, text=True)
    answered, cpu = map(float, done.stdout.split())
    return answered - start, cpu
