"""Meterkit on a device: run a licensed ONNX model offline, and count what was used.

The names that a vendor's code needs. `LicensedSession` is imported when it is first asked for, so that a program
which only syncs does not load ONNX Runtime; `Status` too, so that one which only runs does not load the exchange.
"""

from typing import TYPE_CHECKING, Any

from device_sdk.device import Device
from meterkit.errors import DenialError, DeviceError, LedgerError, MeterkitError
from meterkit.keys import Trust

if TYPE_CHECKING:
    from device_sdk.session import LicensedSession
    from device_sdk.standings import Status

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
    if name == "Status":
        from device_sdk.standings import Status  # noqa: PLC0415 - see above

        return Status
    raise AttributeError(name)
