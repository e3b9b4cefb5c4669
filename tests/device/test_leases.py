"""What is denied, what is flagged, and how units are leased."""

import threading
from collections import Counter as Tally

import pytest
from device_models import MUL_FEED
from device_site import LOOPING, MUL, PATIENCE_S, leased, limited, recorded, records, session, use
from vendor import call_model

from device_sdk import DenialError, Device, DeviceError, LicensedSession
from device_sdk.gate import call_gate
from device_sdk.leases import Lease, held, size
from meterkit import limits
from meterkit.errors import CODES
from meterkit.exchange import Reply
from meterkit.licenses import Policy

WINDOW_S = limits.WINDOW_S


def code_of(running: LicensedSession, feed=MUL_FEED) -> str:
    with pytest.raises(DenialError) as caught:
        running.run(None, feed)
    assert str(caught.value).startswith(CODES[caught.value.code].sentence)
    return caught.value.code


def cells(device: Device) -> int:
    with device.counter.transaction() as tx:
        return tx.execute("SELECT COUNT(*) FROM cells").fetchone()[0]


# -- what is denied, and what is flagged


FLAG = Policy(expiry="flag", limit="flag", clock="flag")


def test_under_flag_everything_runs_and_says_so(site):
    device = site.activated(limited(MUL, 4), life_s=3_600, grace_s=600, policy=FLAG)
    running = session(device)
    use(running, 6)
    site.time.run_on(3_600)
    use(running, 2)
    site.time.run_on(600)
    use(running, 3)
    site.time.run_on(10)
    site.time.set_wall(-3_000)
    site.time.run_on(WINDOW_S)
    use(running, 1)
    recorded(device)
    units = Tally()
    for record in records(device, "usage"):
        units[tuple(record["flags"])] += record["units"]
    assert units == {
        (): 4,
        ("over_limit",): 2,
        ("over_limit", "grace"): 2,
        ("over_limit", "expired"): 3,
        ("over_limit", "expired", "clock"): 1,
    }


def test_under_deny_each_reason_has_its_code_and_sentence(site):
    device = site.open()
    site.activate(device, limited(MUL, 2), life_s=3_600, grace_s=600, nbf=site.time.now_s + 60)
    running = session(device)
    assert code_of(running) == "token_not_yet_valid"
    site.time.run_on(60)
    use(running, 2)
    assert code_of(running) == "limit_reached"
    site.time.run_on(4_200)
    assert code_of(running) == "token_expired"
    site.sync(device, limited(MUL, 2))
    use(running)
    site.time.set_wall(-2_000)
    site.time.run_on(WINDOW_S)
    assert code_of(running) == "clock_rolled_back"
    site.sync(device, call_model("other", "0" * 64))
    assert code_of(running) == "model_not_licensed"
    assert recorded(device) == 3


def test_a_denial_costs_no_commit_for_a_second(site):
    device = site.activated(limited(MUL, 1))
    running = session(device)
    use(running)
    assert code_of(running) == "limit_reached"
    before = (site.path / "ledger.sqlite").stat().st_mtime_ns
    for _ in range(50):
        assert code_of(running) == "limit_reached"
    assert (site.path / "ledger.sqlite").stat().st_mtime_ns == before


def test_a_token_of_another_ledger_leaves_nothing_of_its_limits(site):
    device = site.activated(limited(MUL, 100))
    foreign = site.open()
    with device.counter.transaction() as tx:
        here = tx.position()
    elsewhere = type(here)(epoch="ep_" + "a" * 26, seq=3, head="0" * 63 + "1")
    site.vendor.now = site.time.now_s
    token = site.vendor.token(device.id, elsewhere, [limited(MUL, 100)])
    foreign.take_reply(_reply(token))
    assert code_of(session(device)) == "ledger_unanchored"
    flagged = site.vendor.token(device.id, elsewhere, [limited(MUL, 100)], policy=FLAG)
    device.take_reply(_reply(flagged))
    use(session(device), 2)
    recorded(device)
    assert [record["flags"] for record in records(device, "usage")] == [["over_limit"]]


def _reply(token: str) -> bytes:
    return Reply(token=token).to_bytes()


# -- leases


@pytest.mark.parametrize(
    ("units", "left", "pace", "commit_ns", "expected"),
    [
        (1, None, 0, 0, 1),
        (1, None, 500, 1_000_000, 500),
        (1, None, 500, 50_000_000, 2_500),  # a hundred commits of 50 ms: five seconds
        (1, None, 10**9, 0, 32_768),
        (3_000, None, 0, 0, 3_000),
        (100_000, None, 10**9, 0, 100_000),  # a call's own are never too many
        (1, 160, 500, 0, 10),
        (1, 15, 500, 0, 1),
        (12, 15, 500, 0, 12),
        (1, 1, 500, 0, 1),
        (0, 0, 0, 0, 0),  # an empty call where nothing is left takes nothing
        (0, 15, 500, 0, 0),
        (0, None, 500, 0, 500),
    ],
)
def test_how_much_is_leased(units, left, pace, commit_ns, expected):
    assert size(units=units, left_units=left, pace_per_s=pace, commit_ns=commit_ns) == expected


@pytest.mark.parametrize(
    ("left", "pace", "commit_ns", "expected"),
    [
        (None, 0, 10**9, 1),
        (None, 500, 1_000_000, 500),
        (None, 500, 50_000_000, 5_000),  # two hundred commits of 50 ms: ten seconds
        (None, 200_000, 1_000_000, 200_000),  # more than one lease may hold
        (None, 10**9, 10**9, 524_288),  # sixteen leases
        (160_000, 200_000, 1_000_000, 10_000),
        (16, 500, 0, 1),
        (15, 500, 0, 0),
    ],
)
def test_how_much_is_held(left, pace, commit_ns, expected):
    assert held(left_units=left, pace_per_s=pace, commit_ns=commit_ns) == expected


@pytest.mark.usefixtures("site")
def test_a_lease_hands_out_each_unit_once_whichever_way_it_is_asked():
    lease = Lease(20_000, standing=None, deadline_ns=1, hard_ns=1)
    taken = [0] * 4

    def take(number: int) -> None:
        while True:
            if number % 2:
                if not lease.take(1):
                    return
            else:
                try:
                    lease.take_one()
                except StopIteration:
                    return
            taken[number] += 1

    takers = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert sum(taken) == 20_000
    assert lease.drain() == lease.unused() == 0


def test_taking_many_units_at_once_costs_no_more_than_one():
    lease = Lease(2**40, standing=None, deadline_ns=1, hard_ns=1)
    assert lease.take(2**40 - 3)
    assert not lease.take(4)
    assert lease.take(3)
    assert lease.take(0)
    assert not lease.take(1)


def test_a_lease_never_takes_more_than_a_sixteenth_of_what_is_left(site):
    device = site.activated(limited(MUL, 1_600))
    running = session(device)
    use(running, 2)
    assert 0 < leased(device) <= 100
    for _ in range(1_598):
        use(running)
    assert code_of(running) == "limit_reached"
    assert recorded(device) == 1_600


def test_closing_gives_unused_units_back(site):
    device = site.activated(limited(MUL, 100_000))
    running = session(device)
    use(running, 10)
    assert leased(device) > 0
    device.close()
    after = site.open()
    assert leased(after) == 0
    assert recorded(after) == 10
    with pytest.raises(DeviceError) as caught:
        use(running)
    assert caught.value.code == "device_closed"
    assert not list((site.path / "cells").iterdir())


def test_a_call_in_flight_while_the_device_is_closed_is_counted(site):
    """Its answer is delivered after all: whoever comes next must still find it."""
    device = site.activated(limited(LOOPING, 100))
    admitted, answer = threading.Event(), threading.Event()

    def slow(*_args) -> str:
        admitted.set()
        assert answer.wait(PATIENCE_S)
        return "answer"

    gate = call_gate(device.counter, device.counter.meter(LOOPING.meter), LOOPING.sha256[0], slow)
    caller = threading.Thread(target=gate, args=(None, {}, None))
    caller.start()
    assert admitted.wait(PATIENCE_S)
    device.close()
    other = site.open()
    assert recorded(other, "looping") == 0
    assert leased(other) == 1
    answer.set()
    caller.join()
    assert recorded(other, "looping") == 1
    assert leased(other) == 0
    assert not records(other, "recovery")
