"""Meterkit on a device: run a licensed ONNX model offline, and count what was used.

The three names that a vendor's code needs; `LicensedSession` is imported when it is first asked for, so that
a program which only syncs does not load ONNX Runtime.
"""

from typing import TYPE_CHECKING, Any

from device_sdk.device import Device
from device_sdk.standings import Status
from meterkit.errors import DenialError, DeviceError, LedgerError, MeterkitError
from meterkit.keys import Trust

if TYPE_CHECKING:
    from device_sdk.session import LicensedSession

__all__ = [
    "DenialError",
    "Device",
    "DeviceError",
    "LedgerError",
    "LicensedSession",
    "MeterkitError",
    "Status",
    "Trust",
]


def __getattr__(name: str) -> Any:
    if name == "LicensedSession":
        from device_sdk.session import LicensedSession  # noqa: PLC0415 - see above

        return LicensedSession
    raise AttributeError(name)
