"""What is asked of devices by people. What devices say themselves is signed, and `meterkit` judges it."""

from licensing_server.schemas import LicenseId

LicenseFilter = LicenseId | None
