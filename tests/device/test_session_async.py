"""`run_async`: admitted by the thread that asks, counted by the one that calls back."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from device_models import MUL_FEED, frames, held
from device_paths import call_async
from device_site import HOLDING, LOOPING, MUL, PATIENCE_S, ROWS, leased, limited, recorded, records, session
from vendor import PRODUCT

from device_sdk import DenialError, DeviceError, LicensedSession
from meterkit import limits

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def options(threads: int = 4) -> onnxruntime.SessionOptions:
    """One thread is the asking one's part in a call; the others answer."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 4
    return made


def opened(device, name: str = "mul", **kwargs) -> LicensedSession:
    return session(device, name, sess_options=options(), **kwargs)


def trips(number: int) -> dict[str, np.ndarray]:
    return {"trips": np.array(number, np.int64)}


def test_what_it_gives_and_counts(site):
    device = site.activated(MUL, ROWS)
    (answer,) = call_async(opened(device), MUL_FEED).get(timeout=PATIENCE_S)
    np.testing.assert_array_equal(answer, session(device).run(None, MUL_FEED)[0])
    (scaled,) = call_async(opened(device, "rows"), frames(7)).get(timeout=PATIENCE_S)
    assert scaled.shape == (7, 4)
    assert recorded(device) == 2
    assert recorded(device, "rows") == 7


def test_many_at_once_from_several_threads(site):
    device = site.activated(ROWS)
    running = opened(device, "rows")
    answers = []

    def ask(number: int) -> None:
        answers.extend(call_async(running, frames(number)) for _ in range(50))

    askers = [threading.Thread(target=ask, args=(number,)) for number in (1, 2, 3, 0)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len([answer.get(timeout=PATIENCE_S) for answer in answers]) == 200
    assert recorded(device, "rows") == 50 * (1 + 2 + 3 + 0)
    assert not records(device, "recovery")


def test_a_failed_one_counts_nothing(site):
    device = site.activated(limited(MUL, 2))
    running = opened(device)
    bad = {"X": np.ones((2, 2), np.float32)}
    for _ in range(5):
        assert "invalid dimensions" in str(failure(running, bad))
    assert "INVALID_ARGUMENT" in str(failure(session(device), MUL_FEED))  # it has one intra-op thread
    call_async(running, MUL_FEED).get(timeout=PATIENCE_S)
    assert recorded(device) == 1
    assert leased(device) <= 1


def failure(running, feed) -> object:
    """What a call failed with, at once or by its callback."""
    try:
        return call_async(running, feed).get(timeout=PATIENCE_S)
    except Exception as fault:  # noqa: BLE001 - of whatever kind ONNX Runtime makes it
        return fault


def test_a_limit_is_kept_at_admission(site):
    device = site.activated(limited(HOLDING, 3))
    running = opened(device, "holding")
    told = []
    denying = opened(device, "holding", on_denied=told.append)
    with held() as feed:
        waiting = [call_async(running, feed) for _ in range(3)]
        with pytest.raises(DenialError) as caught:
            call_async(denying, feed)
        assert recorded(device, "holding") == 0
    assert [denial.code for denial in told] == [caught.value.code] == ["limit_reached"]
    for answers in waiting:
        answers.get(timeout=PATIENCE_S)
    assert recorded(device, "holding") == 3


def test_a_call_belongs_to_the_window_in_which_it_was_admitted(site):
    device = site.activated(LOOPING)
    running = session(device, "looping", sess_options=options(threads=2))
    release = hold_the_only_answering_thread(running)
    waiting = call_async(running, trips(1))
    window = site.time.now_s // limits.WINDOW_S
    site.time.run_on(limits.WINDOW_S)
    later = call_async(running, trips(1))
    with device.counter.fold_everything() as (_, _, folded):
        assert folded.in_flight
        assert folded.open_window == window
    release.set()
    for answers in (waiting, later):
        answers.get(timeout=PATIENCE_S)
    assert recorded(device, "looping") == 3
    found = {}
    for record in records(device, "usage"):
        found[record["window"]] = found.get(record["window"], 0) + record["units"]
    assert found == {window: 2, window + 1: 1}
    assert not records(device, "recovery")


def hold_the_only_answering_thread(running: LicensedSession) -> threading.Event:
    """Keep what is asked from now on in flight until the event is set: one call, already counted, is not over."""
    counted, release = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        counted.set()
        release.wait(PATIENCE_S)

    running.run_async(None, trips(1), hold, None)
    assert counted.wait(PATIENCE_S)
    return release


def test_a_call_in_flight_while_the_device_is_closed_is_counted(site):
    device = site.activated(HOLDING)
    with held() as feed:
        waiting = call_async(opened(device, "holding"), feed)
        device.close()
        after = site.open()
        assert recorded(after, "holding") == 0
    waiting.get(timeout=PATIENCE_S)
    assert recorded(after, "holding") == 1
    assert leased(after) == 0


def test_an_axis_that_cannot_be_measured_is_refused_before_it_runs(site):
    device = site.activated(ROWS)
    with pytest.raises(DeviceError) as caught:
        call_async(opened(device, "rows"), {"frames": 3})
    assert caught.value.code == "feed_unmeasurable"
    assert recorded(device, "rows") == 0


ENDS_IN_FLIGHT = """
import sys
sys.path.insert(0, sys.argv[1])
import device_models, numpy, onnxruntime, os
from device_sdk import Device, LicensedSession, Trust

device = Device.open(sys.argv[2], trust=Trust(issuer=sys.argv[3], roots=(sys.argv[4],)), product=sys.argv[5])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
running = LicensedSession(device_models.looping(), options, device=device, model="looping")
for trips in (1, 2_000_000_000):
    feed = {"trips": numpy.array(trips, numpy.int64)}
    running.run_async(None, feed, lambda *_: os.write(1, b"."), None)
    if trips == 1:
        while not os.fstat(1).st_size:
            pass
os._exit(0)
"""


def test_a_process_that_ends_with_a_call_in_flight_counts_what_it_delivered(site, tmp_path):
    site.time.set_true()
    device = site.activated(LOOPING, real_clocks=True)
    trust = site.vendor.trust
    argv = [sys.executable, "-c", ENDS_IN_FLIGHT, SUPPORT, site.path, trust.issuer, trust.roots[0], PRODUCT]
    told = tmp_path / "told"
    with told.open("wb") as out:
        subprocess.run([str(arg) for arg in argv], stdout=out, timeout=60, check=True)
    assert told.read_bytes() == b"."
    assert recorded(device, "looping") == 1
    assert leased(device) == 0
