"""Nothing that ONNX Runtime's session offers runs a model past the gate, nor in a version to come."""

import inspect
import types

import onnxruntime
import pytest
from device_paths import WAYS, WAYS_AND_ASYNC
from onnxruntime.capi import onnxruntime_pybind11_state as native

from device_sdk import LicensedSession
from device_sdk.bindings import MeasuredBinding
from device_sdk.run_paths import MEASURES, RUNS

PLAIN = onnxruntime.InferenceSession
RUN_PATHS = [name for name in dir(PLAIN) if name.startswith("run")]


def public(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_")]


def own(name: str) -> bool:
    return getattr(LicensedSession, name) is not getattr(PLAIN, name)


def test_the_public_ways_to_run_are_those_gated():
    assert set(RUN_PATHS) == set(WAYS_AND_ASYNC)
    assert set(RUNS) == set(MEASURES) == set(WAYS)


@pytest.mark.parametrize("name", RUN_PATHS)
def test_every_way_to_run_is_the_licensed_sessions_own(name):
    assert own(name)


def executing(code: types.CodeType) -> set[str]:
    """Which of the native session's ways to run a method calls, functions inside it included."""
    ways = {name for name in dir(native.InferenceSession) if name.startswith("run")}
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names) & ways | {name for each in inner for name in executing(each)}


METHODS = [name for name in public(PLAIN) if inspect.isfunction(getattr(PLAIN, name))]


@pytest.mark.parametrize("name", METHODS)
def test_no_other_method_executes_the_model(name):
    """A session's method that calls a native way to run, whatever its name, must be gated."""
    assert own(name) or not executing(getattr(PLAIN, name).__code__)


def test_methods_that_execute_are_recognized():
    assert {name for name in METHODS if executing(getattr(PLAIN, name).__code__)} == set(RUN_PATHS)
    assert len(METHODS) > 20


@pytest.mark.parametrize("name", sorted(WAYS_AND_ASYNC))
def test_each_way_takes_the_arguments_that_it_takes_without_us(name):
    ours, theirs = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (LicensedSession, PLAIN))
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name in public(onnxruntime.IOBinding) if "input" in name])
def test_every_way_to_bind_an_input_is_noted(name):
    if name == "synchronize_inputs":  # moves data, binds nothing
        return
    ours, theirs = getattr(MeasuredBinding, name), getattr(onnxruntime.IOBinding, name)
    assert ours is not theirs
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
