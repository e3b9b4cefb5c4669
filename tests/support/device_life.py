"""A device that is used while its clocks go wrong, and what must hold for what it used, whatever they do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import device_models
from device_site import MUL, NS, FakeClocks, Site, let_go, recorded, records, session
from vendor import Vendor

from device_sdk import Device, LicensedSession, MeterkitError
from device_sdk.inbox import Outcome
from meterkit import limits
from meterkit.exchange import Batch, open_batch
from meterkit.licenses import ModelTerms

HOUR_S = 3_600
DAY_S = 86_400
YEAR_S = 365 * DAY_S
WINDOW_S = limits.WINDOW_S


def site_at(path: Path, second: int) -> Site:
    """A site at another time than the usual one."""
    return Site(path / "device", time=FakeClocks(second), vendor=Vendor(now=second))


class Life:
    """One device through any number of boots. Every unit that was delivered is in `used`, under the true second
    at which its call began.
    """

    def __init__(self, site: Site, *models: ModelTerms, **changes) -> None:
        self.site = site
        self.time = site.time
        self.used: list[int] = []
        self.device: Device = site.activated(*(models or (MUL,)), **changes)
        self.running: LicensedSession = session(self.device)

    def use(self, times: int = 1, feed: dict[str, Any] | None = None) -> str | None:
        """Call the model; gives the code for which it is refused, or None."""
        for _ in range(times):
            began_s = self.time.now_s
            try:
                self.running.run(None, device_models.MUL_FEED if feed is None else feed)
            except MeterkitError as fault:
                return fault.code
            self.used.append(began_s)
        return None

    def run_on(self, seconds: float, times: int = 1) -> str | None:
        """Let time pass as it does, then use the model."""
        self.time.run_on(seconds)
        return self.use(times)

    def set_clock(self, seconds: float) -> None:
        """Set the wall clock to an instant, seconds UTC."""
        self.time.wall_ns = int(seconds * NS)

    def set_right(self) -> None:
        """Set the wall clock to the true time."""
        self.time.wall_ns = self.time.true_ns

    def open(self) -> None:
        """Open the device and its session, as another process would."""
        self.device = self.site.open()
        self.running = session(self.device)

    def close(self) -> None:
        self.device.close()

    def reboot(self, off_s: float, *, wall_s: float | None = None) -> None:
        """Shut down in order, stay off for a while, and start again, perhaps with another wall clock."""
        self.close()
        self._start(off_s, wall_s)

    def lose_power(self, off_s: float, *, wall_s: float | None = None) -> None:
        """As `reboot`, but nothing was closed: the cells are as the disk had them."""
        self._gone = (self.device, self.running)  # its cells are not retired: their process is no more
        let_go(self.device.counter.own.file._handle)
        self._start(off_s, wall_s)

    def _start(self, off_s: float, wall_s: float | None) -> None:
        self.time.reboot(off_s)
        if wall_s is not None:
            self.set_clock(wall_s)
        self.open()

    # -- what it tells

    def batch(self) -> Batch:
        """What it would hand over now, in one batch."""
        (text,) = self.device.make_batches()
        return open_batch(text, lambda _: self.device.keys.sign.verify_key)[1]

    def hand_over(self, *models: ModelTerms, **changes) -> Outcome:
        """Sync with the vendor, at the true time; nothing of what was used is missing there, or there twice."""
        outcome = self.site.sync(self.device, *models, **changes)
        assert not outcome.refused, outcome
        assert self.site.vendor.units("mul") == len(self.used)
        return outcome

    def usage(self) -> list[dict[str, Any]]:
        """The usage records of its ledger, everything folded."""
        assert recorded(self.device) <= len(self.used)
        return records(self.device, "usage")

    def clock_reasons(self) -> list[str]:
        return [record["reason"] for record in records(self.device, "clock")]

    def windows(self) -> dict[int, int]:
        """Units by window, as recorded."""
        return summed(self.usage(), lambda record: record["window"])

    def flagged(self) -> dict[tuple[str, ...], int]:
        """Units by their flags, as recorded."""
        return summed(self.usage(), lambda record: tuple(record["flags"]))

    def provisional_units(self) -> int:
        return sum(record["units"] for record in self.usage() if record["provisional"])

    def true_windows(self) -> dict[int, int]:
        """Units by the window in which their call truly began."""
        found: dict[int, int] = {}
        for second in self.used:
            found[second // WINDOW_S] = found.get(second // WINDOW_S, 0) + 1
        return found


def summed(found: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, int]:
    """Units of usage records by something that they say."""
    sums: dict[Any, int] = {}
    for record in found:
        sums[key(record)] = sums.get(key(record), 0) + record["units"]
    return sums


class Meanwhile(dict[str, Any]):
    """A feed of `mul`: when the call that gets it runs, and has not answered yet, something else happens."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(device_models.MUL_FEED)
        self.act = act
        self.acted = 0

    def keys(self) -> Any:
        self.acted += 1
        if self.acted == 1:
            self.act()
        return super().keys()
