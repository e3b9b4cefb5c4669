"""What a device tells of itself: works until when, how much is left, when to sync, why it will stop."""

import pytest
from device_models import frames
from device_site import MUL, ROWS, START_S, leased, limited, records, session, use
from vendor import call_model

from device_sdk import DenialError
from meterkit import limits
from meterkit.errors import CODES
from meterkit.exchange import Reply
from meterkit.licenses import Policy

DAY_S = 86_400


def test_before_activation(site):
    status = site.open().status()
    assert (status.state, status.code) == ("denied", "not_activated")
    assert status.sentence == CODES["not_activated"].sentence
    assert (status.license, status.offline_until, status.next_sync_at, status.models) == (None, None, None, ())
    assert status.unreceipted_records == 1


def test_a_token_goes_from_ok_to_denied(site):
    device = site.activated(MUL, life_s=10 * DAY_S, grace_s=2 * DAY_S)
    seen = []
    for day in range(14):
        status = device.status()
        seen.append(status.state)
        assert status.offline_until == START_S + 12 * DAY_S
        assert status.license == site.vendor.license_id
        assert status.time == START_S + day * DAY_S
        assert (status.code is None) == (status.state != "denied")
        site.time.run_on(DAY_S)
    assert seen == ["ok"] * 8 + ["renew_due"] * 2 + ["grace"] * 2 + ["denied"] * 2
    assert device.status().code == "token_expired"


def test_it_says_the_sentence_of_its_state_or_code(site):
    device = site.activated(MUL, life_s=DAY_S, grace_s=DAY_S)
    sentences = []
    for _ in range(3):
        sentences.append(device.status().sentence)
        site.time.run_on(DAY_S)
    assert len(set(sentences)) == 3
    assert sentences[2] == CODES["token_expired"].sentence


def test_how_many_units_are_left_counts_every_unit_once(site):
    device = site.activated(limited(MUL, 100), limited(ROWS, 50), call_model("free", "0" * 64))
    running = session(device)
    use(running, 7)
    rows = session(device, "rows")
    rows.run(None, frames(20))
    mul, items, free = device.status().models
    assert (mul.name, mul.unit, mul.limit_units, mul.left_units, mul.code) == ("mul", "call", 100, 93, None)
    assert (items.limit_units, items.left_units) == (50, 30)
    assert (free.limit_units, free.left_units, free.code) == (None, None, None)


def test_asking_uses_nothing_up(site):
    device = site.activated(limited(MUL, 10))
    running = session(device)
    use(running, 4)
    before = (leased(device), len(records(device)))
    for _ in range(5):
        assert device.status().models[0].left_units == 6
    assert len(records(device)) <= before[1] + 1
    use(running, 6)
    assert device.status().models[0].left_units == 0


def test_what_another_process_holds_on_lease_is_not_left_here(site):
    device, other = site.activated(limited(MUL, 1_600)), site.open()
    running = session(other)
    use(running, 2)
    held = leased(device)
    assert held > 0
    device.status()
    assert device.status().models[0].left_units == 1_600 - 2 - leased(device)


def test_a_limit_reached_denies_only_its_model_and_all_of_them_the_device(site):
    device = site.activated(limited(MUL, 1), limited(ROWS, 5))
    use(session(device))
    status = device.status()
    assert [model.code for model in status.models] == ["limit_reached", None]
    assert status.state == "ok"
    session(device, "rows").run(None, frames(5))
    status = device.status()
    assert (status.state, status.code) == ("denied", "limit_reached")


def test_under_flag_it_does_not_stop(site):
    device = site.activated(
        limited(MUL, 1), life_s=DAY_S, grace_s=0, policy=Policy(expiry="flag", limit="flag", clock="flag")
    )
    running = session(device)
    use(running, 3)
    site.time.run_on(2 * DAY_S)
    status = device.status()
    assert status.state == "grace"
    assert status.offline_until is None
    assert status.models[0].code is None


def test_the_next_sync_is_as_advised_but_never_after_a_token_is_due(site):
    device = site.activated(MUL, life_s=10 * DAY_S)
    due = START_S + 8 * DAY_S
    seen = set()
    for _ in range(20):
        device.take_reply(Reply(next_sync_s=3_600).to_bytes())
        at = device.status().next_sync_at
        assert START_S + 3_240 <= at <= START_S + 3_600
        seen.add(at)
    assert len(seen) > 1
    device.take_reply(Reply(next_sync_s=30 * DAY_S).to_bytes())
    assert device.status().next_sync_at == due


def test_records_that_wait_for_a_receipt(site):
    device = site.activated(MUL)
    running = session(device)
    use(running, 2)
    assert device.status().unreceipted_records == 3
    site.sync(device)
    assert device.status().unreceipted_records == 0
    site.time.run_on(limits.WINDOW_S)
    use(running)
    assert device.status().unreceipted_records == 1


def test_the_clock_is_told(site):
    device = site.activated(MUL)
    assert (device.status().clock_suspect, device.status().clock_provisional) == (False, False)
    site.time.set_wall(-2_000)
    assert device.status().clock_suspect
    assert device.status().code == "clock_rolled_back"
    site.time.set_wall(2_000 + 2 * DAY_S)
    assert device.status().clock_provisional


@pytest.mark.parametrize("state", ["ok", "denied"])
def test_what_it_says_is_what_the_gate_does(site, state):
    device = site.activated(limited(MUL, 1))
    running = session(device)
    if state == "denied":
        use(running)
    assert device.status().state == state
    if state == "ok":
        use(running)
    else:
        with pytest.raises(DenialError) as caught:
            use(running)
        assert caught.value.code == device.status().code
