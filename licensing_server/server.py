"""The Server: everything a use case needs from outside, in one frozen object that is passed explicitly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from licensing_server.sealing import Sealer
from meterkit import ids, limits, signing
from meterkit.envelopes import Kind
from meterkit.errors import ServiceError, TrustError
from meterkit.keys import Keyring, SigningKey, VerifyKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One vendor's server. Its clock and its randomness are functions, so that tests can hold them.

    `keyrings` are the documents that devices are given, by version; `keyring` is the newest of them, opened.
    `webhook_hosts` are those that webhooks may reach though their addresses are internal.
    `check_exclusion` is asked before records leave the sums, and refuses where billing does not allow it.
    `device_keys` remembers keys that were read: a device's id is its key's own, so what is remembered stays true.
    """

    directory: Path
    issuer: str
    engine: sa.Engine
    clock: Callable[[], int]
    random: Callable[[int], bytes] = field(repr=False)
    keys: dict[str, SigningKey] = field(repr=False)
    keyrings: dict[int, tuple[str, ...]] = field(repr=False)
    keyring: Keyring = field(repr=False)
    pepper: bytes = field(repr=False)
    sealer: Sealer = field(repr=False)
    check_exclusion: Callable[[sa.Connection, Sequence[Any]], None] = field(repr=False)
    webhook_hosts: frozenset[str] = frozenset()
    device_keys: dict[str, VerifyKey] = field(default_factory=dict, repr=False, compare=False)

    def make_id(self, prefix: str) -> str:
        """Make a new identifier of a noun."""
        return ids.make(prefix, self.random(16))

    def sign(self, kind: Kind, claims: dict[str, Any]) -> str:
        """Sign claims as one kind of thing, dated by their own `iat`.

        Raises:
            ServiceError: `signing_unavailable` if the key for it is not good now, or the clock cannot be right.
        """
        self.check_can_sign(kind.purpose, claims["iat"])
        return signing.sign(kind, claims, self.keys[kind.purpose])

    def check_can_sign(self, purpose: str, now: int) -> None:
        """Return if a signature made now would be believed; a clock outside the keyring's life is not."""
        key = self.keys.get(purpose)
        if key is None:
            raise ServiceError("signing_unavailable", f"no {purpose} key")
        if not self.keyring.iat <= now <= min(self.keyring.expires, limits.TIME_MAX_S):
            raise ServiceError("signing_unavailable", "the clock lies outside the keyring's life")
        try:
            self.keyring.find(key.kid, purpose)
            self.keyring.check_good(key.kid, now)
        except TrustError:
            raise ServiceError("signing_unavailable", f"the {purpose} key is not good now") from None
