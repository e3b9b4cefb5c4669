"""A device's program, run as a process of its own: `journey_device.py DIRECTORY ROOT SHIFT_S NETWORK VERB …`.

SHIFT_S is how far this device's clocks, wall and boot alike, have run on. NETWORK is `online`, or `offline`: then
opening any socket ends the process. Each verb prints one line of JSON.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from device_sdk import Device, LicensedSession, MeterkitError, Trust
from device_sdk.readings import Clocks

ISSUER, PRODUCT, MODEL = "vendor.example", "camera", "mul"


def forbid_sockets(event: str, _: object) -> None:
    if event.startswith("socket."):
        raise SystemExit(f"a socket was used: {event}")


def run(device: Device, model_path: str, calls: int) -> dict[str, object]:
    session = LicensedSession(model_path, device=device, model=MODEL)
    node = session.get_inputs()[0]
    feed = {node.name: np.ones(node.shape, np.float32)}
    delivered = 0
    try:
        for _ in range(calls):
            session.run(None, feed)
            delivered += 1
    except MeterkitError as refusal:
        return {"delivered": delivered, "code": refusal.code}
    return {"delivered": delivered, "code": None}


def answer(device: Device, verb: str, rest: list[str]) -> object:
    match verb:
        case "activate":
            device.activate(rest[0], rest[1])
            return {"device": device.id}
        case "request":
            device.export_activation(rest[0], rest[1])
            return {}
        case "run":
            return run(device, rest[0], int(rest[1]))
        case "status":
            return asdict(device.status())
        case "sync":
            return [asdict(each) for outcome in device.sync() for each in outcome.taken]
        case "export":
            return {"batches": device.export_batch(rest[0])}
        case "import":
            return [asdict(each) for each in device.import_reply(rest[0]).taken]
    raise SystemExit(f"unknown verb {verb}")


def main() -> None:
    directory, root, shift_s, network, verb, *rest = sys.argv[1:]
    if network == "offline":
        sys.addaudithook(forbid_sockets)
    shift_ns = int(shift_s) * 10**9
    clocks = Clocks(
        boot_ns=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) + shift_ns,
        wall_ns=lambda: time.time_ns() + shift_ns,
    )
    trust = Trust(issuer=ISSUER, roots=(root,))
    with Device.open(Path(directory), trust=trust, product=PRODUCT, clocks=clocks) as device:
        try:
            print(json.dumps(answer(device, verb, rest)))
        except MeterkitError as refusal:
            print(json.dumps({"refused": refusal.code}))


main()
