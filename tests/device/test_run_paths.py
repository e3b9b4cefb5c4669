"""Each way to run a session, behind its gate: the same answers, really counted, really denied."""

import threading

import device_models
import numpy as np
import onnxruntime
import pytest
from device_models import MUL_FEED, frames, held
from device_paths import WAYS, bound, cpu, names, ort_value, vector
from device_site import (
    HOLDING,
    MUL,
    ROWS,
    in_flight,
    leased,
    limited,
    quiet_options,
    recorded,
    records,
    session,
    wait_until,
)

from device_sdk import DenialError, DeviceError, LedgerError, LicensedSession
from meterkit import limits

RUN_PATHS = [name for name in dir(onnxruntime.InferenceSession) if name.startswith("run") and name != "run_async"]
pytestmark = pytest.mark.parametrize("way", [pytest.param(name, id=name) for name in RUN_PATHS])


def test_it_answers_as_the_plain_session_does(licensed, plain, way):
    expected = WAYS[way](plain, MUL_FEED)
    for _ in range(2):
        answers = WAYS[way](licensed, MUL_FEED)
        assert [answer.tolist() for answer in answers] == [answer.tolist() for answer in expected]


def test_every_call_counts_one(device, licensed, way):
    for _ in range(7):
        WAYS[way](licensed, MUL_FEED)
    assert recorded(device) == 7


def test_every_item_counts(device, rows, way):
    for count in (1, 3_000, 0, 7):
        assert WAYS[way](rows, frames(count))[0].shape == (count, 4)
    assert recorded(device, "rows") == 3_008


def test_it_stops_at_the_limit(site, way):
    device = site.activated(limited(MUL, 3))
    licensed = session(device)
    for _ in range(3):
        WAYS[way](licensed, MUL_FEED)
    for _ in range(3):
        with pytest.raises(DenialError) as caught:
            WAYS[way](licensed, MUL_FEED)
        assert caught.value.code == "limit_reached"
    assert recorded(device) == 3


def test_items_stop_at_the_limit_whole_or_not_at_all(site, way):
    device = site.activated(limited(ROWS, 10))
    rows = session(device, "rows")
    WAYS[way](rows, frames(7))
    with pytest.raises(DenialError) as caught:
        WAYS[way](rows, frames(4))
    assert caught.value.code == "limit_reached"
    WAYS[way](rows, frames(3))
    assert recorded(device, "rows") == 10


def test_it_ends_with_the_token(site, way):
    device = site.activated(MUL)
    licensed = session(device)
    WAYS[way](licensed, MUL_FEED)
    site.time.run_on(limits.TOKEN_LIFE_S + limits.GRACE_S)
    with pytest.raises(DenialError) as caught:
        WAYS[way](licensed, MUL_FEED)
    assert caught.value.code == "token_expired"
    assert recorded(device) == 1


def test_a_refused_call_does_not_run(site, way):
    """Its outputs stay as they were: where the answer goes into the caller's own memory, it can be seen."""
    device = site.activated(limited(MUL, 0))
    licensed = session(device)
    before = np.full((3, 2), 7, np.float32)
    into = ort_value(before)
    calls = {
        "run_with_iobinding": lambda: run_into(licensed, into),
        "run_with_ortvaluevector": lambda: run_vector_into(licensed, before),
    }
    with pytest.raises(DenialError):
        calls.get(way, lambda: WAYS[way](licensed, MUL_FEED))()
    assert into.numpy().tolist() == before.tolist() == [[7, 7]] * 3
    assert recorded(device) == 0


def run_into(running, into):
    binding = bound(running, MUL_FEED)
    binding.bind_ortvalue_output(names(running)[0], into)
    running.run_with_iobinding(binding)


def run_vector_into(running, into):
    options = onnxruntime.RunOptions()
    feeds, fetches = vector(*MUL_FEED.values()), vector(into)
    running.run_with_ortvaluevector(options, list(MUL_FEED), feeds, names(running), fetches, [cpu()])


def test_the_callers_memory_is_written_when_it_is_allowed(licensed, way):
    """What the test before relies on."""
    if way == "run_with_iobinding":
        into = ort_value(np.full((3, 2), 7, np.float32))
        run_into(licensed, into)
        assert into.numpy().tolist() != [[7, 7]] * 3
    if way == "run_with_ortvaluevector":
        before = np.full((3, 2), 7, np.float32)
        run_vector_into(licensed, before)
        assert before.tolist() != [[7, 7]] * 3


def test_a_failed_run_counts_nothing_and_gives_its_units_back(site, way):
    device = site.activated(limited(MUL, 3))
    licensed = session(device)
    plain = onnxruntime.InferenceSession(device_models.mul(), quiet_options(), ["CPUExecutionProvider"])
    broken = {"X": MUL_FEED["X"].reshape(2, 3)}
    for _ in range(10):
        with pytest.raises(Exception) as expected:  # noqa: PT011 - the other one must be the same
            WAYS[way](plain, broken)
        with pytest.raises(type(expected.value)):
            WAYS[way](licensed, broken)
    for _ in range(3):
        WAYS[way](licensed, MUL_FEED)
    with pytest.raises(DenialError):
        WAYS[way](licensed, MUL_FEED)
    assert recorded(device) == 3
    assert leased(device) == 0


def test_a_failed_run_of_items_gives_all_of_them_back(site, way):
    device = site.activated(limited(ROWS, 50))
    rows = session(device, "rows")
    broken = {"frames": np.ones((40, 5), np.float32), "scale": np.ones(4, np.float32)}
    for _ in range(5):
        with pytest.raises(Exception, match=r"rows|shape|[Dd]imension|Error in execution"):
            WAYS[way](rows, broken)
    WAYS[way](rows, frames(50))
    assert recorded(device, "rows") == 50
    assert leased(device) == 0


def test_wrong_arguments_count_nothing(device, licensed, plain, way):
    shapes = ((), (None,), (None, None), ("x", "y", "z"), (5, 5, 5, 5, 5, 5), (None,) * 7)
    for args in shapes:
        with pytest.raises(Exception) as expected:  # noqa: PT011 - the other one must be the same
            getattr(plain, way)(*args)
        with pytest.raises(type(expected.value)):
            getattr(licensed, way)(*args)
    assert recorded(device) == 0


def test_threads_count_each_for_themselves(device, licensed, way):
    delivered = [0] * 4

    def work(number: int) -> None:
        for _ in range(50):
            WAYS[way](licensed, MUL_FEED)
            delivered[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert delivered == [50] * 4
    assert recorded(device) == 200
    assert len({record["cell"] for record in records(device, "usage")}) == 4


def test_a_call_in_flight_is_seen(site, way):
    device = site.activated(HOLDING)
    running = session(device, "holding")
    with held() as feed:
        caller = threading.Thread(target=WAYS[way], args=(running, feed))
        caller.start()
        wait_until(lambda: in_flight(device))
        assert recorded(device, "holding") == 0
    caller.join()
    assert not in_flight(device)
    assert recorded(device, "holding") == 1


def test_a_ledger_that_cannot_be_written_denies(site, monkeypatch, way):
    device = site.activated(MUL)
    licensed = session(device)

    def fails(*_args, **_kwargs):
        raise LedgerError("ledger_unwritable")

    with monkeypatch.context() as patch:
        patch.setattr(device.counter.store, "write", fails)
        with pytest.raises(LedgerError):
            WAYS[way](licensed, MUL_FEED)
    WAYS[way](licensed, MUL_FEED)
    assert recorded(device) == 1


def test_an_unbound_call_is_gated_too(device, licensed, way):
    """`LicensedSession.run(session, …)` is the session's own way, for each of them."""

    class Unbound:
        def __getattr__(self, name):
            found = getattr(LicensedSession, name)
            return lambda *args: found(licensed, *args)

    WAYS[way](Unbound(), MUL_FEED)
    assert recorded(device) == 1


def test_all_ways_share_one_limit(site, way):
    device = site.activated(limited(MUL, 4))
    licensed = session(device)
    WAYS[way](licensed, MUL_FEED)
    delivered = 1
    for other in RUN_PATHS * 2:
        try:
            WAYS[other](licensed, MUL_FEED)
        except DenialError:
            continue
        delivered += 1
    assert delivered == recorded(device) == 4


def test_a_closed_device_runs_nothing(device, licensed, way):
    WAYS[way](licensed, MUL_FEED)
    device.close()
    with pytest.raises(DeviceError) as caught:
        WAYS[way](licensed, MUL_FEED)
    assert caught.value.code == "device_closed"
