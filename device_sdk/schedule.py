"""When this device should sync next, and with whom: what the last exchange left for the next."""

import random

from device_sdk.readings import Clocks
from device_sdk.vault import Vault
from meterkit import limits
from meterkit.canonical import to_bytes
from meterkit.clocks import NS
from meterkit.tokens import Genuine


class Schedule:
    """The server's address and the next sync time, kept in the vault. Advice, not entitlement."""

    def __init__(self, vault: Vault, clocks: Clocks) -> None:
        self._vault = vault
        self._clocks = clocks

    @property
    def server(self) -> str | None:
        """The URL of the server that this device was activated at, or None."""
        server = self._vault.settings().get("server")
        return server if isinstance(server, str) else None

    @property
    def next_sync_at(self) -> int | None:
        """The instant of the next sync, seconds UTC by the wall clock; None before the first exchange."""
        at = self._vault.settings().get("next_sync_at")
        return at if isinstance(at, int) else None

    def remember(self, **values: str | int) -> None:
        """Keep some of the two."""
        self._vault.replace("sync.json", to_bytes({**self._vault.settings(), **values}))

    def next_after(self, advised_s: int | None, *, token: Genuine | None) -> None:
        """Plan the next sync: as advised, earlier by a random tenth at most, never after a new token is due.

        The randomness spreads a fleet's calls; nothing secret rests on it.
        """
        wanted_s = limits.SYNC_DEFAULT_S if advised_s is None else advised_s
        spread_s = wanted_s * limits.SYNC_JITTER_PERCENT // 100
        at = self._clocks.wall_ns() // NS + wanted_s - random.randint(0, spread_s)  # noqa: S311
        if token is not None:
            at = min(at, token.token.renew_s)
        self.remember(next_sync_at=max(0, at))
