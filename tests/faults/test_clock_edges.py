"""The instants at which something ends: to the nanosecond, in any year, in a call's midst, between two threads."""

import calendar
import os
import threading
import time

import pytest
from device_life import DAY_S, HOUR_S, WINDOW_S, YEAR_S, Life, Meanwhile, site_at
from device_site import MUL, NS, START_S, Site, leased, recorded, records, session, use

from device_sdk import MeterkitError
from meterkit.licenses import Policy


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    yield made
    made.close()


# -- exactly at the end

ENDS = {
    "leap day begins": (2028, 2, 29, 0, 0, 0),
    "leap day ends": (2028, 3, 1, 0, 0, 0),
    "within a leap day": (2028, 2, 29, 23, 59, 59),
    "a year that ends": (2028, 1, 1, 0, 0, 0),
    "2038, signed": (2038, 1, 19, 3, 14, 8),
    "no leap day": (2100, 3, 1, 0, 0, 0),
    "2106, unsigned": (2106, 2, 7, 6, 28, 16),
    "2207": (2207, 8, 1, 0, 0, 0),
}


@pytest.mark.parametrize("instant", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("expiry", ["deny", "flag"])
def test_a_token_ends_to_the_nanosecond_in_any_year(tmp_path, instant, expiry):
    """Not a nanosecond before `exp` is there grace, and from the end of grace on there is none."""
    exp, grace_s = calendar.timegm((*instant, 0, 0, 0)), 1_000
    site = site_at(tmp_path, exp - 2 * HOUR_S)
    life = Life(site, life_s=2 * HOUR_S, grace_s=grace_s, policy=Policy(expiry=expiry))

    def use_at(second: int, ns: int = 0) -> str | None:
        life.time.run_on(0)
        forward_ns = second * NS + ns - life.time.wall_ns
        for name in ("true_ns", "wall_ns", "boot_ns"):
            setattr(life.time, name, getattr(life.time, name) + forward_ns)
        return life.use(3)  # the third leases many: they end at the next edge, and not because they are few

    assert [use_at(exp - HOUR_S), use_at(exp - 1), use_at(exp, -1)] == [None] * 3
    assert [use_at(exp), use_at(exp, 1), use_at(exp + grace_s - 1), use_at(exp + grace_s, -1)] == [None] * 4
    late = [use_at(exp + grace_s), use_at(exp + grace_s, 1), use_at(exp + grace_s + DAY_S)]
    assert late == (["token_expired"] * 3 if expiry == "deny" else [None] * 3)
    flags = {(): 9, ("grace",): 12} | ({("expired",): 9} if expiry == "flag" else {})
    assert life.flagged() == flags
    assert life.windows() == life.true_windows()
    life.hand_over(MUL)
    assert life.use() is None
    assert life.flagged()[()] == 10
    life.hand_over()
    site.close()


def test_a_window_ends_to_the_nanosecond(site):
    life = Life(site)
    end_s = (START_S // WINDOW_S + 1) * WINDOW_S
    life.run_on(end_s - START_S - 1e-9, 2)
    life.run_on(1e-9, 3)
    life.run_on(WINDOW_S - 1e-9, 4)
    life.run_on(1e-9, 5)
    assert life.windows() == {end_s // WINDOW_S + more: units for more, units in ((-1, 2), (0, 7), (1, 5))}
    life.hand_over()


# -- while a call runs


def test_a_call_is_admitted_once_whatever_the_clock_does_until_it_has_answered(site):
    """It belongs to the window that it was admitted in, and carries the flags of that moment."""
    life = Life(site, life_s=2 * HOUR_S, grace_s=0)
    life.use()
    expected = {START_S // WINDOW_S: 1}
    for act in (
        lambda: life.time.run_on(3 * WINDOW_S),  # the window ends
        lambda: [life.time.set_wall(10 * YEAR_S), life.device.status(), life.time.set_wall(-10 * YEAR_S)],
        lambda: life.time.set_wall(-200),  # a step back
        lambda: life.time.run_on(WINDOW_S),
        life.device.status,  # somebody folds
        lambda: life.time.run_on(5 * HOUR_S),  # the token ends
    ):
        window = life.device.status().time // WINDOW_S
        feed = Meanwhile(act)
        assert life.use(feed=feed) is None
        assert feed.acted
        expected[window] = expected.get(window, 0) + 1
    assert life.windows() == expected
    assert life.use() == "token_expired"
    assert life.flagged() == {(): 7}
    assert life.clock_reasons() == ["forward", "mended", "back"]
    life.hand_over()


def test_a_batch_made_while_a_call_runs_over_its_windows_end_does_not_vouch_for_that_window(site):
    life = Life(site)
    throughs = []

    def over_the_edge():
        life.time.run_on(2 * WINDOW_S)
        throughs.append(life.batch().through)

    assert life.use(feed=Meanwhile(over_the_edge)) is None
    assert throughs == [START_S // WINDOW_S * WINDOW_S]
    assert life.windows() == {START_S // WINDOW_S: 1}


# -- threads


class User(threading.Thread):
    """Calls the model again and again, and notes for each call when it began and what it came to."""

    def __init__(self, life: Life, ended: threading.Event) -> None:
        super().__init__()
        self.life = life
        self.ended = ended
        self.calls: list[tuple[int, str | None]] = []

    def run(self):
        running = session(self.life.device)
        while not self.ended.is_set():
            began_ns = self.life.time.boot_ns
            try:
                use(running)
            except MeterkitError as fault:
                self.calls.append((began_ns, fault.code))
                time.sleep(0.001)
            else:
                self.calls.append((began_ns, None))


@pytest.mark.parametrize("expiry", ["deny", "flag"])
def test_threads_that_run_over_the_end_notice_it_at_once(site, expiry):
    """No call that begins at the end or later is admitted as if it were not there."""
    grace_s = 2_000
    life_s = HOUR_S + 300  # in the midst of a window, as is the end of grace
    life = Life(site, life_s=life_s, grace_s=grace_s, policy=Policy(expiry=expiry))
    exp_ns, end_ns = (life.time.boot_ns + each * NS for each in (life_s, life_s + grace_s))
    ended = threading.Event()
    users = [User(life, ended) for _ in range(2)]
    for user in users:
        user.start()
    for _ in range(60):
        before = [len(user.calls) for user in users]
        deadline = time.monotonic() + 60
        while any(len(user.calls) < count + 3 for user, count in zip(users, before, strict=True)):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        life.time.run_on(100)
    ended.set()
    for user in users:
        user.join()
    calls = [call for user in users for call in user.calls]
    delivered = [began for began, code in calls if code is None]
    refused = [began for began, code in calls if code is not None]
    assert {code for _, code in calls} == ({None, "token_expired"} if expiry == "deny" else {None})
    assert len([began for began in delivered if began >= end_ns]) == (
        0 if expiry == "deny" else len(delivered) - len([began for began in delivered if began < end_ns])
    )
    assert all(began >= end_ns - 100 * NS for began in refused)
    flagged = summed_flags(life)
    assert sum(flagged.values()) == len(delivered)
    # A call may begin before an edge and be admitted after it, never the other way round.
    assert flagged[()] <= sum(began < exp_ns for began in delivered)
    assert flagged.get(("expired",), 0) >= sum(began >= end_ns for began in delivered)
    assert flagged.get(("expired",), 0) == 0 or expiry == "flag"


def summed_flags(life: Life) -> dict[tuple[str, ...], int]:
    recorded(life.device)
    sums: dict[tuple[str, ...], int] = {}
    for record in records(life.device, "usage"):
        flags = tuple(record["flags"])
        sums[flags] = sums.get(flags, 0) + record["units"]
    return sums


def test_a_threads_first_call_that_waits_for_the_ledger_until_the_end_is_refused(site):
    """Its units were taken from a lease in force; when the ledger is free at last, the token has ended."""
    life = Life(site, life_s=HOUR_S, grace_s=0)
    life.use(3)
    count = life.device.counter.meter(MUL.meter)
    unused = count.unused()
    assert unused
    came_to: list[str | None] = []

    def first_call():
        try:
            use(session(life.device))
            came_to.append(None)
        except MeterkitError as fault:
            came_to.append(fault.code)

    thread = threading.Thread(target=first_call)
    with site.open().counter.transaction():
        thread.start()
        deadline = time.monotonic() + 60
        while count.unused() == unused:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        life.time.run_on(HOUR_S)
    thread.join()
    assert came_to == ["token_expired"]
    assert life.flagged() == {(): 3}
    life.hand_over(MUL)
    assert life.use() is None
    life.hand_over()
    assert leased(life.device) == count.unused() + count.returned


# -- time zones


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "XXX-24", "Europe/Berlin"])
def test_time_zones_change_nothing(tmp_path, zone):
    """Real clocks: all instants are UTC, whatever the process calls its zone, and when."""
    site = Site(tmp_path / "device")
    site.time.set_true()
    device = site.activated(MUL, real_clocks=True, life_s=2 * HOUR_S)
    running = session(device)
    use(running)
    kept = os.environ.get("TZ")
    try:
        os.environ["TZ"] = zone
        time.tzset()
        use(running, 2)
        beside = site.open(real_clocks=True)
        use(session(beside))
        status = beside.status()
        assert abs(status.time - time.time()) < 60
        assert (status.state, status.clock_provisional, status.clock_suspect) == ("ok", False, False)
        (batch,) = device.make_batches()
        site.vendor.accept([batch])
    finally:
        os.environ.pop("TZ") if kept is None else os.environ.update(TZ=kept)
        time.tzset()
    assert not records(device, "clock")
    assert site.vendor.units("mul") == 4
    now = int(time.time()) // WINDOW_S
    assert {record["window"] for record in records(device, "usage")} <= {now - 1, now}
    site.close()
