"""Syncing in the background: when it does, what it bears, and that nobody waits for it.

Under a test's clocks the thread waits for ever, and `tick` is called as it would. What real threads and processes
do is in `test_background_threads.py`.
"""

import gc
import sys
import weakref

import pytest
import vendor as vendors
from device_site import MUL, START_S, Site, session, unchanged, use
from http_answers import HTML, REPLY, hangs_up, made, plain

from device_sdk import Device, DeviceError, schedule
from device_sdk.background import LOOK_S
from meterkit import limits
from meterkit.errors import LedgerError, TransportError

HOUR_S = 3_600
DAY_S = 86_400
SHORT = {"life_s": 5 * HOUR_S}  # so that a token is due after four hours


class Recorder:
    """A transport that answers as a server does, and notes when it was asked. `faults` are raised first."""

    def __init__(self, site: Site, *models, **changes) -> None:
        self.asked_at: list[float] = []
        self.faults: list[BaseException] = []
        self._site, self._models, self._changes = site, models, changes

    def deliver(self, message) -> bytes:
        time = self._site.time
        self.asked_at.append(time.boot_ns / 10**9)
        if self.faults:
            raise self.faults.pop(0)
        self._site.vendor.now = time.now_s
        return self._site.vendor.accept(message.body.decode().split(), list(self._models), **self._changes)

    @property
    def gaps_s(self) -> list[float]:
        return [later - before for before, later in zip(self.asked_at, self.asked_at[1:], strict=False)]


def let_pass(site, background, seconds: float) -> None:
    """Let time pass as the thread would see it."""
    left_s = seconds
    while left_s > 0:
        wait_s = background.tick()
        assert 0 < wait_s <= LOOK_S
        site.time.run_on(min(wait_s, left_s))
        left_s -= wait_s


def busy(seconds: int | None = None) -> TransportError:
    return TransportError("server_busy", "HTTP 503", retry_after_s=seconds)


@pytest.fixture
def device(site):
    made = site.activated(MUL)
    use(session(made), 3)
    return made


@pytest.fixture
def way(site):
    return Recorder(site, MUL)


# -- when


def test_without_an_interval_it_follows_the_plan(site, device, way):
    background = device.sync_in_background(server=way)
    left_s = device.status().next_sync_at - START_S
    let_pass(site, background, 0.9 * left_s - 1)
    assert way.asked_at == []
    assert background.last is None
    let_pass(site, background, 0.1 * left_s + 2)
    assert len(way.asked_at) == 1
    assert site.vendor.units("mul") == 3
    let_pass(site, background, 4 * DAY_S)
    assert all(0.8 * DAY_S <= gap <= DAY_S for gap in way.gaps_s)
    assert len(way.gaps_s) >= 4


def test_an_interval_is_the_longest_distance(site, device, way):
    background = device.sync_in_background(server=way, interval_s=HOUR_S)
    began = site.time.boot_ns / 10**9
    let_pass(site, background, 12 * HOUR_S)
    assert way.asked_at[0] - began <= HOUR_S
    assert all(0.9 * HOUR_S <= gap <= HOUR_S for gap in way.gaps_s)
    assert len(set(way.gaps_s)) > 3


def test_an_interval_makes_nothing_later_than_planned(site, device, way):
    background = device.sync_in_background(server=way, interval_s=90 * DAY_S)
    let_pass(site, background, 3 * DAY_S)
    assert len(way.asked_at) >= 3


@pytest.mark.parametrize("interval_s", [None, 30 * DAY_S])
def test_a_token_is_renewed_when_it_is_due(site, interval_s):
    device = site.activated(MUL, **SHORT)
    way = Recorder(site, MUL, **SHORT)
    background = device.sync_in_background(server=way, interval_s=interval_s)
    states = set()
    for _ in range(30):
        let_pass(site, background, HOUR_S + 7)  # so as to look before it is due, and after, not at that second
        states.add(device.status().state)
    assert states == {"ok"}
    assert all(gap <= 4 * HOUR_S for gap in way.gaps_s)


def test_a_token_is_renewed_when_it_is_due_whatever_the_wall_clock_shows(site):
    device = site.activated(MUL, **SHORT)
    way = Recorder(site, MUL, **SHORT)
    site.time.set_wall(-10 * HOUR_S)
    background = device.sync_in_background(server=way)
    let_pass(site, background, DAY_S)
    assert len(way.gaps_s) >= 4
    assert all(gap <= 4 * HOUR_S for gap in way.gaps_s)


def test_devices_that_come_at_once_are_spread():
    overdue = [schedule.first_wait_s(0, None) for _ in range(500)]
    assert 0 <= min(overdue) < limits.SYNC_SPREAD_S / 10
    assert limits.SYNC_SPREAD_S * 9 / 10 < max(overdue) <= limits.SYNC_SPREAD_S
    first = [schedule.first_wait_s(DAY_S, 1_000) for _ in range(500)]
    assert 0 <= min(first) < 100
    assert 900 < max(first) <= 1_000
    assert max(schedule.first_wait_s(-5, 20) for _ in range(200)) <= 20
    found = [schedule.first_wait_s(DAY_S, None) for _ in range(500)]
    assert DAY_S * 0.9 <= min(found) < DAY_S * 0.91
    assert DAY_S * 0.99 < max(found) <= DAY_S
    after = {schedule.retry_wait_s(1, None, retry_after_s=120) for _ in range(500)}
    assert len(after) > 20


def test_what_is_overdue_at_the_start_comes_soon(site, device, way):
    site.time.run_on(2 * DAY_S)
    background = device.sync_in_background(server=way)
    let_pass(site, background, limits.SYNC_SPREAD_S + 1)
    assert len(way.asked_at) == 1


@pytest.mark.parametrize("step_s", [-10 * DAY_S, 10 * DAY_S])
def test_setting_the_clock_moves_no_sync(site, device, way, step_s):
    background = device.sync_in_background(server=way)
    left_s = device.status().next_sync_at - START_S
    let_pass(site, background, HOUR_S)
    site.time.set_wall(step_s)
    let_pass(site, background, 0.9 * left_s - HOUR_S - 1)
    assert way.asked_at == []
    let_pass(site, background, 0.1 * left_s + 2)
    assert len(way.asked_at) == 1


def test_a_wall_clock_that_was_lost_delays_no_sync(site, device, way):
    """There is no battery: after a start it shows 1970, until somebody sets it."""
    left_s = device.status().next_sync_at - START_S
    device.close()
    site.time.reboot(off_s=0)
    site.time.wall_ns = 0
    device = site.open()
    background = device.sync_in_background(server=way)
    let_pass(site, background, left_s + 1)
    assert len(way.asked_at) == 1
    let_pass(site, background, DAY_S)
    assert len(way.asked_at) == 2


def test_what_was_exchanged_beside_it_makes_a_new_plan(site, device, way):
    background = device.sync_in_background(server=way)
    let_pass(site, background, DAY_S / 2)
    other = site.open()
    site.sync(other, MUL, **SHORT)
    let_pass(site, background, 4 * HOUR_S + 1)
    assert len(way.asked_at) == 1


def test_a_token_that_another_process_fetched_is_not_due(site):
    device = site.activated(MUL, **SHORT)
    way = Recorder(site, MUL)
    background = device.sync_in_background(server=way)
    let_pass(site, background, 3 * HOUR_S)
    site.sync(site.open(), MUL)
    let_pass(site, background, 20 * HOUR_S)
    assert way.asked_at == []


def test_of_several_processes_on_a_device_one_syncs(site, device, way):
    devices = [device, *[site.open() for _ in range(3)]]
    several = [each.sync_in_background(server=way) for each in devices]
    for _ in range(int(2 * DAY_S / LOOK_S)):
        for background in several:
            background.tick()
        site.time.run_on(LOOK_S)
    assert 2 <= len(way.asked_at) <= 5


def test_waiting_for_the_next_one_writes_nothing(site, device, way):
    background = device.sync_in_background(server=way)
    background.tick()
    with unchanged(site.path):
        let_pass(site, background, HOUR_S)
    assert way.asked_at == []


# -- what fails


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_left_alone_as_long_as_it_asks(site, device, server, status):
    server.answers = [
        plain(status, HTML, b"", retry_after="7200"),
        made(REPLY, lambda body: site.vendor.accept(body.decode().split())),
    ]
    background = device.sync_in_background(server=server.url, interval_s=60)
    let_pass(site, background, 61)
    assert len(server.requests) == 1
    assert background.last.error.retry_after_s == 7_200
    assert 7_200 < background.last.next_in_s <= 7_200 + 60
    let_pass(site, background, 7_200 - 62)
    assert len(server.requests) == 1
    let_pass(site, background, 150)
    assert len(server.requests) > 1
    assert background.last.error is None
    assert site.vendor.units("mul") == 3


def test_an_unreachable_server_is_asked_later_and_later(site, device, way):
    way.faults = [TransportError("server_unreachable") for _ in range(12)]
    site.time.run_on(2 * DAY_S)
    background = device.sync_in_background(server=way)
    let_pass(site, background, 8 * HOUR_S)
    bounds = [min(limits.SYNC_RETRY_S * 2**n, limits.SYNC_RETRY_MAX_S) for n in range(len(way.gaps_s))]
    assert len(bounds) >= 12
    assert all(bound / 2 <= gap <= bound for gap, bound in zip(way.gaps_s[:12], bounds, strict=False))
    assert way.faults == []
    assert background.last.error is None
    assert background.last.next_in_s > DAY_S / 2


def test_an_interval_bounds_how_long_it_is_given_up_for(site, device, way):
    way.faults = [TransportError("server_unreachable") for _ in range(100)]
    background = device.sync_in_background(server=way, interval_s=100)
    let_pass(site, background, HOUR_S)
    assert all(30 <= gap <= 100 for gap in way.gaps_s)


def test_where_a_due_token_does_not_come_it_does_not_come_all_the_time(site, device):
    """As where the license is suspended: there are receipts, and no token."""
    way = Recorder(site)
    site.time.run_on(limits.TOKEN_LIFE_S)
    background = device.sync_in_background(server=way)
    let_pass(site, background, DAY_S)
    assert 20 < len(way.asked_at) < 60
    assert max(way.gaps_s) <= limits.SYNC_RETRY_MAX_S


def test_without_activation_or_a_server_it_tells_and_goes_on(site):
    device = site.open()
    background = device.sync_in_background()
    let_pass(site, background, DAY_S)
    assert background.last.error.code == "server_unreachable"
    way = Recorder(site)
    asked = device.sync_in_background(server=way)
    let_pass(site, asked, limits.SYNC_SPREAD_S + 1)
    assert isinstance(asked.last.error, KeyError)  # this vendor does not know the device's key
    assert len(way.asked_at) >= 1


def test_it_is_activated_meanwhile(site, server):
    server.answers = [
        made(REPLY, lambda body: site.vendor.answer_activation(body.decode(), [MUL])),
        made(REPLY, lambda body: site.vendor.accept(body.decode().split(), [MUL])),
    ]
    device = site.open()
    background = device.sync_in_background(interval_s=1_000)
    let_pass(site, background, 5_000)
    assert background.last.error.code == "server_unreachable"
    device.activate(vendors.code(), server.url)
    let_pass(site, background, 1_001)
    assert background.last.error is None
    assert len(server.requests) >= 2


class Odd(BaseException):
    """What a library may raise that is no Exception."""


@pytest.mark.parametrize("kind", [ValueError, MemoryError, RecursionError, SystemExit, KeyboardInterrupt, Odd])
def test_whatever_is_raised_it_goes_on(site, device, way, kind):
    fault = kind("from somewhere")
    way.faults = [fault]
    told = []
    background = device.sync_in_background(server=way, interval_s=100, on_sync=told.append)
    let_pass(site, background, 300)
    assert [attempt.error for attempt in told[:2]] == [fault, None]


def test_a_ledger_that_cannot_be_written_is_told_and_tried_again(site, device, way, monkeypatch):
    background = device.sync_in_background(server=way, interval_s=100)

    def refuse(_store):
        raise LedgerError("ledger_unwritable")

    with monkeypatch.context() as broken:
        broken.setattr(type(device._store), "_begin", refuse)
        let_pass(site, background, 300)
        assert background.last.error.code == "ledger_unwritable"
    let_pass(site, background, 101)
    assert background.last.error is None


def test_what_goes_wrong_outside_a_sync_does_not_end_it(site, device, way, monkeypatch):
    background = device.sync_in_background(server=way, interval_s=10)

    def refuse(_vault):
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(type(device.vault), "settings", refuse)
        assert background._tick_safely() == LOOK_S
    let_pass(site, background, 121)
    assert background.last.error is None


def test_errors_that_name_each_other_are_told(site, device, way):
    first, second = ValueError("one"), ValueError("other")
    first.__cause__, second.__context__ = second, first
    way.faults = [first]
    told = []
    background = device.sync_in_background(server=way, interval_s=10, on_sync=told.append)
    let_pass(site, background, 11)
    assert told[0].error is first


# -- what it tells


def test_it_tells_what_each_sync_came_to(site, device, way):
    told = []
    way.faults = [busy(5)]
    background = device.sync_in_background(server=way, interval_s=100, on_sync=told.append)
    let_pass(site, background, 400)
    assert told[-1] is background.last
    first, second = told[:2]
    assert (first.error.code, first.error.retry_after_s, first.outcomes) == ("server_busy", 5, ())
    (outcome,) = second.outcomes
    assert [part.state for part in outcome.taken] == ["taken", "taken"]
    assert (second.error, second.at) == (None, first.at + first.next_in_s)


def test_what_its_hook_raises_is_reported_and_it_goes_on(site, device, way, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_value))
    faults = [ValueError("a bug"), SystemExit(3), Odd("odd")]
    left = list(faults)

    def hook(_attempt):
        if left:
            raise left.pop(0)

    background = device.sync_in_background(server=way, interval_s=100, on_sync=hook)
    let_pass(site, background, 500)
    assert reported == faults
    assert len(way.asked_at) > 3


@pytest.mark.parametrize("interval_s", [0, -1, 1.5, "60", True])
def test_an_interval_is_a_whole_number_of_seconds(device, interval_s):
    with pytest.raises(ValueError, match="interval_s"):
        device.sync_in_background(interval_s=interval_s)


# -- how it ends


def test_a_device_that_is_let_go_is_freed_at_once(site, way):
    device = site.activated(MUL)
    way.faults = [TransportError("server_unreachable") for _ in range(10)]
    background = device.sync_in_background(server=way, interval_s=10)
    let_pass(site, background, 11)
    assert background.last.error is not None
    alive = weakref.ref(device)
    site.opened.clear()
    gc.collect()  # what activating left behind; the rest must need no collecting
    gc.disable()
    try:
        del device
        assert alive() is None
    finally:
        gc.enable()
    assert background.tick() is None


def test_the_error_of_a_real_server_keeps_no_device_alive(site, server):
    server.answers = [hangs_up]
    device = site.activated(MUL)
    background = device.sync_in_background(server=server.url, interval_s=10)
    let_pass(site, background, 11)
    assert background.last.error.code == "server_unreachable"
    alive = weakref.ref(device)
    site.opened.clear()
    gc.collect()
    del device
    gc.collect()
    assert alive() is None


def test_closing_ends_it(device, way):
    background = device.sync_in_background(server=way)
    device.close()
    assert background._stopped.is_set()
    assert background.tick() is None
    with pytest.raises(DeviceError) as caught:
        device.sync_in_background(server=way)
    assert caught.value.code == "device_closed"


def test_a_device_that_is_closed_while_it_syncs_leaves_no_ledger_open(site, device):
    class Closing(Recorder):
        def deliver(self, message):
            reply = super().deliver(message)
            device.close()
            return reply

    way = Closing(site, MUL)
    background = device.sync_in_background(server=way, interval_s=10)
    let_pass(site, background, 9)
    site.time.run_on(9)
    background.tick()
    assert len(way.asked_at) == 1
    assert device._store._connection is None
    assert site.open().status().unreceipted_records == 1


def test_asked_for_again_it_replaces_the_one_before(device, way):
    first = device.sync_in_background(server=way)
    second = device.sync_in_background(server=way, interval_s=60)
    assert first is not second
    assert (first._stopped.is_set(), second._stopped.is_set()) == (True, False)


def test_where_no_thread_can_be_had_it_says_so(device, way, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    told = []
    background = device.sync_in_background(server=way, on_sync=told.append)
    assert isinstance(background.last.error, RuntimeError)
    assert told == [background.last]
    assert isinstance(device, Device)
