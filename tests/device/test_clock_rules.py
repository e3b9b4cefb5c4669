"""The clock's rules as a device lives them: set back, jumped forward, unset, mended; offline all the while."""

import pytest
from device_site import MUL, START_S, digests, limited, recorded, records, session, use

from device_sdk import DenialError
from meterkit import limits
from meterkit.exchange import Batch, Reply, open_batch
from meterkit.licenses import Policy

DAY_S = 86_400
WINDOW_S = limits.WINDOW_S


def code_of(running) -> str | None:
    try:
        use(running)
    except DenialError as fault:
        return fault.code
    return None


def clock_records(device) -> list[tuple[str, int]]:
    return [(record["reason"], record["to_s"] - record["from_s"]) for record in records(device, "clock")]


def test_setting_the_clock_back_gains_nothing(site):
    device = site.activated(MUL, life_s=2 * DAY_S, grace_s=0, policy=Policy(clock="flag"))
    running = session(device)
    for _ in range(4):
        assert code_of(running) is None
        site.time.run_on(DAY_S // 2)
        site.time.set_wall(-DAY_S // 2)
    assert code_of(running) == "token_expired"
    assert device.status().time == START_S + 2 * DAY_S


def test_steps_back_are_summed_until_they_are_too_much(site):
    device = site.activated(MUL)
    running = session(device)
    for step in range(4):
        site.time.set_wall(-100)
        site.time.run_on(WINDOW_S)
        assert code_of(running) == ("clock_rolled_back" if step == 3 else None)
    assert [reason for reason, _ in clock_records(device)] == ["back"] * 4
    assert device.status().clock_suspect
    assert device.status().code == "clock_rolled_back"


@pytest.mark.parametrize("step_s", [-1, -1.9, 1, 60])
def test_small_steps_are_none(site, step_s):
    device = site.activated(MUL)
    running = session(device)
    site.time.set_wall(step_s)
    site.time.run_on(WINDOW_S)
    assert code_of(running) is None
    assert not clock_records(device)


def test_a_receipt_that_covers_the_step_back_forgives_it(site):
    device = site.activated(MUL)
    running = session(device)
    site.time.set_wall(-2_000)
    site.time.run_on(WINDOW_S)
    assert code_of(running) == "clock_rolled_back"
    site.sync(device)
    site.time.run_on(1)
    assert code_of(running) is None
    assert not device.status().clock_suspect


def test_a_receipt_from_before_the_step_back_does_not(site):
    device = site.activated(MUL)
    running = session(device)
    use(running)
    before = device.make_batches()
    site.time.set_wall(-2_000)
    site.time.run_on(WINDOW_S)
    assert code_of(running) == "clock_rolled_back"
    site.vendor.now = site.time.now_s
    device.take_reply(site.vendor.accept(before))
    site.time.run_on(2)
    assert code_of(running) == "clock_rolled_back"


def test_a_jump_forward_is_provisional_and_can_be_undone(site):
    """It may end a token early; it poisons nothing (C02)."""
    device = site.activated(MUL, life_s=30 * DAY_S)
    running = session(device)
    site.time.set_wall(10 * 365 * DAY_S)
    site.time.run_on(WINDOW_S)
    assert code_of(running) == "token_expired"
    assert device.status().clock_provisional
    site.time.set_wall(-10 * 365 * DAY_S)
    site.time.run_on(1)
    assert code_of(running) is None
    assert not device.status().clock_suspect
    assert [reason for reason, _ in clock_records(device)] == ["forward", "mended"]


def test_what_runs_in_provisional_time_says_so_and_no_batch_vouches_for_it(site):
    device = site.activated(MUL)
    running = session(device)
    use(running)
    site.time.set_wall(2 * DAY_S)
    site.time.run_on(WINDOW_S)
    use(running, 2)
    (batch,) = device.make_batches()
    payload = opened(device, batch)
    found = [(record["provisional"], record["units"]) for record in records(device, "usage")]
    assert found == [(False, 1), (True, 2)]
    assert payload.through <= site.time.now_s
    assert payload.made_at > site.time.now_s + DAY_S


def opened(device, batch: str) -> Batch:
    return open_batch(batch, lambda _: device.keys.sign.verify_key)[1]


def test_no_batch_vouches_for_a_window_that_a_lease_still_counts_in(site):
    """A wall clock set forward ends the window before the boot clock does, by which a lease in hand ends."""
    device = site.activated(MUL)
    other = site.open()
    running = session(device)
    use(running, 2)
    window = site.time.now_s // WINDOW_S
    site.time.run_on(WINDOW_S - 100 - 10)
    use(running)
    site.time.set_wall(200)
    (batch,) = other.make_batches()
    assert opened(device, batch).through == window * WINDOW_S
    use(running)
    site.time.run_on(200)
    use(running)
    recorded(device)
    assert {record["window"]: record["units"] for record in records(device, "usage")}[window + 1] == 1
    assert sum(record["units"] for record in records(device, "usage") if record["window"] == window) == 4


def test_a_clock_without_battery_runs_on(site):
    device = site.activated(MUL)
    running = session(device)
    use(running, 2)
    site.time.run_on(DAY_S)
    use(running)
    device.close()
    site.time.reboot(3_600)
    site.time.set_wall(100 - site.time.wall_ns // 10**9)  # 1970
    device = site.open()
    running = session(device)
    assert code_of(running) is None
    status = device.status()
    assert not status.clock_suspect
    assert START_S + DAY_S <= status.time < START_S + DAY_S + 100
    assert [reason for reason, _ in clock_records(device)] == ["unset"]
    site.time.set_wall(site.time.now_s - site.time.wall_ns // 10**9)
    site.time.run_on(WINDOW_S)
    use(running)
    assert not device.status().clock_provisional
    assert abs(device.status().time - site.time.now_s) <= 1


def test_off_for_long_is_believed_for_a_day(site):
    device = site.activated(MUL)
    device.close()
    site.time.reboot(DAY_S - 100)
    assert not site.open().status().clock_provisional
    site.time.reboot(5 * DAY_S)
    assert site.open().status().clock_provisional


def test_suspend_counts_as_time(site):
    """The boot clock runs on while the system sleeps: no jump, and the deadline has passed."""
    device = site.activated(MUL, life_s=DAY_S, grace_s=0)
    running = session(device)
    use(running, 2)
    site.time.run_on(30 * DAY_S)
    assert code_of(running) == "token_expired"
    assert not device.status().clock_provisional


# -- what a server mends


def wrong_server_then_mended(site, device, running):
    """A server a year ahead signs for an hour; then it is set right, and mends the device's floor."""
    site.vendor.now = site.time.now_s + 365 * DAY_S
    device.take_reply(site.vendor.accept(device.make_batches(), [MUL]))
    assert code_of(running) is None
    assert device.status().time >= START_S + 365 * DAY_S
    site.time.run_on(3_600)
    site.vendor.now = site.time.now_s
    mending = site.vendor.accept(device.make_batches(), [MUL], time_floor=site.time.now_s)
    outcome = device.take_reply(mending)
    assert not outcome.refused
    return mending


def test_a_server_that_was_wrong_about_the_time_can_mend_it(site):
    device = site.activated(MUL)
    running = session(device)
    wrong_server_then_mended(site, device, running)
    assert device.status().time == site.time.now_s
    use(running, 2)
    recorded(device)
    assert records(device, "usage")[-1]["window"] == site.time.now_s // WINDOW_S


def test_the_time_is_mended_once_however_often_the_reply_is_handed_over(site):
    """Else a kept reply would turn the time back again and again, and no token would ever end."""
    device = site.activated(MUL)
    running = session(device)
    reply = wrong_server_then_mended(site, device, running)
    mended_at = site.time.now_s
    for number in range(1, 4):
        site.time.run_on(10 * DAY_S)
        site.time.set_wall(-10 * DAY_S)
        device.take_reply(reply)
        assert device.status().time >= mended_at + number * 10 * DAY_S
    site.time.run_on(30 * DAY_S)
    device.take_reply(reply)
    assert code_of(running) in ("token_expired", "clock_rolled_back")


def test_not_even_through_a_new_ledger(site):
    device = site.activated(MUL)
    reply = wrong_server_then_mended(site, device, session(device))
    site.time.run_on(10 * DAY_S)
    device.status()
    device.close()
    with device.counter.transaction() as tx:
        tx.execute("UPDATE records SET hash = ? WHERE seq = 1", ("0" * 64,))
        tx.execute("UPDATE records SET body = ? WHERE seq = 1", (b"{}",))
    device._store.drop()
    again = site.open()
    again.make_batches()
    assert again.status().time >= site.time.now_s
    site.time.set_wall(-10 * DAY_S)
    again.take_reply(reply)
    assert again.status().time >= site.time.now_s


def test_a_lost_ledger_starts_no_earlier_than_what_was_signed(site):
    device = site.activated(MUL)
    use(session(device))
    device.close()
    for path in site.path.glob("ledger.sqlite*"):
        path.unlink()
    site.time.set_wall(-20 * 365 * DAY_S)
    again = site.open()
    assert again.status().time >= START_S
    assert records(again)[0]["time"] >= START_S


def test_the_floor_is_no_files_business_of_a_garbage_reply(site):
    device = site.activated(MUL)
    device.status()
    before = digests(site.path)
    site.vendor.now = site.time.now_s + 400 * DAY_S
    forged = site.vendor.accept(device.make_batches())
    other = type(site.vendor)(now=site.vendor.now)
    other.keys, other.chains = site.vendor.keys, site.vendor.chains
    refused = device.take_reply(other.accept(device.make_batches()))
    assert [each.code for each in refused.refused] == ["key_unknown"]
    assert digests(site.path).keys() == before.keys()
    assert device.status().time == site.time.now_s
    assert not device.take_reply(forged).refused
    assert device.status().time == site.vendor.now


def test_a_limit_holds_across_boots(site):
    device = site.activated(limited(MUL, 5))
    use(session(device), 3)
    device.close()
    site.time.reboot(60)
    again = site.open()
    running = session(again)
    use(running, 2)
    assert code_of(running) == "limit_reached"


def test_an_empty_reply_is_one(site):
    device = site.activated(MUL)
    assert device.take_reply(Reply().to_bytes()).taken == ()
