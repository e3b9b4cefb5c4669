"""Each public way to run a session, called as its users call it: a feed of arrays in, a list of arrays out."""

import queue
from collections.abc import Callable

import numpy as np
import onnxruntime
from device_site import PATIENCE_S
from onnxruntime.capi import onnxruntime_pybind11_state as native

Feed = dict[str, np.ndarray]


def names(session: onnxruntime.InferenceSession) -> list[str]:
    return [output.name for output in session.get_outputs()]


def ort_value(array: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def bound(session: onnxruntime.InferenceSession, feed: Feed) -> onnxruntime.IOBinding:
    """A binding of a session with all its inputs and outputs bound."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for name in names(session):
        binding.bind_output(name)
    return binding


def vector(*arrays: np.ndarray) -> native.OrtValueVector:
    made = native.OrtValueVector()
    for array in arrays:
        made.push_back(ort_value(array)._ortvalue)
    return made


def cpu() -> native.OrtDevice:
    return native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)


def _run(session: onnxruntime.InferenceSession, feed: Feed) -> list[np.ndarray]:
    return session.run(None, feed)


def _ort_values(session: onnxruntime.InferenceSession, feed: Feed) -> list[np.ndarray]:
    values = {name: ort_value(array) for name, array in feed.items()}
    return [value.numpy() for value in session.run_with_ort_values(None, values)]


def _iobinding(session: onnxruntime.InferenceSession, feed: Feed) -> list[np.ndarray]:
    binding = bound(session, feed)
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()


def _ortvaluevector(session: onnxruntime.InferenceSession, feed: Feed) -> list[np.ndarray]:
    fetches = native.OrtValueVector()
    wanted = names(session)
    feeds = vector(*feed.values())
    options = onnxruntime.RunOptions()
    session.run_with_ortvaluevector(options, list(feed), feeds, wanted, fetches, [cpu()] * len(wanted))
    return [onnxruntime.OrtValue(value).numpy() for value in fetches]


_KEPT: list[onnxruntime.InferenceSession] = []


def call_async(session: onnxruntime.InferenceSession, feed: Feed) -> queue.SimpleQueue:
    """Start a call; what it came to will be in the queue: the results, or the error's text.

    ONNX Runtime waits for its threads while it frees a session, and for ever if one of them is about to call back.
    """
    _KEPT.append(session)
    answers = queue.SimpleQueue()
    session.run_async(None, feed, lambda results, _, err: answers.put(err or results), None)
    return answers


def run_async(session: onnxruntime.InferenceSession, feed: Feed) -> list[np.ndarray]:
    answer = call_async(session, feed).get(timeout=PATIENCE_S)
    if isinstance(answer, str):
        raise native.InvalidArgument(answer)
    return answer


WAYS: dict[str, Callable[[onnxruntime.InferenceSession, Feed], list[np.ndarray]]] = {
    "run": _run,
    "run_with_ort_values": _ort_values,
    "run_with_iobinding": _iobinding,
    "run_with_ortvaluevector": _ortvaluevector,
}
WAYS_AND_ASYNC = {**WAYS, "run_async": run_async}
