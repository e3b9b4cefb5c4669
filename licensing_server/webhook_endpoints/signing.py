"""Signatures by Standard Webhooks, and the secrets that make them: the only home of `standardwebhooks`."""

import base64
import datetime as dt
from collections.abc import Sequence

from standardwebhooks.webhooks import Webhook

SECRET_BYTES = 32
_PREFIX = "whsec_"


def to_text(secret: bytes) -> str:
    """Write a secret as receivers' libraries read it."""
    return _PREFIX + base64.b64encode(secret).decode("ascii")


def headers(message_id: str, body: bytes, *, secrets: Sequence[bytes], now: int) -> dict[str, str]:
    """The headers that prove a message: its id, when it was sent, and a signature by each secret."""
    sent_at = dt.datetime.fromtimestamp(now, tz=dt.UTC)
    signatures = (Webhook(secret).sign(message_id, sent_at, body.decode("utf-8")) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signatures),
    }
