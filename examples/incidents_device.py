"""The vendor's program on a device, for the incidents: it calls a small licensed model.

    incidents_device.py DIRECTORY ISSUER ROOT activate CODE SERVER
    incidents_device.py DIRECTORY ISSUER ROOT use CALLS
    incidents_device.py DIRECTORY ISSUER ROOT hold CALLS MORE

`hold` says `counted` after so many calls, and makes more of them when it reads a line: in between it lives, with
counts that no ledger holds yet.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from device_sdk import Device, LicensedSession, Trust

PRODUCT, MODEL = "gauge", "mul"
MODEL_PATH = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"  # ONNX Runtime brings it along


def main() -> None:
    """Run one of the three."""
    directory, issuer, root, verb, *rest = sys.argv[1:]
    with Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=PRODUCT) as device:
        if verb == "activate":
            device.activate(rest[0], server=rest[1])
            return
        session = LicensedSession(MODEL_PATH, device=device, model=MODEL)
        for number, calls in enumerate(map(int, rest)):
            if number:
                print("counted", flush=True)
                sys.stdin.readline()
            for _ in range(calls):
                session.run(None, {"X": np.ones((3, 2), np.float32)})


if __name__ == "__main__":
    main()
