"""The only home of `onnxruntime`: its public classes, and what of its private parts makes a gated call fast.

A private part may be missing or renamed in another version. Then the public way is taken, which does the same
and costs more: nothing that is promised rests on a private part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime

InferenceSession: Any = onnxruntime.InferenceSession
IOBinding: Any = onnxruntime.IOBinding


def native_method(session: Any, name: str) -> Callable[..., Any] | None:
    """A method of the native session, or None where this ONNX Runtime keeps it elsewhere."""
    method: Callable[..., Any] | None = getattr(getattr(session, "_sess", None), name, None)
    return method


def runs_on_cpu_alone(session: Any) -> bool:
    """Whether there is no accelerator that may fail: the public `run` would then fall back to another."""
    return list(session.get_providers()) == ["CPUExecutionProvider"]


def may_capture(session: Any) -> bool:
    """Whether runs may be captured and replayed (WebGPU), which the public methods keep book of."""
    return "WebGpuExecutionProvider" in (session.get_providers() or ())


def native_binding(session: Any, binding: Any) -> Any:
    """The native part of a binding that this session may run, or None where the public way is to judge it."""
    native = getattr(session, "_sess", None)
    if getattr(binding, "_session", native) is not native:  # ONNX Runtime 1.24 does not ask
        return None
    return getattr(binding, "_iobinding", None)


def _ep_fail() -> tuple[type[Exception], ...]:
    """What a run raises when an execution provider fails, as against the model or its inputs."""
    bindings = getattr(getattr(onnxruntime, "capi", None), "onnxruntime_pybind11_state", None)
    fault = getattr(bindings, "EPFail", None)
    return () if fault is None else (fault,)


EP_FAIL = _ep_fail()
