"""A device's whole life: calls, mail and mishaps, and what they are made of."""

import numpy as np
from device_models import frames
from device_site import MUL, ROWS, limited
from machine_calls import Calls
from machine_mail import Mail
from machine_mishaps import Mishaps

from meterkit.licenses import ModelTerms, Policy

FLAG = Policy(expiry="flag", limit="flag", clock="flag")
BAD_FEEDS = {
    "mul": {"X": np.ones((2, 2), np.float32)},
    "rows": {**frames(3), "scale": np.ones(3, np.float32)},
}


def terms(mul_limit: int | None, rows_limit: int | None) -> list[ModelTerms]:
    return [limited(MUL, mul_limit), limited(ROWS, rows_limit)]


class Life(Calls, Mail, Mishaps):
    """Everything that can happen."""
