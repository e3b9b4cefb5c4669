"""How an admitted call runs, for each public way that ONNX Runtime has: what a gate stands in front of.

Each function here makes one `Run` for one session: three parameters, of which the gate measures the second.
It calls the native session directly where nothing is lost by that, else the public method. It keeps the
session by a weak reference: the session keeps its gates, and would never be freed if they kept the session.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from device_sdk import items, runtime
from device_sdk.gate import Run
from device_sdk.items import Measure
from meterkit.licenses import Axis


def of_arrays(session: Any) -> Run:
    """`run`: (output_names, input_feed, run_options) → arrays."""
    weak = weakref.ref(session)

    def public(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        return runtime.InferenceSession.run(weak(), output_names, input_feed, run_options)

    native = runtime.native_method(session, "run")
    if native is None or not runtime.runs_on_cpu_alone(session):
        return public
    names = [output.name for output in session.get_outputs()]
    inputs = [node.name for node in session.get_inputs()]
    count = len(inputs)
    array = np.ndarray
    ep_fail = runtime.EP_FAIL

    def run(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        if type(input_feed) is not dict or len(input_feed) != count:
            return public(output_names, input_feed, run_options)
        for value in input_feed.values():
            if type(value) is not array:
                return public(output_names, input_feed, run_options)
        try:
            return native(output_names or names, input_feed, run_options)
        except ep_fail:
            return public(output_names, input_feed, run_options)
        except Exception:
            if all(name in input_feed for name in inputs):
                raise
            return public(output_names, input_feed, run_options)  # it says which input is missing

    return run


def of_ort_values(session: Any) -> Run:
    """`run_with_ort_values`: (output_names, input_dict_ort_values, run_options) → OrtValues."""
    weak = weakref.ref(session)

    def run(output_names: Any, values: Any, run_options: Any) -> Any:
        return runtime.InferenceSession.run_with_ort_values(weak(), output_names, values, run_options)

    return run


# The two ways below leave their answers where the caller can reach them, not in what they return. An interrupt
# (Ctrl-C, a signal handler that raises) comes right after the native call, when they are there already: the
# call must count, although an exception follows. So `run` gives the exception as its answer, to be raised by
# `finish` when it is counted. What CPython does in one step, as `extend(map(…))` here, it does not interrupt.


def of_binding(session: Any) -> Run:
    """`run_with_iobinding`: (None, iobinding, run_options) → for `finish`."""
    weak = weakref.ref(session)
    native = None if runtime.may_capture(session) else runtime.native_method(session, "run_with_iobinding")

    def public(_: None, binding: Any, run_options: Any) -> BaseException | None:
        try:
            runtime.InferenceSession.run_with_iobinding(weak(), binding, run_options)
        except Exception:
            raise
        except BaseException as interrupt:  # noqa: BLE001 - it may have run: `finish` raises it
            return interrupt
        return None

    def run(_: None, binding: Any, run_options: Any) -> BaseException | None:
        bound = runtime.native_binding(weak(), binding)
        if native is None or bound is None:
            return public(None, binding, run_options)
        ran: list[None] = []
        try:
            ran.extend(map(native, (bound,), (run_options,)))
        except BaseException as interrupt:
            if ran:
                return interrupt
            raise
        return None

    return run


def of_vector(session: Any) -> Run:
    """`run_with_ortvaluevector`: (run_options, (feed_names, feeds), (fetch_names, fetches, devices)) → for
    `finish`.
    """
    weak = weakref.ref(session)
    native = None if runtime.may_capture(session) else runtime.native_method(session, "run_with_ortvaluevector")

    def public(run_options: Any, named: Any, fetch: Any) -> BaseException | None:
        try:
            runtime.InferenceSession.run_with_ortvaluevector(weak(), run_options, *named, *fetch)
        except Exception:
            raise
        except BaseException as interrupt:  # noqa: BLE001 - it may have run: `finish` raises it
            return interrupt
        return None

    if native is None:
        return public

    def run(run_options: Any, named: Any, fetch: Any) -> BaseException | None:
        names, feeds = named
        fetch_names, fetches, devices = fetch
        ran: list[None] = []
        try:
            ran.extend(map(native, (run_options,), (names,), (feeds,), (fetch_names,), (fetches,), (devices,)))
        except BaseException as interrupt:
            if ran:
                return interrupt
            raise
        return None

    return run


def finish(interrupt: BaseException | None) -> None:
    """Raise what interrupted a call that had run and is counted now."""
    if interrupt is None:
        return
    try:
        raise interrupt
    finally:
        del interrupt  # or it would keep this frame, which would keep it


RUNS: dict[str, Callable[[Any], Run]] = {
    "run": of_arrays,
    "run_with_ort_values": of_ort_values,
    "run_with_iobinding": of_binding,
    "run_with_ortvaluevector": of_vector,
}
MEASURES: dict[str, Callable[[Axis], Measure]] = {
    "run": items.of_feed,
    "run_with_ort_values": items.of_feed,
    "run_with_iobinding": items.of_binding,
    "run_with_ortvaluevector": items.of_vector,
}
