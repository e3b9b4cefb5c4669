"""Counting: threads and their slots, windows, tokens and edges."""

import gc
import threading
from collections import Counter as Tally

import pytest
from device_models import MUL_FEED, frames
from device_site import (
    LOOPING,
    MUL,
    PATIENCE_S,
    ROWS,
    limited,
    recorded,
    records,
    run_to_their_end,
    session,
    use,
    wait_for_the_end,
)

from device_sdk import DenialError, Device, DeviceError, LicensedSession
from device_sdk.cells import WORDS_PER_SLOT, pack
from device_sdk.gate import call_gate
from meterkit import limits
from meterkit.errors import CODES

WINDOW_S = limits.WINDOW_S


def in_thread(work, *args) -> None:
    """Run something in a thread of its own, to its end."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            work(*args)
        except BaseException as fault:  # noqa: BLE001 - raised again by the caller
            caught.append(fault)

    run_to_their_end(threading.Thread(target=run))
    if caught:
        raise caught[0]


def code_of(running: LicensedSession, feed=MUL_FEED) -> str:
    with pytest.raises(DenialError) as caught:
        running.run(None, feed)
    assert str(caught.value).startswith(CODES[caught.value.code].sentence)
    return caught.value.code


def cells(device: Device) -> int:
    with device.counter.transaction() as tx:
        return tx.execute("SELECT COUNT(*) FROM cells").fetchone()[0]


# -- threads and slots


def test_many_threads_at_once_are_counted_exactly(site):
    device = site.activated(MUL, ROWS, real_clocks=False)
    calls, rows = session(device), session(device, "rows")

    def work() -> None:
        for number in range(150):
            use(calls)
            rows.run(None, frames(number % 4))

    users = [threading.Thread(target=work) for _ in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert recorded(device) == 8 * 150
    assert recorded(device, "rows") == 8 * sum(number % 4 for number in range(150))
    assert not records(device, "recovery")


def test_threads_that_ended_leave_their_slots_to_others(site):
    device = site.activated(MUL)
    running = session(device)
    for _ in range(40):
        in_thread(use, running, 3)
    assert recorded(device) == 120
    assert cells(device) <= 1
    used = [at for at in range(0, 40 * WORDS_PER_SLOT, WORDS_PER_SLOT) if device.counter.own.file.words[at]]
    assert len(used) <= 2
    assert not records(device, "recovery")


def test_sessions_that_ended_leave_their_slots_to_others(site):
    device = site.activated(MUL)
    gc.disable()  # a session must not need it to be freed: it holds a model
    try:
        for _ in range(20):
            use(session(device), 2)
        assert recorded(device) == 40
        assert cells(device) <= 1
    finally:
        gc.enable()


def test_more_threads_than_slots_is_a_typed_error_and_uses_nothing_up(site, monkeypatch):
    monkeypatch.setattr(limits, "CELL_SLOTS", 2)
    device = site.activated(limited(MUL, 100))
    running = session(device)
    ready, go = threading.Barrier(3), threading.Event()

    def hold() -> None:
        use(running)
        ready.wait()
        go.wait()
        use(running)

    holders = [threading.Thread(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
    ready.wait()
    for _ in range(3):
        with pytest.raises(DeviceError) as caught:
            use(running)
        assert caught.value.code == "cells_exhausted"
    go.set()
    wait_for_the_end(*holders)
    assert recorded(device) == 4
    use(running, 96)
    assert recorded(device) == 100
    with pytest.raises(DenialError):
        use(running)


def test_a_worn_slot_is_left_for_another(site):
    """Forty bits are not for ever: beyond half of them a thread goes on in a fresh slot."""
    device = site.activated(ROWS)
    rows = session(device, "rows")
    rows.run(None, frames(1))
    file = device.counter.own.file
    far = limits.CELL_COUNT_MAX // 2 + 1
    with device.counter.fold_everything() as (tx, now, _):
        file.words[0] = file.words[1] = pack(now.window, far)
        tx.execute("UPDATE cells SET mark = ?", (far,))
    site.time.run_on(WINDOW_S)
    rows.run(None, frames(5))
    assert file.count_at(0) == far
    assert recorded(device, "rows") == 6
    assert not records(device, "recovery")


# -- windows, tokens, edges


def test_units_belong_to_the_window_in_which_they_were_admitted(site):
    device = site.activated(MUL)
    running = session(device)
    first = site.time.now_s // WINDOW_S
    expected = {}
    for step, times in enumerate((3, 1, 0, 7, 2)):
        use(running, times)
        if times:
            expected[first + step] = times
        site.time.run_on(WINDOW_S)
    recorded(device)
    found = Tally()
    for record in records(device, "usage"):
        found[record["window"]] += record["units"]
    assert found == expected


def test_the_last_second_of_a_window_and_the_first_of_the_next(site):
    device = site.activated(MUL)
    running = session(device)
    window = site.time.now_s // WINDOW_S
    site.time.run_on((window + 1) * WINDOW_S - site.time.now_s - 1e-3)
    use(running, 2)
    site.time.run_on(1e-3)
    use(running, 5)
    recorded(device)
    assert [(record["window"], record["units"]) for record in records(device, "usage")] == [
        (window, 2),
        (window + 1, 5),
    ]


def test_a_call_that_outlasts_its_window_belongs_to_the_one_it_was_admitted_in(site):
    """And no batch made meanwhile claims that the window is complete."""
    device = site.activated(LOOPING)
    window = site.time.now_s // WINDOW_S
    admitted, answer = threading.Event(), threading.Event()

    def slow(*_args) -> str:
        admitted.set()
        assert answer.wait(PATIENCE_S)
        return "answer"

    gate = call_gate(device.counter, device.counter.meter(LOOPING.meter), LOOPING.sha256[0], slow)
    caller = threading.Thread(target=gate, args=(None, {}, None))
    caller.start()
    assert admitted.wait(PATIENCE_S)
    site.time.run_on(3 * WINDOW_S)
    with device.counter.fold_everything() as (_, now, folded):
        assert now.window == window + 3
        assert folded.in_flight
        assert folded.open_window == window
    answer.set()
    caller.join()
    with device.counter.fold_everything() as (_, _, folded):
        assert not folded.in_flight
        assert folded.open_window is None
    assert [(record["window"], record["units"]) for record in records(device, "usage")] == [(window, 1)]


def test_a_new_token_midway_splits_what_is_recorded(site):
    device = site.activated(MUL)
    running = session(device)
    use(running, 4)
    site.sync(device, MUL)
    use(running, 6)
    recorded(device)
    kinds = [(record["kind"], record.get("units")) for record in records(device)]
    assert kinds == [("genesis", None), ("token", None), ("usage", 4), ("token", None), ("usage", 6)]
    first, second = records(device, "token")
    assert [record["token"] for record in records(device, "usage")] == [first["jti"], second["jti"]]


def test_a_token_that_another_process_installed_is_seen_at_the_next_edge(site):
    device, other = site.activated(MUL), site.open()
    running = session(device)
    use(running, 2)
    site.sync(other, MUL)
    site.time.run_on(WINDOW_S)
    use(running, 3)
    recorded(device)
    names = [record["jti"] for record in records(device, "token")]
    assert [(record["token"], record["units"]) for record in records(device, "usage")] == [
        (names[0], 2),
        (names[1], 3),
    ]


def test_an_expiry_between_two_calls_ends_the_lease(site):
    device = site.activated(MUL, life_s=3_600, grace_s=600)
    running = session(device)
    use(running, 5)
    site.time.run_on(3_599)
    use(running)
    site.time.run_on(1)
    use(running, 2)
    site.time.run_on(599)
    use(running)
    site.time.run_on(1)
    assert code_of(running) == "token_expired"
    recorded(device)
    units = Tally()
    for record in records(device, "usage"):
        units[tuple(record["flags"])] += record["units"]
    assert units == {(): 6, ("grace",): 3}
