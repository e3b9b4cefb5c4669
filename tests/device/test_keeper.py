"""The keeper: units fetched ahead, cells written to disk, idle units given back, installations noticed.

Under a test's clocks the keeper's thread waits for ever, and `tick` is called as it would; the last tests let it
run by itself.
"""

import contextlib
import gc
import sqlite3
import threading
import weakref

import pytest
from device_models import MUL_FEED, frames
from device_processes import Worker
from device_site import (
    LOOPING,
    MUL,
    ROWS,
    START_S,
    FakeClocks,
    leased,
    limited,
    recorded,
    records,
    session,
    unchanged,
    use,
    wait_until,
)

from device_sdk import DenialError, LedgerError
from device_sdk.cells import HALF, pack
from device_sdk.keeper import tick
from device_sdk.ledger_store import LedgerStore
from meterkit import limits

PROCESSES = 16
LIMIT = 10_000
DENIED = "limit_reached"


def run_at(site, running, calls_per_s: int, seconds: int) -> None:
    """Use it evenly, with a tick after each second."""
    for _ in range(seconds):
        for _ in range(calls_per_s):
            use(running)
            site.time.run_on(1 / calls_per_s)
        tick(running._device.counter)


def in_hand(device, terms=MUL) -> int:
    return device.counter.meter(terms.meter).unused()


def outcome(running) -> str:
    try:
        use(running)
    except DenialError as denial:
        return denial.code
    return "delivered"


@pytest.fixture
def unwritable(monkeypatch):
    """Call it, and no ledger can be written any more."""

    def refuse(_store) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    return lambda: monkeypatch.setattr(LedgerStore, "_begin", refuse)


def test_at_a_steady_pace_no_call_needs_the_ledger(site, unwritable):
    device = site.activated(MUL)
    running = session(device)
    run_at(site, running, 20, 5)
    ready = in_hand(device)
    assert ready >= 15
    unwritable()
    use(running, ready)
    with pytest.raises(LedgerError):
        use(running)


def test_what_was_fetched_ahead_serves_calls_of_many_items(site, unwritable):
    device = site.activated(ROWS)
    rows = session(device, "rows")
    for _ in range(6):
        for units in (3, 3, 3, 7, 1, 3):
            rows.run(None, frames(units))
            site.time.run_on(1 / 6)
        tick(device.counter)
    ready = in_hand(device, ROWS)
    assert ready >= 15
    unwritable()
    rows.run(None, frames(ready - 4))
    rows.run(None, frames(4))
    with pytest.raises(LedgerError):
        rows.run(None, frames(1))
    assert in_hand(device, ROWS) == 0


def test_where_leases_are_used_up_too_soon_several_are_fetched_at_once(site, monkeypatch, unwritable):
    """At 200,000 calls a second, 32,768 units last no hundred commits of 2 ms. Each lease has no more."""
    begin = LedgerStore._begin

    def begin_slowly(store):
        site.time.run_on(0.002)
        return begin(store)

    device = site.activated(MUL)
    running = session(device)
    monkeypatch.setattr(LedgerStore, "_begin", begin_slowly)
    for _ in range(6):
        calls = min(max(1, in_hand(device)), 20_000)
        use(running, calls)
        site.time.run_on(calls / 200_000)
        tick(device.counter)
    ready = in_hand(device)
    assert 3 * limits.LEASE_UNITS_MAX < ready <= 200_000
    unwritable()
    for _ in range(ready):
        running.run(None, MUL_FEED)
        assert device.counter.meter(MUL.meter).lease.units <= limits.LEASE_UNITS_MAX
    with pytest.raises(LedgerError):
        use(running)


def test_the_ledgers_row_covers_what_was_fetched_ahead(site):
    device = site.activated(MUL)
    running = session(device)
    run_at(site, running, 20, 5)
    recorded(device)
    assert leased(device) == in_hand(device)
    device.close()
    assert leased(site.open()) == 0


def test_a_lease_never_grows_beyond_its_bounds(site):
    device = site.activated(limited(MUL, 3_200))
    running = session(device)
    for second in range(20):
        run_at(site, running, 100, 1)
        assert in_hand(device) <= max(1, (3_200 - 100 * second) // limits.LEASE_SHARE)
    assert recorded(device) == 2_000


def test_the_last_units_can_be_used_by_whoever_asks(site):
    """One process holds some unused; once it is idle, they are not its own any more."""
    first, second = site.activated(limited(MUL, 100)), site.open()
    one, other = session(first), session(second)
    use(one, 3)
    held = in_hand(first)
    assert held > 0
    delivered = 3
    while outcome(other) != DENIED:
        delivered += 1
    assert delivered == 100 - held
    site.time.run_on(2)
    tick(first.counter)
    site.time.run_on(2)
    tick(first.counter)
    use(other, held)
    with pytest.raises(DenialError):
        use(other)
    assert recorded(first) == 100


def test_a_process_that_fell_idle_gives_back_what_a_power_loss_would_unsettle(site):
    device = site.activated(MUL)
    running = session(device)
    run_at(site, running, 50, 3)
    assert in_hand(device) > 1
    for _ in range(3):
        site.time.run_on(2)
        tick(device.counter)
    assert in_hand(device) <= 1
    recorded(device)
    assert leased(device) <= 1
    use(running, 5)
    assert recorded(device) == 155


def test_an_idle_device_writes_nothing(site):
    device = site.activated(MUL, LOOPING)
    running = session(device)
    run_at(site, running, 30, 3)
    for _ in range(3):
        site.time.run_on(2)
        tick(device.counter)
    with unchanged(site.path):
        for _ in range(1_000):
            site.time.run_on(1)
            tick(device.counter)
    use(running)
    assert recorded(device) == 91


def test_cells_are_flushed_once_a_second_at_most_and_only_if_they_changed(site):
    device = site.activated(MUL)
    running = session(device)
    use(running)
    flushes = []
    flush = device.counter.flush
    device.counter.flush = lambda: flushes.append(flush()) or flushes[-1]
    for _ in range(10):
        site.time.run_on(0.25)
        use(running)
        tick(device.counter)
    assert flushes.count(True) == len(flushes) == 3
    site.time.run_on(5)
    tick(device.counter)
    tick(device.counter)
    assert flushes[3:] == [True]
    site.time.run_on(5)
    tick(device.counter)
    assert flushes[4:] == [False]


def test_the_time_that_passed_is_written_with_a_flush(site):
    """Else switching off would give it back."""
    device = site.activated(MUL)
    running = session(device)
    use(running, 200)
    for _ in range(5):
        site.time.run_on(10)
        use(running)
        tick(device.counter)
    site.time.reboot(0)
    site.time.set_wall(-40)
    after = site.open()
    after.status()
    (back,) = records(after, "clock")
    assert back["reason"] == "back"
    assert back["from_s"] == START_S + 50 + 20  # as it was when the last flush was, and 20 s of the new boot


def test_what_another_process_installed_is_noticed(site):
    device, other = site.activated(MUL), site.open()
    running = session(device)
    run_at(site, running, 20, 3)
    site.sync(other, LOOPING)
    tick(device.counter)
    with pytest.raises(DenialError) as caught:
        use(running)
    assert caught.value.code == "model_not_licensed"
    site.sync(other, MUL)
    tick(device.counter)
    use(running)
    assert recorded(device) == 61


@pytest.mark.parametrize("seen_by", ["status", "another meter"])
def test_what_was_installed_is_noticed_though_something_else_saw_it_before(site, seen_by):
    device, other = site.activated(MUL, ROWS), site.open()
    running, rows = session(device), session(device, "rows")
    run_at(site, running, 20, 3)
    site.sync(other, ROWS)
    device.status() if seen_by == "status" else rows.run(None, frames(3))
    use(running)
    assert in_hand(device) > 0
    tick(device.counter)
    assert outcome(running) == "model_not_licensed"


def test_the_keeper_takes_no_units_past_an_edge(site):
    device = site.activated(MUL)
    running = session(device)
    run_at(site, running, 20, 3)
    site.time.run_on(limits.WINDOW_S)
    tick(device.counter)
    recorded(device)
    assert [record["units"] for record in records(device, "usage")] == [60]
    use(running, 2)
    recorded(device)
    assert [record["units"] for record in records(device, "usage")] == [60, 2]


def test_where_the_ledger_cannot_be_written_the_keeper_tries_again_later(site, unwritable, monkeypatch):
    device = site.activated(MUL)
    running = session(device)
    run_at(site, running, 20, 3)
    unwritable()
    use(running, in_hand(device))
    site.time.run_on(1)
    assert tick(device.counter) > 0
    monkeypatch.undo()
    use(running, 5)
    site.time.run_on(1)
    tick(device.counter)
    assert in_hand(device) > 0
    delivered = recorded(device)
    assert not records(device, "recovery")
    device.close()
    after = site.open()
    assert (recorded(after), leased(after)) == (delivered, 0)


def test_where_no_thread_can_be_had_calls_go_on_without_the_keeper(site, monkeypatch):
    """As at a process's limit of threads, or, from Python 3.12 on, at the interpreter's end."""

    def refuse(_thread) -> None:
        raise RuntimeError("can't start new thread")

    device = site.activated(MUL)
    with monkeypatch.context() as limited_threads:
        limited_threads.setattr(threading.Thread, "start", refuse)
        running = session(device)
        use(running, 50)
    assert device.counter.keeper._thread is None
    site.time.run_on(limits.WINDOW_S)
    use(running, 50)
    assert device.counter.keeper._thread.is_alive()
    assert recorded(device) == 100


def expect(device, terms=MUL) -> None:
    """What the keeper does when it begins with a session."""
    device.counter.lease_first(terms.meter, terms.sha256[0])


def test_the_first_call_finds_its_lease_and_its_cell(site, unwritable):
    device = site.activated(MUL)
    expect(device)
    running = session(device)
    unwritable()
    use(running)
    with pytest.raises(LedgerError):
        use(running)
    assert device.counter.own.file.count_at(0) == 1


def test_a_first_lease_that_nobody_used_goes_back_once_idle(site):
    device = site.activated(MUL)
    expect(device)
    assert leased(device) == 1
    site.time.run_on(1)
    tick(device.counter)
    assert (leased(device), in_hand(device)) == (0, 0)
    running = session(device)
    use(running, 3)
    assert recorded(device) == 3


def test_a_ready_cell_is_one_threads(site):
    device = site.activated(MUL)
    expect(device)
    running = session(device)
    threads = [threading.Thread(target=use, args=(running, 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorded(device) == 20
    assert not device.counter.own.ready


def test_a_ready_cell_that_came_to_an_edge_counts_in_the_window_of_the_call(site):
    device = site.activated(MUL)
    expect(device)
    site.time.run_on(limits.WINDOW_S)
    use(session(device))
    assert recorded(device) == 1
    (record,) = records(device, "usage")
    assert record["window"] == site.time.now_s // limits.WINDOW_S


@pytest.mark.parametrize("limit", [0, 5])
def test_no_first_lease_is_taken_of_the_last_units(site, limit):
    """Also where there are none, and the call itself is told so."""
    device, other = site.activated(limited(MUL, limit)), site.open()
    expect(device)
    assert in_hand(device) == 0
    running, delivered = session(other), 0
    while outcome(running) != DENIED:
        delivered += 1
    assert delivered == limit
    assert outcome(session(device)) == DENIED


def test_what_stands_in_the_way_of_a_first_lease_is_for_the_call_to_find(site, unwritable, monkeypatch):
    device = site.activated(MUL)
    unwritable()
    expect(device)
    running = session(device)
    with pytest.raises(LedgerError):
        use(running)
    monkeypatch.undo()
    use(running, 2)
    assert recorded(device) == 2


def test_a_cell_whose_low_half_is_worn_goes_on_in_another_slot(site):
    device = site.activated(MUL)
    running = session(device)
    use(running)
    file = device.counter.own.file
    far = HALF // 2 + 1
    with device.counter.fold_everything() as (tx, now, _):
        file.words[0] = file.words[1] = pack(now.window, far)
        tx.execute("UPDATE cells SET mark = ?", (far,))
    site.time.run_on(limits.WINDOW_S)
    use(running, 5)
    assert recorded(device) == 6
    assert file.count_at(0) == HALF + 1
    assert not records(device, "recovery")


# -- by itself


def test_it_runs_by_itself(site):
    site.time.set_true()
    device = site.activated(MUL, real_clocks=True)
    running = session(device)
    ahead = []

    def met() -> bool:
        use(running, 20)
        ahead.append(device.counter.meter(MUL.meter).ahead)
        return any(ahead)

    wait_until(met)
    wait_until(lambda: in_hand(device) <= 1)
    assert recorded(device) == 20 * len(ahead)


class Beginning(FakeClocks):
    """Under these the keeper does what it begins with, and then waits for ever."""

    @property
    def clocks(self):
        return super().clocks._replace(wait=lambda event, seconds: event.wait() if seconds else event.is_set())


def test_it_begins_by_leasing_for_the_first_call(site, unwritable, monkeypatch):
    site.time = Beginning()
    device = site.activated(MUL)
    running = session(device)
    assert device.counter.own.ready
    unwritable()
    use(running)
    monkeypatch.undo()
    assert recorded(device) == 1


def test_a_session_does_not_wait_for_a_ledger_that_another_process_holds(site):
    """The first call does: it cannot be answered before."""
    site.time.set_true()
    device = site.activated(MUL, real_clocks=True)
    with contextlib.closing(sqlite3.connect(device.vault.ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        running = session(device)
        assert not device.counter.own.ready
        other.execute("ROLLBACK")
    use(running)
    assert recorded(device) == 1


def test_it_leases_nothing_ahead_for_a_session_that_counts_strictly(site):
    site.time.set_true()
    device = site.activated(MUL, real_clocks=True)
    running = session(device, count="strict")
    use(running)
    assert leased(device) <= 1  # the call's own, until its cell is folded
    assert not device.counter.own.ready


def test_it_keeps_no_device_alive(site):
    site.time.set_true()
    device = site.activated(MUL, real_clocks=True)
    running = session(device)
    running.run(None, MUL_FEED)
    alive = weakref.ref(device.counter)
    site.opened.clear()
    del device, running

    def is_gone() -> bool:
        gc.collect()
        return alive() is None

    wait_until(is_gone)
    assert alive() is None


def test_sixteen_processes_use_up_a_limit_and_not_one_unit_more(site, tmp_path):
    site.time.set_true()
    device = site.activated(limited(MUL, LIMIT), real_clocks=True)
    workers = [Worker(site, 1, go=tmp_path / "go") for _ in range(PROCESSES)]
    for worker in workers:
        worker.wait_ready()
    (tmp_path / "go").touch()
    for worker in workers:
        worker.end()
    assert [worker.said for worker in workers] == [["limit_reached"]] * PROCESSES
    assert all(worker.delivered > 0 for worker in workers)
    assert sum(worker.delivered for worker in workers) == LIMIT
    assert recorded(device) == LIMIT
