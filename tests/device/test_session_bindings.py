"""Items counted where inputs are bound, or come as OrtValues: by the shapes that ONNX Runtime itself sees."""

import device_models
import numpy as np
import onnxruntime
import pytest
from device_models import MUL_FEED, frames
from device_paths import bound, cpu, names, ort_value, vector
from device_site import quiet_options, recorded, session
from onnxruntime.capi import onnxruntime_pybind11_state as native

from device_sdk import DeviceError, LicensedSession
from device_sdk.bindings import MeasuredBinding
from device_sdk.items import shape_of
from meterkit.licenses import Axis, ModelTerms


def run(rows, binding) -> int:
    """How many rows came out. ONNX Runtime keeps an output's memory for the next run, unless it is bound anew."""
    binding.bind_output("scaled")
    rows.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0].shape[0]


def refused(call) -> None:
    with pytest.raises(DeviceError) as caught:
        call()
    assert caught.value.code == "feed_unmeasurable"


def test_a_binding_is_onnx_runtimes_own(rows, licensed):
    assert isinstance(rows.io_binding(), MeasuredBinding)
    assert isinstance(rows.io_binding(), onnxruntime.IOBinding)
    assert type(licensed.io_binding()) is onnxruntime.IOBinding


def test_what_is_bound_again_is_counted_as_it_is_then(device, rows):
    binding = bound(rows, frames(5))
    assert run(rows, binding) == run(rows, binding) == 5
    binding.bind_cpu_input("frames", frames(3)["frames"])
    assert run(rows, binding) == 3
    binding.bind_ortvalue_input("frames", ort_value(frames(2)["frames"]))
    assert run(rows, binding) == 2
    buffer = frames(4)["frames"]
    binding.bind_input("frames", "cpu", 0, np.float32, (4, 4), buffer.ctypes.data)
    assert run(rows, binding) == 4
    binding.bind_input("frames", "cpu", 0, np.float32, np.array([1, 4]), buffer.ctypes.data)
    assert run(rows, binding) == 1
    assert recorded(device, "rows") == 5 + 5 + 3 + 2 + 4 + 1


def test_an_array_that_is_reshaped_after_it_was_bound_runs_and_counts_as_it_was(device, rows):
    array = np.ones((4, 4), np.float32)
    binding = bound(rows, {**frames(4), "frames": array})
    array.shape = (16, 1)
    assert run(rows, binding) == 4
    assert recorded(device, "rows") == 4


def test_an_ort_value_that_is_updated_in_place_keeps_its_shape(device, rows):
    value = ort_value(frames(6)["frames"].copy())
    binding = bound(rows, frames(1))
    binding.bind_ortvalue_input("frames", value)
    value.update_inplace(np.full((4, 6), 3, np.float32))
    assert run(rows, binding) == 6
    assert recorded(device, "rows") == 6


def test_an_array_that_lies_about_its_shape_is_counted_as_it_is(device, rows):
    class Small(np.ndarray):
        shape = property(lambda _: (1, 4))

    binding = bound(rows, {name: array.view(Small) for name, array in frames(7).items()})
    assert run(rows, binding) == 7
    assert recorded(device, "rows") == 7


def test_an_ort_value_that_lies_about_its_shape_is_counted_as_it_is(device, rows):
    class OrtValue(onnxruntime.OrtValue):
        def shape(self):
            return [1, 4]

    value = OrtValue(ort_value(frames(7)["frames"])._ortvalue)
    scale = ort_value(frames(7)["scale"])
    binding = bound(rows, frames(1))
    binding.bind_ortvalue_input("frames", value)
    assert run(rows, binding) == 7
    assert rows.run_with_ort_values(None, {"frames": value, "scale": scale})[0].shape() == [7, 4]
    assert rows.run(None, {"frames": value, "scale": frames(7)["scale"]})[0].shape == (7, 4)
    assert recorded(device, "rows") == 21


def test_a_name_in_bytes_is_the_same_name(device, rows):
    binding = bound(rows, frames(1))
    binding.bind_cpu_input(b"frames", frames(9)["frames"])
    assert run(rows, binding) == 9
    assert recorded(device, "rows") == 9


def test_what_could_not_be_bound_leaves_what_was(device, rows, plain_rows):
    for running in (rows, plain_rows):
        binding = bound(running, frames(5))
        with pytest.raises(RuntimeError):
            binding.bind_cpu_input("frames", frames(2)["frames"].tolist())
        with pytest.raises(RuntimeError):
            binding.bind_input("frames", "cpu", 0, np.float32, (-1, 4), frames(2)["frames"].ctypes.data)
        with pytest.raises(RuntimeError):
            binding.bind_cpu_input("no such input", frames(2)["frames"])
        with pytest.raises((AttributeError, TypeError)):
            binding.bind_ortvalue_input("frames", frames(2)["frames"])
        assert run(running, binding) == 5
    assert recorded(device, "rows") == 5


def test_an_interrupted_binding_is_not_measured_as_before(rows, monkeypatch):
    binding = bound(rows, frames(5))
    original = onnxruntime.IOBinding.bind_cpu_input

    def interrupted(*args):
        original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(onnxruntime.IOBinding, "bind_cpu_input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        binding.bind_cpu_input("frames", frames(500)["frames"])
    refused(lambda: rows.run_with_iobinding(binding))


def test_bindings_that_are_cleared_are_forgotten(device, rows):
    binding = bound(rows, frames(5))
    binding.clear_binding_inputs()
    refused(lambda: rows.run_with_iobinding(binding))
    for name, array in frames(2).items():
        binding.bind_cpu_input(name, array)
    assert run(rows, binding) == 2
    binding.clear_binding_outputs()
    assert run(rows, binding) == 2
    assert recorded(device, "rows") == 4


def test_bindings_that_tell_no_shapes_are_refused_for_items(device, rows):
    foreign = onnxruntime.IOBinding(rows)
    for name, array in frames(3).items():
        foreign.bind_cpu_input(name, array)
    foreign.bind_output("scaled")
    for binding in (foreign, None, object(), rows.io_binding()):
        refused(lambda binding=binding: rows.run_with_iobinding(binding))
    assert recorded(device, "rows") == 0


def test_bindings_of_another_kind_are_fine_for_calls(device, licensed):
    foreign = onnxruntime.IOBinding(licensed)
    foreign.bind_cpu_input("X", MUL_FEED["X"])
    foreign.bind_output(names(licensed)[0])
    licensed.run_with_iobinding(foreign)
    assert recorded(device) == 1


def test_bindings_of_another_session_are_as_without_us(device, licensed, plain):
    """ONNX Runtime 1.24 runs them; later ones refuse."""
    other = onnxruntime.InferenceSession(device_models.mul(), quiet_options(), ["CPUExecutionProvider"])

    def outcome(running):
        try:
            running.run_with_iobinding(bound(other, MUL_FEED))
        except ValueError as fault:
            return str(fault)
        return "ran"

    assert outcome(licensed) == outcome(plain)
    assert recorded(device) == (1 if outcome(plain) == "ran" else 0)


def test_a_vector_is_measured_by_its_names(device, rows):
    options, fetches = onnxruntime.RunOptions(), native.OrtValueVector()
    arrays = frames(8)

    def call(feed_names, *values):
        rows.run_with_ortvaluevector(options, feed_names, vector(*values), ["scaled"], fetches, [cpu()])

    call(["scale", "frames"], arrays["scale"], arrays["frames"])
    call(("frames", "scale"), arrays["frames"], arrays["scale"])
    assert recorded(device, "rows") == 16
    ones = frames(1)["frames"]
    refused(lambda: call(["scale"], arrays["scale"]))
    refused(lambda: call(["scale", "frames"], arrays["scale"]))
    refused(lambda: call(["frames", "scale", "frames"], ones, arrays["scale"], arrays["frames"]))
    refused(lambda: call(["frames", "scale", b"frames"], ones, arrays["scale"], arrays["frames"]))
    refused(lambda: call((name for name in arrays), *arrays.values()))
    assert recorded(device, "rows") == 16


def test_values_without_the_axis_are_not_run(device, rows):
    scale = ort_value(frames(1)["scale"])
    flat = ort_value(np.array(3, np.float32))
    for values in ({}, {"scale": scale}, {"scale": scale, "frames": flat}, {"scale": scale, "frames": None}, None):
        refused(lambda values=values: rows.run_with_ort_values(None, values))
    assert recorded(device, "rows") == 0


def test_the_axis_is_the_tokens_on_every_way(site):
    digest = device_models.digest(device_models.rows())
    terms = ModelTerms(name="rows", unit="item", axis=Axis(input="frames", dim=1), limit=None, sha256=(digest,))
    device = site.activated(terms)
    rows = session(device, "rows")
    rows.run_with_iobinding(bound(rows, frames(9)))
    rows.run_with_ort_values(None, {name: ort_value(array) for name, array in frames(9).items()})
    assert recorded(device, "rows") == 8


def test_the_shape_of_an_ort_value_is_told_also_without_its_private_part():
    class Renamed:
        def shape(self):
            return [3, 4]

    assert shape_of(Renamed()) == (3, 4)


def test_a_model_without_the_axis_is_refused_when_it_is_opened(site):
    digest = device_models.digest(device_models.mul())
    terms = ModelTerms(name="mul", unit="item", axis=Axis(input="frames", dim=0), limit=None, sha256=(digest,))
    with pytest.raises(DeviceError) as caught:
        LicensedSession(device_models.mul(), quiet_options(), device=site.activated(terms), model="mul")
    assert caught.value.code == "model_unsupported"
