"""A device whose clocks go wrong in every way, used before, during and after: from the first call to the vendor.

What must hold each time: no use beyond what the token and the clock's rules concede; every unit recorded, in its
window, saying how far its time can be trusted, handed over and accepted; and that a right clock, a receipt or a
token mends it. `tests/core/test_clocks.py` has the rules one by one.
"""

from pathlib import Path

import pytest
from device_life import DAY_S, HOUR_S, WINDOW_S, YEAR_S, Life
from device_site import MUL, NS, START_S, Site, limited, records

from meterkit.licenses import Policy

DENY, FLAG = Policy(), Policy(clock="flag", expiry="flag")


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    yield made
    made.close()


# -- set back


def test_a_day_back_is_denied_told_and_forgiven(site):
    life = Life(site)
    assert life.use(3) is None
    life.time.set_wall(-DAY_S)
    assert life.run_on(WINDOW_S) == "clock_rolled_back"
    assert life.device.status().time == life.time.now_s
    life.hand_over()
    assert life.run_on(1, 2) is None
    assert life.clock_reasons() == ["back"]
    assert life.flagged() == {(): 5}
    assert life.windows() == life.true_windows()
    life.hand_over()


def test_a_day_back_where_that_is_only_flagged_runs_on_and_ends_when_it_would_have(site):
    life = Life(site, life_s=3 * DAY_S, grace_s=0, policy=Policy(clock="flag"))
    life.use(3)
    for _ in range(5):
        life.time.set_wall(-DAY_S)
        assert life.run_on(DAY_S // 2, 2) is None
    life.time.set_wall(-DAY_S)
    assert life.run_on(DAY_S // 2) == "token_expired"
    assert life.clock_reasons() == ["back"] * 6
    assert life.flagged() == {(): 3, ("clock",): 10}
    assert life.windows() == life.true_windows()
    life.hand_over(MUL)
    assert life.use() is None
    assert life.flagged()[()] == 4
    life.hand_over()


@pytest.mark.parametrize("policy", [DENY, FLAG], ids=["deny", "flag"])
def test_a_hundred_small_steps_back_count_as_one_large(site, policy):
    """Each is far below what is forgiven; together they are not, whatever went right in between."""
    life = Life(site, policy=policy)
    codes = []
    for _ in range(100):
        life.time.set_wall(-5)
        codes.append(life.run_on(WINDOW_S))
        life.time.set_wall(5)
        life.device.status()
    refused = "clock_rolled_back" if policy is DENY else None
    assert codes == [None] * 60 + [refused] * 40
    assert life.clock_reasons() == ["back"] * 100
    assert life.flagged() == ({(): 60} if policy is DENY else {(): 60, ("clock",): 40})
    assert life.windows() == life.true_windows()
    life.hand_over()
    assert life.run_on(WINDOW_S) is None
    assert life.usage()[-1]["flags"] == []
    life.hand_over()


# -- ten years ahead, and corrected


def test_ten_years_ahead_while_running_ends_a_token_only_until_it_is_corrected(site):
    life = Life(site)
    life.use(2)
    life.time.set_wall(10 * YEAR_S)
    assert life.run_on(WINDOW_S) == "token_expired"
    assert life.device.status().clock_provisional
    assert life.batch().through <= life.time.now_s
    life.set_right()
    assert life.run_on(WINDOW_S, 3) is None
    assert life.clock_reasons() == ["forward", "mended"]
    assert life.windows() == life.true_windows()
    assert life.provisional_units() == 0
    assert life.device.status().time == life.time.now_s
    life.hand_over()


def test_units_used_ten_years_ahead_while_running_say_so_and_those_after_do_not(site):
    """One thread, one token, one cell throughout: each record speaks of its own time."""
    life = Life(site, policy=Policy(expiry="flag"))
    life.use(2)
    life.time.set_wall(10 * YEAR_S)
    assert life.run_on(WINDOW_S, 3) is None
    life.set_right()
    assert life.run_on(WINDOW_S, 4) is None
    found = [(record["flags"], record["provisional"], record["units"]) for record in life.usage()]
    assert found == [([], False, 2), (["expired"], True, 3), ([], False, 4)]
    assert len({record["cell"] for record in life.usage()}) == 1
    life.hand_over()


@pytest.mark.parametrize("boots_wrong", [1, 3])
@pytest.mark.parametrize("synced", [False, True], ids=["offline", "synced"])
def test_ten_years_ahead_over_reboots_poisons_nothing(site, boots_wrong, synced):
    life = Life(site, policy=Policy(expiry="flag"))
    life.use(2)
    for _ in range(boots_wrong):
        life.reboot(HOUR_S, wall_s=life.time.now_s + HOUR_S + 10 * YEAR_S)
        assert life.run_on(60, 3) is None
    used_ahead = 3 * boots_wrong
    if synced:
        life.hand_over(MUL)
        assert life.device.status().time > life.time.now_s + 9 * YEAR_S
    life.reboot(HOUR_S, wall_s=life.time.now_s + HOUR_S)
    assert life.run_on(60, 5) is None
    status = life.device.status()
    assert (status.state, status.time, status.clock_suspect) == ("ok", life.time.now_s, False)
    assert life.flagged() == {(): 7, ("expired",): used_ahead}
    ahead = {window: units for window, units in life.windows().items() if window > life.time.now_s // WINDOW_S}
    assert sum(ahead.values()) == used_ahead
    assert life.provisional_units() >= used_ahead
    assert life.batch().through <= life.time.now_s
    life.hand_over(MUL)
    assert life.run_on(60) is None
    assert not life.device.status().clock_provisional
    assert not life.usage()[-1]["provisional"]
    life.hand_over()


def test_half_a_day_ahead_does_not_become_certain_by_a_reboot(site):
    """So much would be believed of a device that was off: not of one that saw the clock jump before."""
    life = Life(site)
    life.time.set_wall(DAY_S / 2)
    life.run_on(WINDOW_S, 2)
    life.reboot(60)
    life.run_on(1, 3)
    assert life.provisional_units() == 5
    life.reboot(60, wall_s=life.time.now_s + 60)
    assert life.run_on(1, 4) is None
    assert (life.provisional_units(), life.device.status().time) == (5, life.time.now_s)
    assert life.clock_reasons() == ["forward", "mended"]
    life.hand_over()


def test_what_a_lost_power_leaves_is_not_certain_of_a_time_that_is_provisional(site):
    """Its units belong to the boot before, of which nobody can tell when: not to a window ten years ahead."""
    life = Life(site, limited(MUL, 1_600))
    life.use(3)
    life.device.status()
    life.use(2)
    life.lose_power(HOUR_S, wall_s=life.time.now_s + 10 * YEAR_S)
    found = life.usage()
    assert [(record["units"], record["unsettled"] > 0) for record in found] == [(3, False), (2, False), (0, True)]
    assert [record["provisional"] for record in found] == [False, False, True]
    assert found[1]["window"] == found[0]["window"] == START_S // WINDOW_S
    life.hand_over(MUL)


def test_what_a_lost_cell_leaves_is_not_certain_of_a_time_that_is_provisional(site):
    life = Life(site, limited(MUL, 1_600))
    life.use(3)
    Path(life.device.counter.own.file.path).unlink()
    life.time.set_wall(10 * YEAR_S)
    life.device.status()
    (lost,) = [record for record in records(life.device, "usage") if "cell_lost" in record["flags"]]
    assert (lost["provisional"], lost["window"] * WINDOW_S > life.time.now_s + 9 * YEAR_S) == (True, True)


# -- no battery


@pytest.mark.parametrize("policy", [DENY, FLAG], ids=["deny", "flag"])
def test_1970_at_every_boot_counts_the_hours_that_it_runs(site, policy):
    """The time that it was off is lost to it, which is conceded; the time that it ran is not."""
    life = Life(site, life_s=20 * HOUR_S, grace_s=0, policy=policy)
    ran_s, flagged = 0, 0
    for _ in range(24):
        life.reboot(22 * HOUR_S, wall_s=30)
        ran_s += life.time.boot_ns // NS
        for _ in range(2):
            life.time.run_on(HOUR_S / 2)
            ran_s += HOUR_S // 2
            code = life.use(2)
            ended = ran_s >= 20 * HOUR_S
            assert life.device.status().time == START_S + ran_s
            assert code == ("token_expired" if ended and policy is DENY else None)
            flagged += 2 * (ended and policy is FLAG)
    assert life.clock_reasons() == ["unset"] * 24
    assert not life.device.status().clock_suspect
    assert life.flagged().get(("expired",), 0) == flagged
    assert len(life.used) == sum(life.flagged().values())
    life.hand_over(MUL)
    assert life.device.status().time == life.time.now_s
    assert life.run_on(WINDOW_S) is None
    assert life.windows()[life.time.now_s // WINDOW_S] == 1
    life.hand_over()


def test_without_a_battery_a_clock_set_by_the_network_later_in_each_boot_is_believed_for_a_day(site):
    life = Life(site)
    for _ in range(10):
        life.reboot(5 * HOUR_S, wall_s=30)
        assert life.use(2) is None
        life.set_right()
        assert life.run_on(WINDOW_S, 3) is None
        status = life.device.status()
        assert (status.time, status.clock_provisional, status.clock_suspect) == (life.time.now_s, False, False)
    assert life.clock_reasons() == ["unset"] * 10
    assert life.provisional_units() == 0
    life.hand_over()


def test_a_receipt_alone_tells_a_device_without_a_battery_the_time(site):
    life = Life(site)
    life.reboot(5 * HOUR_S, wall_s=30)
    assert life.use() is None
    assert life.device.status().time < life.time.now_s - 4 * HOUR_S
    life.hand_over()
    assert life.device.status().time == life.time.now_s
    assert life.run_on(WINDOW_S, 2) is None
    assert life.windows()[life.time.now_s // WINDOW_S] == 2
    life.hand_over()


# -- suspended


@pytest.mark.parametrize("asleep_s", [2 * HOUR_S, 3 * DAY_S])
@pytest.mark.parametrize("wall", ["right", "unset"])
def test_sleep_counts_and_a_call_after_it_finds_its_edges_passed(site, asleep_s, wall):
    life = Life(site, life_s=2 * DAY_S, grace_s=0)
    if wall == "unset":
        life.reboot(0, wall_s=10)
    life.use(5)
    life.time.run_on(asleep_s)
    code = life.use(4)
    assert code == ("token_expired" if asleep_s > 2 * DAY_S else None)
    assert not life.device.status().clock_provisional
    assert life.windows() == life.true_windows()
    assert life.clock_reasons() == (["unset"] if wall == "unset" else [])
    life.hand_over(MUL)
    assert life.use() is None
    life.hand_over()
