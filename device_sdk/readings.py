"""The clocks of this system, read at one moment, and the one place that reads them."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable

from meterkit.clocks import Reading
from meterkit.errors import DeviceError
from meterkit.tuples import NamedTuple

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_CLOCK_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


@functools.cache
def boot_id() -> str:
    """The id of this boot; another process, and after a fork the child, sees the same."""
    try:
        with open(_BOOT_ID, "rb") as file:
            return file.read().decode("ascii").strip()
    except OSError:
        raise DeviceError("platform_unsupported", "no boot id") from None


def check_platform() -> None:
    """Return on Linux with CPython 3.11 or newer; elsewhere raise `platform_unsupported`."""
    fits = sys.platform == "linux" and sys.implementation.name == "cpython" and sys.byteorder == "little"
    if not fits or _CLOCK_BOOTTIME is None:
        raise DeviceError("platform_unsupported")
    boot_id()


class Clocks(NamedTuple):
    """Where a device reads the time: wall clock, boot clock (it counts suspend), and the boot's id; and how a
    thread waits for some seconds of it, or for something to happen before.
    """

    boot_ns: Callable[[], int] = functools.partial(time.clock_gettime_ns, _CLOCK_BOOTTIME or 0)
    wall_ns: Callable[[], int] = time.time_ns
    boot: Callable[[], str] = boot_id
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait

    def read(self) -> Reading:
        """Read all three, as near to each other as Python allows."""
        return Reading(wall_ns=self.wall_ns(), boot_ns=self.boot_ns(), boot=self.boot())
