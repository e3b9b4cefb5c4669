"""A process that uses a licensed model and is told line by line what to do, while its disk is made to fail.

    disk_device.py DIRECTORY ISSUER ROOT PRODUCT

It answers each line on stdin with one line of JSON on stdout: `code` is the SDK's refusal, or null. Whatever else
is raised ends it with a traceback, as it would end a host program that only knows what the SDK promises. It waits
a fifth of a second for a lock, so that tests need not wait longer.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from meterkit import limits

limits.BUSY_TIMEOUT_MS = 200

import device_models  # noqa: E402 - the timeout is set first
from device_site import quiet_options  # noqa: E402

from device_sdk import Device, LicensedSession, MeterkitError, Trust, exchanging  # noqa: E402, F401


class Host:
    """A host program: each method is a line that it may be told."""

    def __init__(self, directory: str, issuer: str, root: str, product: str) -> None:
        self._opening = (directory, Trust(issuer=issuer, roots=(root,)), product)
        self._device: Device | None = None
        self._running: LicensedSession | None = None

    def open(self) -> dict:
        directory, trust, product = self._opening
        self._device = Device.open(directory, trust=trust, product=product)
        return {}

    def use(self, times: str) -> dict:
        """Run so many times, or until it is refused; every answer that was delivered is told."""
        delivered, code = 0, None
        try:
            if self._running is None:
                model = device_models.mul()
                self._running = LicensedSession(model, quiet_options(), device=self._device, model="mul")
            while delivered < int(times):
                self._running.run(None, device_models.MUL_FEED)
                delivered += 1
        except MeterkitError as fault:
            code = fault.code
        return {"delivered": delivered, "code": code}

    def status(self) -> dict:
        status = self._device.status()
        return {"status": dataclasses.asdict(status), "ledger_code": status.ledger_code}

    def request(self, code: str) -> dict:
        return {"request": self._device.request_activation(code)}

    def export(self, path: str) -> dict:
        return {"batches": self._device.export_batch(path)}

    def take(self, path: str) -> dict:
        return {"refused": sorted(part.code for part in self._device.import_reply(path).refused)}

    def edge(self) -> dict:
        """Give back what is leased: the next call takes a lease anew."""
        self._device.counter.end_leases()
        return {}

    def reconnect(self) -> dict:
        """Let go of the open file, as after any commit that failed."""
        if self._device is not None:
            with self._device.counter.lock:
                self._device._store.drop()
        return {}

    def close(self) -> dict:
        self._device.close()
        return {}


def main() -> None:
    host = Host(*sys.argv[1:])
    for line in sys.stdin:
        name, *values = line.split()
        try:
            answer = getattr(host, name)(*values)
        except MeterkitError as fault:
            answer = {"code": fault.code, "detail": fault.detail}
        os.write(1, json.dumps({"code": None, **answer}).encode() + b"\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
