"""When this device should sync next, and with whom: what the last exchange left for the next."""

from __future__ import annotations

import random

from device_sdk.readings import Clocks
from device_sdk.vault import Vault
from meterkit import limits
from meterkit.canonical import to_bytes
from meterkit.clocks import NS, Instant
from meterkit.tokens import Genuine

_DOUBLINGS_MAX = 30  # far beyond the bound


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

    def due_in_s(self, now: Instant, token: Genuine | None, *, made_now: bool) -> int:
        """Seconds until the planned sync, and not after a new token is due: 0 or less if that is over, or where
        nothing is planned.

        A plan that was made just now is measured by the wall clock, as it was made. One that was found is measured
        by the effective time: since it was made, the wall clock may have been lost, or set.
        """
        at = self.next_sync_at
        if at is None:
            return 0
        due_s = at - (self._clocks.wall_ns() // NS if made_now else now.effective_s)
        return due_s if token is None else min(due_s, token.token.renew_s - now.effective_s)

    def remember(self, **values: str | int) -> None:
        """Keep some of the two; what another thread or process keeps meanwhile is not undone.

        `Counter.lock` must be held, as for all that locks the vault.
        """
        with self._vault.locked():
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


# -- how long a sync in the background waits; what is random spreads a fleet, no secret rests on it


def first_wait_s(due_s: int, interval_s: int | None) -> int:
    """Before the first sync of a process. What is overdue is so on every device that was off, or cut off, with
    this one: they must not all come at once.
    """
    if due_s <= 0:
        return random.randint(0, min(limits.SYNC_SPREAD_S, interval_s or limits.SYNC_SPREAD_S))  # noqa: S311
    return next_wait_s(due_s, None) if interval_s is None else min(due_s, random.randint(0, interval_s))  # noqa: S311


def next_wait_s(due_s: int, interval_s: int | None) -> int:
    """Before a sync that is due later: as planned, or after the interval, less a tenth at most. So of a device's
    processes one comes first, and the others see its new plan.
    """
    wait_s = due_s if interval_s is None else min(due_s, interval_s)
    return wait_s - random.randint(0, wait_s * limits.SYNC_JITTER_PERCENT // 100)  # noqa: S311


def retry_wait_s(failures: int, interval_s: int | None, *, retry_after_s: int | None = None) -> int:
    """After so many syncs in a row that failed: twice as long each time, less a half at most, up to a bound.

    How long the server asks to be left alone comes on top.
    """
    longest_s = min(limits.SYNC_RETRY_MAX_S, interval_s or limits.SYNC_RETRY_MAX_S)
    doubled_s = limits.SYNC_RETRY_S << min(failures - 1, _DOUBLINGS_MAX)
    wait_s = min(longest_s, doubled_s)
    return wait_s - random.randint(0, wait_s // 2) + (retry_after_s or 0)  # noqa: S311
