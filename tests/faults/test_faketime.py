"""Real processes on real clocks, and under libfaketime, which lies to them about the wall clock.

It is the Debian package `libfaketime`. Where it is missing these tests are skipped, unless METERKIT_TEST_NO_SKIP
is set. The boot clock stays real (FAKETIME_DONT_FAKE_MONOTONIC), but where a test says otherwise.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import pytest
from device_life import DAY_S, HOUR_S, WINDOW_S, YEAR_S
from device_site import MUL, Site, recorded, records
from vendor import PRODUCT

from meterkit.exchange import open_batch
from meterkit.licenses import Policy

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "clocked_device.py"
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.fixture
def faketime() -> dict[str, str]:
    """The environment of a process whose wall clock is not to be believed."""
    if not LIBRARIES:
        if os.environ.get("METERKIT_TEST_NO_SKIP"):
            pytest.fail("libfaketime is not installed")
        pytest.skip("libfaketime is not installed")
    return {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
        "NO_FAKE_STAT": "1",
        "TZ": "UTC",
    }


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    made.time.set_true()
    yield made
    made.close()


class Process:
    """A process of its own that uses the site's device; each command gives its answer."""

    def __init__(self, site: Site, environment: dict[str, str] | None = None) -> None:
        trust = site.vendor.trust
        argv = [sys.executable, SCRIPT, site.path, trust.issuer, trust.roots[0], PRODUCT]
        self._process = subprocess.Popen(
            [str(arg) for arg in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __call__(self, command: str):
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def use(self, calls: int) -> str | None:
        """Call so often: all are delivered, or none is; gives the code in that case."""
        answer = self(f"use {calls}")
        assert answer["delivered"] == (calls if answer["code"] is None else 0)
        return answer["code"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0
        self._process.stdout.close()


def hand_over(site: Site, device, *models, **changes) -> int:
    """Sync, by the real time; gives the units of all that the vendor accepted."""
    site.time.set_true()
    assert not site.sync(device, *models, **changes).refused
    return site.vendor.units("mul")


@pytest.mark.parametrize("ahead", ["+10y", "@2262-01-01 00:00:00"])
def test_a_process_that_starts_years_ahead_spoils_nothing_for_the_next(site, faketime, ahead):
    device = site.activated(MUL, real_clocks=True, policy=Policy(expiry="flag"))
    with Process(site) as right:
        assert right.use(2) is None
    with Process(site, faketime | {"FAKETIME": ahead}) as wrong:
        assert wrong.use(3) is None
        status = wrong("status")
    assert status["wall"] > time.time() + 9 * YEAR_S
    assert status["boot"] <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert (status["state"], status["clock_provisional"], status["clock_suspect"]) == ("grace", True, False)
    _, batch = open_batch(device.make_batches()[0], lambda _: device.keys.sign.verify_key)
    assert batch.through <= time.time()
    with Process(site) as right:
        assert right.use(4) is None
        assert right("status")["state"] == "ok"
    assert recorded(device) == 9
    found = [(tuple(each["flags"]), each["provisional"], each["units"]) for each in records(device, "usage")]
    assert [
        sum(units for *kind, units in found if kind == [flags, ahead_too])
        for flags, ahead_too in (((), False), (("expired",), True))
    ] == [6, 3]
    assert [each["reason"] for each in records(device, "clock")] == ["forward", "mended"]
    assert hand_over(site, device) == 9


def test_a_clock_set_back_a_day_in_a_running_process_is_denied_told_and_forgiven(site, faketime, tmp_path):
    device = site.activated(MUL, real_clocks=True)
    now = tmp_path / "now"

    def set_clock(offset: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(offset)
        fresh.replace(now)

    set_clock("+0")
    with Process(site, faketime | {"FAKETIME_TIMESTAMP_FILE": str(now)}) as process:
        assert process.use(2) is None
        set_clock("-1d")
        assert process.use(1) == "clock_rolled_back"
        status = process("status")
        assert status["wall"] < time.time() - DAY_S / 2
        assert abs(status["time"] - time.time()) < HOUR_S
        site.time.set_true()
        site.vendor.now = site.time.now_s
        assert process(f"reply {site.vendor.accept(process('batches')).hex()}") == []
        assert process.use(3) is None
        set_clock("+0")
        assert process.use(4) is None
        assert not process("status")["clock_suspect"]
    windows = {each["window"] for each in records(device, "usage")}
    assert all(abs(window * WINDOW_S - time.time()) < HOUR_S for window in windows)
    assert [each["reason"] for each in records(device, "clock")] == ["back"]
    assert hand_over(site, device) == 9


@pytest.mark.parametrize("instant", ["1970-01-01 00:01:40", "1960-02-29 00:00:00"])
def test_a_process_that_boots_without_a_clock_runs_on(site, faketime, instant):
    """The ledger is of another boot: this one starts with the battery gone."""
    before = site.activated(MUL)
    before.close()
    with Process(site, faketime | {"FAKETIME": f"@{instant}"}) as unset:
        assert unset.use(3) is None
        status = unset("status")
    assert status["wall"] < DAY_S
    booted_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert abs(status["time"] - site.time.now_s - booted_s) < HOUR_S
    assert (status["state"], status["clock_suspect"], status["clock_provisional"]) == ("ok", False, False)
    device = site.open(real_clocks=True)
    with Process(site) as right:
        assert right.use(2) is None
    assert records(device, "clock")[0]["reason"] == "unset"
    assert hand_over(site, device, MUL) == 5


def test_where_all_clocks_lie_at_once_a_token_ends_until_the_server_mends_the_time(site, faketime):
    """The boot clock is believed, its own boot id beside it: it was ten years of sleep."""
    device = site.activated(MUL, real_clocks=True)
    lie = {"FAKETIME": "+10y", "FAKETIME_DONT_FAKE_MONOTONIC": "0"}
    refused = ("token_expired", "clock_rolled_back")
    with Process(site) as right, Process(site, faketime | lie) as lying:
        assert right.use(2) is None
        assert lying.use(1) in refused
        assert right.use(1) in refused
        assert hand_over(site, device, MUL, time_floor=int(time.time())) == 2
        deadline = time.monotonic() + 60
        while right.use(1) is not None:
            assert time.monotonic() < deadline
        assert abs(right("status")["time"] - time.time()) < HOUR_S
    assert hand_over(site, device) == 3


def test_threads_of_a_running_process_see_the_tokens_end_on_the_real_clocks(site):
    """No call that began at the end or later was admitted. Where the machine is slow, a longer token is tried."""
    device = site.open(real_clocks=True)
    with Process(site) as process:
        for life_s in (2, 8, 32):
            site.time.set_true()
            site.activate(device, MUL, life_s=life_s, grace_s=0)
            found = process("run 2")
            delivered = sum(each["delivered"] for each in found)
            assert [each["code"] for each in found] == ["token_expired"] * 2
            assert all(each["last_began"] < device.token().exp for each in found)
            if delivered:
                break
    assert delivered
    assert recorded(device) == delivered
    assert hand_over(site, device) == delivered
