"""What is asked of devices by people. What devices say themselves is signed, and `meterkit` judges it."""

from typing import Literal

from licensing_server.schemas import Body, Epoch, LicenseId, Text

LicenseFilter = LicenseId | None


class NewWriteOff(Body):
    """Which life of a ledger is written off, and why."""

    epoch: Epoch
    why: Text


class NewDeclaration(Body):
    """What has become of a device, and why that is said."""

    state: Literal["active", "retired", "lost"]
    why: Text


class NewReplacement(Body):
    """Why a device is replaced."""

    why: Text
