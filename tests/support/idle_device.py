"""A process that uses a licensed model, then only waits and looks: `idle_device.py DIRECTORY ISSUER ROOT PRODUCT`.

It marks on stderr what it is about to do, so that a trace of its system calls can be cut there.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from device_sdk import Device, LicensedSession, Trust

SETTLE_S = 4
IDLE_S = 4


def mark(name: str) -> None:
    os.write(2, f"MARK {name}\n".encode())


def main() -> None:
    directory, issuer, root, product = sys.argv[1:]
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
    running = LicensedSession(model, options, device=device, model="mul")
    mark("using")
    for _ in range(50):
        running.run(None, {"X": np.arange(6, dtype=np.float32).reshape(3, 2)})
    time.sleep(SETTLE_S)
    mark("idle")
    time.sleep(IDLE_S)
    mark("folding")
    device.status()
    mark("looking")
    for _ in range(3):
        device.status()
    device.make_batches()
    mark("closing")
    device.close()


main()
