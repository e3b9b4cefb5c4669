"""Meterkit on a device: run a licensed ONNX model offline, and count what was used.

The names that a vendor's code needs. `LicensedSession` is imported when it is first asked for, so that a program
which only syncs does not load ONNX Runtime; the names of the exchange too, so that one which only runs does not
load that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from device_sdk.importing import all_kept

with all_kept():
    from device_sdk.device import Device
    from meterkit.errors import DenialError, DeviceError, LedgerError, MeterkitError
    from meterkit.keys import Trust

if TYPE_CHECKING:
    from device_sdk.background import BackgroundSync, SyncAttempt
    from device_sdk.session import LicensedSession
    from device_sdk.standings import Status

__all__ = [
    "BackgroundSync",
    "DenialError",
    "Device",
    "DeviceError",
    "LedgerError",
    "LicensedSession",
    "MeterkitError",
    "Status",
    "SyncAttempt",
    "Trust",
]


_HOMES = {
    "BackgroundSync": "device_sdk.background",
    "LicensedSession": "device_sdk.session",
    "Status": "device_sdk.standings",
    "SyncAttempt": "device_sdk.background",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    with all_kept():
        home = import_module(_HOMES[name])
    found = globals()[name] = getattr(home, name)  # so that it is not asked for here again
    return found
