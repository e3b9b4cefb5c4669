"""Clocks that no honest system shows, restored machines, and servers that were wrong about the time.

Whatever they show, the host program sees typed errors only, what was used is handed over and accepted, and a right
clock, a receipt or a token mends the rest.
"""

import pytest
from device_life import DAY_S, HOUR_S, WINDOW_S, YEAR_S, Life, site_at
from device_site import MUL, NS, START_S, Site, limited, records
from vendor import code

from meterkit import limits
from meterkit.licenses import Policy

LENIENT = Policy(expiry="flag", limit="flag", clock="flag")


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    yield made
    made.close()


# -- absurd clocks

ABSURD_NS = {
    "before 1970": -1,
    "before 1970 by far": -(2**63),
    "1970": 0,
    "the last nanosecond of 63 bits": 2**63 - 1,
    "beyond 63 bits": 2**63,
    "year 10000": (limits.TIME_MAX_S + 1) * NS,
    "beyond all": 2**80,
}


@pytest.mark.parametrize("wall_ns", ABSURD_NS.values(), ids=ABSURD_NS)
@pytest.mark.parametrize("policy", [Policy(), LENIENT], ids=["deny", "flag"])
def test_an_absurd_wall_clock_is_borne_at_any_moment(site, wall_ns, policy):
    life = Life(site, policy=policy)
    life.use(2)
    life.time.wall_ns = wall_ns
    life.run_on(0, 2)
    life.run_on(WINDOW_S, 3)
    life.device.status()
    life.batch()
    life.reboot(HOUR_S)
    life.time.wall_ns = wall_ns
    life.run_on(WINDOW_S, 3)
    life.hand_over(MUL, policy=policy)
    life.run_on(1, 2)
    life.device.status()
    life.set_right()
    life.hand_over(MUL, policy=policy)
    assert life.run_on(WINDOW_S, 2) is None
    status = life.device.status()
    assert (status.time, status.state, status.clock_suspect) == (life.time.now_s, "ok", False)
    assert life.usage()[-1]["window"] == life.time.now_s // WINDOW_S
    life.hand_over()


@pytest.mark.parametrize("wall_ns", ABSURD_NS.values(), ids=ABSURD_NS)
def test_a_device_can_be_set_up_under_an_absurd_wall_clock(site, wall_ns):
    site.time.wall_ns = wall_ns
    before = site.open()
    before.status()
    before.request_activation(code())
    before.close()
    life = Life(site)
    assert life.run_on(1) in (None, "token_expired")
    life.set_right()
    assert life.run_on(WINDOW_S, 2) is None
    assert life.device.status().time == life.time.now_s
    life.hand_over()


@pytest.mark.parametrize("now_s", [START_S, limits.SIGNED_TIME_MAX_S - YEAR_S], ids=["now", "2206"])
@pytest.mark.parametrize("jump_s", [100 * YEAR_S, 2**63 // NS - DAY_S], ids=["a century", "63 bits"])
@pytest.mark.parametrize("policy", [Policy(), LENIENT], ids=["deny", "flag"])
def test_a_boot_clock_that_leaps_ends_a_token_until_the_server_mends_the_time(tmp_path, now_s, jump_s, policy):
    """It is trusted as sleep is; and where it lied, a `time_floor` helps."""
    site = site_at(tmp_path, now_s)
    life = Life(site, policy=policy)
    life.use(2)
    life.time.boot_ns += jump_s * NS
    assert life.use(2) == ("clock_rolled_back" if policy.clock == "deny" else None)
    assert life.device.status().time > now_s + 99 * YEAR_S
    life.hand_over(MUL, policy=policy, time_floor=life.time.now_s)
    assert life.use(2) is None
    assert life.device.status().time == life.time.now_s
    life.hand_over()
    site.close()


def test_a_boot_clock_that_stands_still_costs_a_lease_at_most(site):
    """The gate's deadline is on it: the end is seen when the lease in hand is used up."""
    life = Life(site, life_s=HOUR_S, grace_s=0)
    stands_ns = life.time.boot_ns
    life.use(2)
    life.time.run_on(2 * HOUR_S)
    life.time.boot_ns = stands_ns
    assert life.use(limits.LEASE_UNITS_MAX + 1) == "token_expired"
    assert life.device.status().clock_provisional
    life.hand_over(MUL)
    assert life.use() is None
    life.hand_over()


# -- a machine restored from a snapshot


def restore(life: Life, back_s: float) -> None:
    """The machine's clocks are as they were some time ago, under the same boot id; its disk is not."""
    life.time.wall_ns -= int(back_s * NS)
    life.time.boot_ns -= int(back_s * NS)


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_restored_machine_does_not_get_back_the_time_that_was_written_down(site, restart):
    """What it gains is what passes until somebody looks: the boot clock cannot tell it from time that was not."""
    life = Life(site, life_s=2 * DAY_S, grace_s=0, policy=Policy(clock="flag"))
    for _ in range(4):
        assert life.run_on(DAY_S / 2 - 1, 2) is None
        if restart:
            life.close()
        restore(life, HOUR_S)
        if restart:
            life.open()
        assert life.device.status().time == life.time.now_s
    life.use(limits.LEASE_UNITS_MAX)
    assert life.run_on(4) == "token_expired"
    assert set(life.clock_reasons()) == {"back"}
    assert life.windows() == life.true_windows()
    life.set_right()
    life.hand_over(MUL)
    assert life.use() is None
    life.hand_over()


def test_a_denial_is_not_remembered_longer_because_the_boot_clock_went_back(site):
    life = Life(site)
    life.time.set_wall(10 * YEAR_S)
    assert life.run_on(WINDOW_S) == "token_expired"
    restore(life, HOUR_S)
    life.set_right()
    assert life.use() is None
    life.hand_over()


# -- a server that was wrong


def wrong_server(life: Life, wrong_s: int) -> bytes:
    """For an hour the server is wrong about the time; gives what it said."""
    life.site.vendor.now = life.time.now_s + wrong_s
    reply = life.site.vendor.accept(life.device.make_batches(), [MUL])
    assert not life.device.take_reply(reply).refused
    return reply


@pytest.mark.parametrize("wrong_s", [YEAR_S, 100 * YEAR_S])
def test_a_year_ahead_for_an_hour_is_mended_for_good(site, wrong_s):
    life = Life(site)
    life.use(2)
    wrong = wrong_server(life, wrong_s)
    assert life.run_on(WINDOW_S, 3) is None
    assert life.device.status().time >= START_S + wrong_s
    life.run_on(HOUR_S)
    life.hand_over(MUL, time_floor=life.time.now_s)
    assert life.run_on(WINDOW_S, 4) is None
    assert life.device.status().time == life.time.now_s
    life.device.take_reply(wrong)
    assert life.run_on(WINDOW_S) is None
    assert life.device.status().time == life.time.now_s
    life.reboot(HOUR_S)
    assert life.use() is None
    assert life.device.status().time == life.time.now_s
    assert life.clock_reasons() == ["mended"]
    told_wrong = {window for window in life.windows() if window * WINDOW_S >= START_S + wrong_s - WINDOW_S}
    wrong_then = {START_S // WINDOW_S + 1, START_S // WINDOW_S + 1 + HOUR_S // WINDOW_S}
    assert len(told_wrong) == len(wrong_then)
    assert without(life.windows(), told_wrong) == without(life.true_windows(), wrong_then)
    life.hand_over(MUL)


def without(units: dict[int, int], windows: set[int]) -> dict[int, int]:
    return {window: count for window, count in units.items() if window not in windows}


# -- forgetting


def test_deleting_the_ledger_gives_no_signed_time_back(site):
    life = Life(site, limited(MUL, 100), life_s=2 * DAY_S, grace_s=0)
    life.use(2)
    life.run_on(DAY_S)
    life.hand_over()
    signed_s = life.time.now_s
    life.run_on(DAY_S)
    life.close()
    for path in site.path.glob("ledger.sqlite*"):
        path.unlink()
    life.set_clock(START_S)
    life.time.boot_ns = 20 * NS
    life.open()
    assert life.device.status().time >= signed_s
    assert life.use() == "ledger_unanchored"
    assert records(life.device)[0]["time"] >= signed_s
    life.set_right()
    life.hand_over(limited(MUL, 100))
    assert life.use() is None
    life.hand_over()
