"""A process that uses a licensed model, then only waits and looks: `idle_device.py DIRECTORY ISSUER ROOT PRODUCT`.

It marks on stderr what it is about to do, so that a trace of its system calls can be cut there.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from device_sdk import Device, LicensedSession, Trust, keeper

TICKS = 4


class Ticks:
    """Counts how often the keeper looked after everything and found nothing to be due within the next second."""

    def __init__(self) -> None:
        self._count = 0
        self._tick = keeper.tick
        keeper.tick = self

    def __call__(self, counter) -> float:
        delay_s = self._tick(counter)
        self._count += delay_s >= 1
        return delay_s

    def wait(self) -> None:
        """Return when it has done so again some times: on a busy machine that takes longer."""
        last = self._count + TICKS
        while self._count < last:
            time.sleep(0.05)


def mark(name: str) -> None:
    os.write(2, f"MARK {name}\n".encode())


def main() -> None:
    directory, issuer, root, product = sys.argv[1:]
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    ticks = Ticks()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
    running = LicensedSession(model, options, device=device, model="mul")
    mark("using")
    for _ in range(50):
        running.run(None, {"X": np.arange(6, dtype=np.float32).reshape(3, 2)})
    ticks.wait()
    mark("idle")
    ticks.wait()
    mark("folding")
    device.status()
    mark("looking")
    for _ in range(3):
        device.status()
    device.make_batches()
    mark("closing")
    device.close()


main()
