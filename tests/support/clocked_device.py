"""A process that uses a licensed model as it is told, under whatever clocks it was started with.

    clocked_device.py DIRECTORY ISSUER ROOT PRODUCT

Reads one command a line and answers each with one line of JSON. `use N` makes N calls, each an edge of its own
(`count="strict"`): what was delivered, and the code for which the next one was refused. `status` tells what the
device and the clocks say. `run THREADS` calls from so many threads until each is refused: for each, what was
delivered, when the last delivered call began, and the code. `batches` gives what there is to hand over,
`reply HEX` takes what came back. At the end of input the device is closed.
"""

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime

from device_sdk import Device, LicensedSession, MeterkitError, Trust

FEED = {"X": np.arange(6, dtype=np.float32).reshape(3, 2)}


def use(running: LicensedSession, calls: int | None) -> dict:
    delivered, last_began = 0, 0.0
    while delivered != calls:
        began = time.time()
        try:
            running.run(None, FEED)
        except MeterkitError as fault:
            return {"delivered": delivered, "last_began": last_began, "code": fault.code}
        delivered, last_began = delivered + 1, began
    return {"delivered": delivered, "last_began": last_began, "code": None}


def run(opened, threads: int) -> list[dict]:
    found: list[dict] = []
    running = opened("leased")
    users = [threading.Thread(target=lambda: found.append(use(running, None))) for _ in range(threads)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    return found


def main() -> None:
    directory, issuer, root, product = sys.argv[1:]
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    model = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def opened(count):
        return LicensedSession(model, options, device=device, model="mul", count=count)

    strict = None
    for line in sys.stdin:
        verb, *rest = line.split()
        if verb == "use":
            strict = strict or opened("strict")
            answer = use(strict, int(rest[0]))
        elif verb == "run":
            answer = run(opened, int(rest[0]))
        elif verb == "batches":
            answer = device.make_batches()
        elif verb == "reply":
            answer = [part.code for part in device.take_reply(bytes.fromhex(rest[0])).refused]
        else:
            clocks = {"wall": time.time(), "boot": time.clock_gettime(time.CLOCK_BOOTTIME)}
            answer = {**asdict(device.status()), **clocks}
        os.write(1, json.dumps(answer).encode() + b"\n")
    device.close()


if __name__ == "__main__":
    main()
