"""A process that uses a licensed model, to be killed: one byte on stdout for every answer after it was delivered.

    device_worker.py DIRECTORY ISSUER ROOT PRODUCT THREADS [CALLS]

Writes `ready` to stderr when it is about to begin. If DEVICE_WORKER_GO names a file, it makes one call before, and
waits for the file after. Each thread ends after so many calls, or when it is denied, and then names the reason on
stderr. It imports no more than a vendor's program would, so as to start fast.
"""

import itertools
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime

from device_sdk import Device, LicensedSession, MeterkitError, Trust


def say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


def use(running: LicensedSession, calls: int | None) -> None:
    feed = {"X": np.arange(6, dtype=np.float32).reshape(3, 2)}
    for _ in itertools.repeat(None) if calls is None else range(calls):
        try:
            running.run(None, feed)
        except MeterkitError as fault:
            say(fault.code)
            return
        os.write(1, b".")


def main() -> None:
    directory, issuer, root, product, threads, *rest = sys.argv[1:]
    calls = int(rest[0]) if rest else None
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
    running = LicensedSession(model, options, device=device, model="mul")
    go = os.environ.get("DEVICE_WORKER_GO")
    if go:
        use(running, 1)
    say("ready")
    while go and not Path(go).exists():
        time.sleep(0.001)
    users = [threading.Thread(target=use, args=(running, calls)) for _ in range(int(threads))]
    for user in users:
        user.start()
    for user in users:
        user.join()
    device.close()


if __name__ == "__main__":
    main()
