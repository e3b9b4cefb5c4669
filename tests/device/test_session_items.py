"""Items counted along the signed axis, and runs that fail."""

import device_models
import numpy as np
import onnxruntime
import pytest
from device_models import MUL_FEED, frames
from device_site import MUL, ROWS, leased, limited, outcome, quiet_run_options, recorded, session, unchanged
from vendor import call_model, item_model

from device_sdk import DenialError, DeviceError, LicensedSession
from meterkit import limits
from meterkit.licenses import Axis, ModelTerms

ARRAY = MUL_FEED["X"]


def test_items_are_counted_along_the_signed_axis(device, rows):
    for count in (1, 3_000, 7):
        assert rows.run(None, frames(count))[0].shape == (count, 4)
    assert recorded(device, "rows") == 3_008


def test_an_empty_batch_runs_and_counts_nothing(device, rows):
    assert rows.run(None, frames(0))[0].shape == (0, 4)
    rows.run(None, frames(2))
    assert rows.run(None, frames(0))[0].shape == (0, 4)
    assert recorded(device, "rows") == 2


def test_empty_batches_do_not_open_the_way_past_a_limit(site):
    """Each of them used to lease a unit that was not left, for the next call to take."""
    device = site.activated(limited(ROWS, 3))
    rows = session(device, "rows")
    rows.run(None, frames(3))
    for _ in range(5):
        rows.run(None, frames(0))
        with pytest.raises(DenialError) as caught:
            rows.run(None, frames(1))
        assert caught.value.code == "limit_reached"
        site.time.run_on(limits.WINDOW_S)
    assert recorded(device, "rows") == 3
    assert leased(device) == 0


def test_a_call_is_admitted_whole_or_not_at_all(site):
    device = site.activated(limited(ROWS, 10))
    rows = session(device, "rows")
    rows.run(None, frames(7))
    with pytest.raises(DenialError) as caught:
        rows.run(None, frames(4))
    assert caught.value.code == "limit_reached"
    assert "4 more units of rows, 3 of 10 left" in caught.value.detail
    assert recorded(device, "rows") == 7
    rows.run(None, frames(3))  # at once: what is denied to four is not denied to three
    assert recorded(device, "rows") == 10


def test_an_axis_that_the_model_has_not_is_refused(site):
    digest = device_models.digest(device_models.rows())
    for axis in (Axis(input="pixels", dim=0), Axis(input="frames", dim=2), Axis(input="scale", dim=1)):
        terms = ModelTerms(name="rows", unit="item", axis=axis, limit=None, sha256=(digest,))
        device = site.open()
        site.activate(device, terms)
        with pytest.raises(DeviceError) as caught:
            session(device, "rows")
        assert caught.value.code == "model_unsupported"


def test_the_axis_is_the_tokens(site):
    digest = device_models.digest(device_models.rows())
    terms = ModelTerms(name="rows", unit="item", axis=Axis(input="frames", dim=1), limit=None, sha256=(digest,))
    device = site.activated(terms)
    session(device, "rows").run(None, frames(9))
    assert recorded(device, "rows") == 4


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"scale": np.ones(4, np.float32)},
        {"frames": None, "scale": np.ones(4, np.float32)},
        {"frames": 5, "scale": np.ones(4, np.float32)},
        {"frames": np.float32(5), "scale": np.ones(4, np.float32)},
        {"frames": "text", "scale": np.ones(4, np.float32)},
        {"frames": np.empty((2**40, 0), np.float32), "scale": np.ones(4, np.float32)},
        None,
        [],
    ],
)
def test_what_cannot_be_measured_is_not_run(device, rows, feed):
    with pytest.raises(DeviceError) as caught:
        rows.run(None, feed)
    assert caught.value.code == "feed_unmeasurable"
    assert recorded(device, "rows") == 0


def test_a_feed_of_lists_or_an_ort_value_is_measured(device, rows, plain_rows):
    arrays = frames(5)
    for first in (arrays["frames"].tolist(), onnxruntime.OrtValue.ortvalue_from_numpy(arrays["frames"])):
        feed = {"frames": first, "scale": arrays["scale"]}
        before = recorded(device, "rows")
        expected = outcome(plain_rows, (None, feed))
        assert outcome(rows, (None, feed)) == expected
        assert recorded(device, "rows") - before == (5 if isinstance(expected, list) else 0)


# -- failed runs


def test_a_failed_run_counts_nothing_and_gives_its_unit_back(site):
    device = site.activated(limited(MUL, 3))
    licensed = session(device)
    for _ in range(10):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
            licensed.run(None, {"X": ARRAY.reshape(2, 3)})
    for _ in range(3):
        licensed.run(None, MUL_FEED)
    with pytest.raises(DenialError):
        licensed.run(None, MUL_FEED)
    assert recorded(device) == 3
    assert leased(device) == 0


def test_a_failed_run_of_items_gives_all_of_them_back(site):
    device = site.activated(limited(ROWS, 50))
    rows = session(device, "rows")
    broken = {"frames": np.ones((40, 5), np.float32), "scale": np.ones(4, np.float32)}
    for _ in range(5):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
            rows.run(None, broken)
    rows.run(None, frames(50))
    assert recorded(device, "rows") == 50
    assert leased(device) == 0


def test_a_terminated_run_counts_nothing(device):
    running = session(device, "looping")
    options = quiet_run_options()
    options.terminate = True
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        running.run(None, {"trips": np.array(10, np.int64)}, options)
    assert recorded(device, "looping") == 0
    assert running.run(None, {"trips": np.array(10, np.int64)})[0] == 10
    assert recorded(device, "looping") == 1


def test_a_session_of_terms_that_changed_ends(site):
    """A later token meters the model otherwise, or names other bytes."""
    device = site.activated(MUL)
    licensed = session(device)
    licensed.run(None, MUL_FEED)
    site.sync(device, item_model("mul", MUL.sha256[0], "X"))
    with pytest.raises(DenialError) as caught:
        licensed.run(None, MUL_FEED)
    assert caught.value.code == "model_not_licensed"
    site.sync(device, call_model("mul", "0" * 64))
    with pytest.raises(DenialError) as caught:
        licensed.run(None, MUL_FEED)
    assert caught.value.code == "model_digest_wrong"
    site.sync(device, MUL)
    licensed.run(None, MUL_FEED)
    assert recorded(device) == 2


def test_a_refused_session_changes_nothing(device, site):
    with unchanged(site.path), pytest.raises(DenialError):
        LicensedSession(b"other bytes", device=device, model="mul")


def test_an_array_that_lies_about_its_shape_is_counted_as_it_is(device, rows):
    class Small(np.ndarray):
        shape = property(lambda _: (1, 4))

    lying = {name: array.view(Small) for name, array in frames(7).items()}
    answer = rows.run(None, lying)[0]
    assert answer.shape == (7, 4)
    assert recorded(device, "rows") == 7
