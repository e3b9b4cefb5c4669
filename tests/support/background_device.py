"""A process that syncs in the background, and ends, or forks, in a way that is named.

    background_device.py DIRECTORY ISSUER ROOT PRODUCT URL WAY

It says `ready` on stdout when it has begun to sync, waits for a line on stdin, and goes on: `return`, `sys.exit`,
`os._exit`, `exception`, `closed` and `stopped` end it, `fork` lets a child sync by itself too. With `at once` it
ends without waiting; with `fork in an import` it forks while the thread imports the HTTP client.
"""

import os
import signal
import sys
import threading

from device_sdk import Device, Trust

PATIENCE_S = 60


class SlowImport:
    """Finds nothing, but makes one import last long enough to fork in the midst of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.begun = threading.Event()

    def find_spec(self, name, _path=None, _target=None) -> None:
        if name == self._name:
            self.begun.set()
            threading.Event().wait(1)


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def in_child(work) -> None:
    """Fork, and let the child work; say how it ended, SIGALRM if it did not end by itself."""
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    say(f"child {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


def sync_there(device: Device, url: str, parents) -> None:
    """In the child: the parent's does nothing here, one of this process does."""
    parents.stop()
    told = threading.Event()
    own = device.sync_in_background(interval_s=1, server=url, on_sync=lambda _: told.set())
    told.wait()
    say(f"error {getattr(own.last.error, 'code', None)}")
    device.close()


def end(device: Device, background, way: str) -> None:
    if way == "sys.exit":
        sys.exit(3)
    if way == "os._exit":
        os._exit(3)
    if way == "exception":
        raise LookupError("the host's own")
    if way == "closed":
        device.close()
    if way == "stopped":
        background.stop()


def main() -> None:
    directory, issuer, root, product, url, way = sys.argv[1:]
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    slow = SlowImport("httpx2._client")
    if way == "fork in an import":
        sys.meta_path.insert(0, slow)
    background = device.sync_in_background(interval_s=1, server=url)
    if way == "fork in an import":
        slow.begun.wait()
    elif way != "at once":
        say("ready")
        sys.stdin.readline()
    if way.startswith("fork"):
        in_child(lambda: sync_there(device, url, background))
    end(device, background, way)


if __name__ == "__main__":
    main()
