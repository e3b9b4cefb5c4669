"""An IOBinding whose inputs can be counted: ONNX Runtime's own tells nobody which shapes were bound to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from device_sdk import runtime
from device_sdk.items import shape_of


class MeasuredBinding(runtime.IOBinding):  # type: ignore[misc] # it ships no types
    """An `onnxruntime.IOBinding` that remembers the shape of each input bound to it.

    A shape is that at the time of binding, as for ONNX Runtime itself: a NumPy array that is reshaped later, or
    an OrtValue that is updated in place, does not change what is run. An input whose shape cannot be told is
    bound all the same; an item meter along it then refuses to run.
    """

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def shape_bound_to(self, name: str) -> tuple[int, ...]:
        """The shape bound to an input; raises KeyError where there is none, or none that is known."""
        return self._shapes[name]

    def bind_cpu_input(self, name: Any, arr_on_cpu: Any) -> None:
        """Bind an input to a NumPy array, as `IOBinding.bind_cpu_input` does."""
        self._bind(name, lambda: shape_of(arr_on_cpu), super().bind_cpu_input, arr_on_cpu)

    def bind_input(  # noqa: PLR0917 - ONNX Runtime's own signature
        self, name: Any, device_type: Any, device_id: Any, element_type: Any, shape: Any, buffer_ptr: Any
    ) -> None:
        """Bind an input to a buffer, as `IOBinding.bind_input` does."""
        rest = (device_type, device_id, element_type, shape, buffer_ptr)
        self._bind(name, lambda: tuple(int(size) for size in shape), super().bind_input, *rest)

    def bind_ortvalue_input(self, name: Any, ortvalue: Any) -> None:
        """Bind an input to an OrtValue, as `IOBinding.bind_ortvalue_input` does."""
        self._bind(name, lambda: shape_of(ortvalue), super().bind_ortvalue_input, ortvalue)

    def clear_binding_inputs(self) -> None:
        """Forget all inputs bound."""
        super().clear_binding_inputs()
        self._shapes.clear()

    def _bind(
        self, name: Any, shape: Callable[[], tuple[int, ...]], bind: Callable[..., None], *value: Any
    ) -> None:
        key = name if isinstance(name, str) else bytes(name).decode()  # ONNX Runtime takes names of both kinds
        before = self._shapes.pop(key, None)  # whatever interrupts this, no shape is remembered that is not bound
        try:
            bind(name, *value)
        except Exception:
            if before is not None:
                self._shapes[key] = before  # what could not be bound replaced nothing
            raise
        try:
            self._shapes[key] = shape()
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return
