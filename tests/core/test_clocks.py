"""What time it is, for a device whose clock anyone can set. Every rule, one by one; times in seconds."""

import pytest
from core_world import NOW

from meterkit import clocks, limits
from meterkit.clocks import (
    NS,
    Clock,
    ClockEvent,
    Instant,
    Reading,
    certain_ns,
    mend,
    observe,
    raise_signed,
    receipted,
)

DAY = 86_400
BOOTED = 5_000  # where the boot clock stands when a story begins
FIRST, SECOND, THIRD = (f"{n}" * 8 + "-0000-4000-8000-000000000000" for n in "123")


def reading(wall: float, boot: float = BOOTED, boot_id: str = FIRST) -> Reading:
    return Reading(wall_ns=round(wall * NS), boot_ns=round(boot * NS), boot=boot_id)


def synced(at: int = NOW) -> Clock:
    """A device that has just met its server, its wall clock right."""
    return raise_signed(Clock(), reading(at), at)


def certain(clock: Clock, at: Reading) -> float | None:
    found = certain_ns(clock, at)
    return None if found is None else found / NS


def events_of(observed: clocks.Observation) -> list[tuple[str, int, int]]:
    return [(event.reason, event.from_s, event.to_s) for event in observed[2]]


# -- before anything was signed


def test_before_anything_was_signed_the_wall_clock_is_all_there_is():
    clock, now, events = observe(Clock(), reading(1234.5))
    assert (clock.floor_ns, now.effective_s, now.provisional, now.suspect, events) == (
        None,
        1234,
        False,
        False,
        (),
    )
    assert certain(clock, reading(0)) is None
    assert observe(clock, reading(5, BOOTED + 1))[1].effective_s == 5


def test_the_first_signed_time_believes_a_wall_clock_up_to_a_day_ahead():
    for ahead, floor in ((0, NOW), (DAY, NOW + DAY), (DAY + 1, NOW), (-1, NOW)):
        at = reading(NOW + ahead)
        assert certain(raise_signed(Clock(), at, NOW), at) == floor


# -- the floor, and certain time


def test_certain_time_goes_on_with_the_boot_clock_whatever_the_wall_says():
    clock = synced()
    for wall in (0, NOW, NOW + 10 * 365 * DAY):
        assert certain(clock, reading(wall, BOOTED + 1_000)) == NOW + 1_000


def test_a_new_boot_starts_from_the_floor_and_counts_since_it_began():
    assert certain(synced(), reading(0, 70, SECOND)) == NOW + 70


def test_a_boot_clock_that_goes_back_takes_nothing_away():
    """As after a virtual machine's snapshot is restored."""
    clock = synced()
    assert certain(clock, reading(0, BOOTED - 4_000)) == NOW
    clock, now, _ = observe(clock, reading(NOW - 4_000, BOOTED - 4_000))
    assert now.effective_s == NOW
    assert certain(clock, reading(0, BOOTED - 3_000)) == NOW + 1_000


@pytest.mark.parametrize("ahead", [0, 1, 300])
def test_a_wall_clock_that_agrees_with_the_boot_clock_raises_the_floor(ahead):
    clock, now, events = observe(synced(), reading(NOW + 100 + ahead, BOOTED + 100))
    assert (clock.floor_ns, now.effective_s, now.provisional) == (
        (NOW + 100 + ahead) * NS,
        NOW + 100 + ahead,
        False,
    )
    assert events == ()


def test_signed_time_raises_the_floor_and_never_lowers_it():
    clock = raise_signed(synced(), reading(NOW), NOW + 500)
    assert certain(clock, reading(NOW)) == NOW + 500
    clock = raise_signed(clock, reading(NOW), NOW - 500)
    assert certain(clock, reading(NOW)) == NOW + 500
    assert clock.signed_s == NOW + 500


def test_a_signed_time_ahead_of_the_wall_is_no_step_back():
    clock = raise_signed(synced(), reading(NOW), NOW + 5_000)
    observed = observe(clock, reading(NOW + 10, BOOTED + 10))
    assert events_of(observed) == []
    assert (observed[1].effective_s, observed[0].back_s) == (NOW + 5_010, 0)


def test_a_signed_time_does_not_hide_a_step_back_that_nobody_had_observed():
    """Else taking an old receipt from a stick, again and again, would let any clock be set back unseen."""
    clock = raise_signed(synced(), reading(NOW - 1_000), NOW)
    assert events_of(observe(clock, reading(NOW - 1_000))) == [("back", NOW, NOW - 1_000)]
    clock = raise_signed(synced(), reading(NOW - 1_000), NOW + 70)
    clock, now, _ = observe(clock, reading(NOW - 1_000))
    assert (clock.back_s, now.suspect, now.effective_s) == (1_000, True, NOW + 70)


# -- steps back


def test_a_step_back_is_recorded_and_gains_nothing():
    observed = observe(synced(), reading(NOW - 100, BOOTED))
    clock, now, _ = observed
    assert events_of(observed) == [("back", NOW, NOW - 100)]
    assert (now.effective_s, now.suspect, clock.back_s) == (NOW, False, 100)
    assert observe(clock, reading(NOW - 100 + 60, BOOTED + 60))[1].effective_s == NOW + 60


def test_one_step_is_counted_once():
    clock = synced()
    for after in range(0, 500, 50):
        clock, now, events = observe(clock, reading(NOW - 100 + after, BOOTED + after))
        assert len(events) == (1 if after == 0 else 0)
    assert (clock.back_s, now.suspect) == (100, False)


def test_steps_back_are_summed_until_they_make_the_clock_suspect():
    clock, walls = synced(), [NOW - 100, NOW - 200, NOW - 300, NOW - 301.5, NOW - 303]
    sums = []
    for wall in walls:
        clock, now, _ = observe(clock, reading(wall))
        sums.append((clock.back_s, now.suspect))
    assert sums == [(100, False), (200, False), (300, False), (300, False), (303, True)]


def test_setting_the_clock_right_in_between_does_not_forget_the_steps():
    clock = synced()
    for _ in range(3):
        clock, _, _ = observe(clock, reading(NOW - 101))
        clock, now, _ = observe(clock, reading(NOW))
    assert (clock.back_s, now.suspect) == (303, True)


def test_half_a_way_forward_and_back_again_counts_the_second_half():
    clock = synced()
    for wall, back_s in ((NOW - 100, 100), (NOW - 40, 100), (NOW - 100, 160)):
        clock, _, _ = observe(clock, reading(wall))
        assert clock.back_s == back_s


@pytest.mark.parametrize("step", [0.1, 0.5, 1, 1.9])
def test_the_dead_band_forgives_small_steps(step):
    clock, now, events = observe(synced(), reading(NOW - step))
    assert (events, clock.back_s, now.effective_s) == ((), 0, NOW)


def test_the_dead_band_ends_at_two_seconds():
    assert events_of(observe(synced(), reading(NOW - 2))) == [("back", NOW, NOW - 2)]


@pytest.mark.parametrize("step_ms", [100, 700, 1_900, 1_999, 2_999, 3_500])
def test_many_small_steps_do_not_creep_under_the_dead_band(step_ms):
    """Whatever the size of the steps, what is counted stays within the dead band of what was gone back."""
    clock, gone_ms = synced(), 0
    while gone_ms < 320_000:
        gone_ms += step_ms
        clock, now, _ = observe(clock, reading(NOW)._replace(wall_ns=NOW * NS - gone_ms * 1_000_000))
        assert gone_ms - 2_000 < clock.back_s * 1_000 <= gone_ms
    assert now.suspect


def test_a_receipt_that_covers_the_record_forgets_the_steps():
    clock, _, _ = observe(synced(), reading(NOW - 1_000))
    clock = clock._replace(back_seq=17)
    assert receipted(clock, 16).back_s == 1_000
    for seq in (17, 18):
        forgiven = receipted(clock, seq)
        assert forgiven.back_s == 0
        observed = observe(forgiven, reading(NOW - 1_000))
        assert (events_of(observed), observed[1].suspect) == ([], False)
    assert receipted(synced(), 99) == synced()


def test_a_step_back_while_off_gains_only_the_time_it_was_off():
    clock, now, events = observe(synced(), reading(NOW + 50, 100, SECOND))
    assert (now.effective_s, clock.back_s, [event.reason for event in events]) == (NOW + 100, 50, ["back"])


# -- forward jumps


def test_a_jump_the_boot_clock_does_not_explain_is_provisional():
    observed = observe(synced(), reading(NOW + 301))
    clock, now, _ = observed
    assert events_of(observed) == [("forward", NOW, NOW + 301)]
    assert (now.effective_s, now.provisional) == (NOW + 301, True)
    assert certain(clock, reading(0)) == NOW


def test_ten_years_ahead_and_back_again_costs_nothing():
    clock, now, _ = observe(synced(), reading(NOW + 3650 * DAY))
    assert now.effective_s == NOW + 3650 * DAY
    observed = observe(clock, reading(NOW + 5, BOOTED + 5))
    assert events_of(observed) == [("mended", NOW + 5, NOW + 5)]
    clock, now, _ = observed
    assert (now.effective_s, now.provisional, now.suspect, clock.back_s) == (NOW + 5, False, False, 0)


def test_undoing_provisional_time_is_no_step_back_but_going_further_is():
    ahead, _, _ = observe(synced(), reading(NOW + 10 * DAY))
    clock, _, events = observe(ahead, reading(NOW - 1))
    assert (clock.back_s, [event.reason for event in events]) == (0, ["mended"])
    clock, _, events = observe(ahead, reading(NOW - 70))
    assert (clock.back_s, [event.reason for event in events]) == (70, ["mended", "back"])


def test_a_jump_is_recorded_once_and_followed_while_it_lasts():
    clock, _, _ = observe(synced(), reading(NOW + DAY))
    for wall in (NOW + 2 * DAY, NOW + DAY, NOW + 1_000):
        clock, now, events = observe(clock, reading(wall))
        assert (now.effective_s, now.provisional, events) == (wall, True, ())


def test_signed_time_ends_what_was_provisional():
    clock, _, _ = observe(synced(), reading(NOW + 5 * DAY))
    clock = raise_signed(clock, reading(NOW + 5 * DAY), NOW + 5 * DAY - 10)
    clock, now, events = observe(clock, reading(NOW + 5 * DAY))
    assert (now.provisional, [event.reason for event in events]) == (False, ["mended"])
    assert certain(clock, reading(0)) == NOW + 5 * DAY


@pytest.mark.parametrize(("off", "provisional"), [(1, False), (DAY, False), (DAY + 1, True), (40 * DAY, True)])
def test_while_off_a_jump_of_a_day_is_believed_and_more_is_provisional(off, provisional):
    clock, now, events = observe(synced(), reading(NOW + 30 + off, 30, SECOND))
    assert (now.effective_s, now.provisional) == (NOW + 30 + off, provisional)
    assert [event.reason for event in events] == (["forward"] if provisional else [])
    assert certain(clock, reading(0, 30, SECOND)) == (NOW + 30 if provisional else NOW + 30 + off)


def test_rebooting_does_not_make_a_provisional_time_certain():
    clock, _, _ = observe(synced(), reading(NOW + 1_000))
    clock, now, _ = observe(clock, reading(NOW + 1_060, 60, SECOND))
    assert (now.provisional, certain(clock, reading(0, 60, SECOND))) == (True, NOW + 60)
    assert observe(clock, reading(NOW + 1_060, 60, THIRD))[1].provisional


# -- an unset clock


def test_a_wall_clock_below_signed_time_at_boot_is_unset_and_runs_on():
    observed = observe(synced(), reading(0, 20, SECOND))
    assert events_of(observed) == [("unset", NOW + 20, 0)]
    clock, now, _ = observed
    assert (now.effective_s, now.suspect, clock.back_s) == (NOW + 20, False, 0)
    clock, now, events = observe(clock, reading(100, 120, SECOND))
    assert (now.effective_s, clock.back_s, events) == (NOW + 120, 0, ())


def test_an_unset_clock_that_is_set_at_last_is_no_jump():
    clock, _, _ = observe(synced(), reading(0, 20, SECOND))
    clock, now, events = observe(clock, reading(NOW + 5_000, 60, SECOND))
    assert (now.effective_s, now.provisional, events) == (NOW + 5_000, False, ())
    assert certain(clock, reading(0, 60, SECOND)) == NOW + 5_000


def test_an_unset_clock_that_is_set_more_than_a_day_ahead_is_provisional():
    clock, _, _ = observe(synced(), reading(0, 20, SECOND))
    _, now, events = observe(clock, reading(NOW + 2 * DAY, 60, SECOND))
    assert (now.provisional, [event.reason for event in events]) == (True, ["forward"])


def test_a_clock_set_back_below_signed_time_while_running_is_not_unset():
    clock, _, events = observe(synced(), reading(0))
    assert ([event.reason for event in events], clock.back_s) == (["back"], NOW)


def test_once_set_an_unset_clock_counts_its_steps_again():
    clock, _, _ = observe(synced(), reading(0, 20, SECOND))
    clock, _, _ = observe(clock, reading(NOW + 60, 60, SECOND))
    clock, now, _ = observe(clock, reading(0, 61, SECOND))
    assert now.suspect


def test_being_unset_ends_with_the_boot():
    clock, _, _ = observe(synced(), reading(0, 20, SECOND))
    clock, _, events = observe(clock, reading(NOW + 5, 30, THIRD))
    assert (events, clock.unset) == ((), False)
    clock, now, _ = observe(clock, reading(NOW + 5 - 301, 30, THIRD))
    assert (clock.back_s, now.suspect, now.effective_s) == (301, True, NOW + 50)


# -- mending by a token's time_floor


def test_a_server_that_was_a_year_ahead_can_mend_it():
    clock = raise_signed(synced(), reading(NOW), NOW + 365 * DAY)
    assert certain(clock, reading(NOW)) == NOW + 365 * DAY
    clock, events = mend(clock, reading(NOW), NOW)
    assert events == (ClockEvent(reason="mended", from_s=NOW + 365 * DAY, to_s=NOW),)
    assert certain(clock, reading(NOW)) == NOW
    clock, now, events = observe(clock, reading(NOW + 10, BOOTED + 10))
    assert (now.effective_s, now.suspect, now.provisional, events, clock.back_s) == (NOW + 10, False, False, (), 0)


def test_after_mending_a_reboot_finds_a_right_clock_and_not_an_unset_one():
    clock, _ = mend(raise_signed(synced(), reading(NOW), NOW + 365 * DAY), reading(NOW), NOW)
    clock, now, events = observe(clock, reading(NOW + 600, 60, SECOND))
    assert (now.effective_s, events, clock.unset) == (NOW + 600, (), False)


def test_mending_can_raise_the_floor_and_is_no_step_back():
    clock, _ = mend(synced(), reading(NOW), NOW + 9_000)
    clock, now, events = observe(clock, reading(NOW))
    assert (now.effective_s, clock.back_s, events) == (NOW + 9_000, 0, ())


def test_mending_what_was_never_signed_sets_it():
    clock, events = mend(Clock(), reading(5), NOW)
    assert certain(clock, reading(5)) == NOW
    assert events == (ClockEvent(reason="mended", from_s=NOW, to_s=NOW),)


# -- instants


def test_an_instant_knows_its_second_its_window_and_where_the_boot_clock_will_be():
    now = Instant(effective_ns=NOW * NS + 250, boot_ns=7 * NS, boot=FIRST)
    assert (now.effective_s, now.window) == (NOW, NOW // limits.WINDOW_S)
    assert now.boot_ns_at(NOW + 10) == 17 * NS - 250
    before = Instant(effective_ns=NOW * NS - 1, boot_ns=0, boot=FIRST)
    assert (before.effective_s, before.window) == (NOW - 1, NOW // limits.WINDOW_S - 1)


def test_suspend_counts():
    """The boot clock counts it, so thirty days of sleep are thirty days."""
    _, now, events = observe(synced(), reading(NOW + 30 * DAY, BOOTED + 30 * DAY))
    assert (now.effective_s, now.provisional, events) == (NOW + 30 * DAY, False, ())
