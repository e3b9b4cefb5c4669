"""Counting the items of one call along the axis that the license signs, whatever way the inputs come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from meterkit import limits
from meterkit.errors import DeviceError
from meterkit.licenses import Axis

Measure = Callable[[Any], int]


def check_axis(axis: Axis, inputs: list[Any]) -> None:
    """Return if the model has the dimension that the license counts along.

    Raises:
        DeviceError: `model_unsupported`.
    """
    known = next((node for node in inputs if node.name == axis.input), None)
    if known is None or axis.dim >= len(known.shape):
        raise DeviceError("model_unsupported", f"it has no dimension {axis.dim} of an input {axis.input!a}")


def of_call(_: Any) -> int:
    """Count one call, whatever it is fed."""
    return 1


def of_feed(axis: Axis) -> Measure:
    """Make the function that counts the items of a feed by name: arrays, OrtValues or lists."""
    name, dim = axis.input, axis.dim

    def items(feed: Any) -> int:
        try:
            value = feed[name]
            units = value.shape[dim] if type(value) is np.ndarray else int(shape_of(value)[dim])
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError):
            raise _unmeasurable(axis) from None
        return _checked(units)

    return items


def of_binding(axis: Axis) -> Measure:
    """Make the function that counts the items bound to a `MeasuredBinding`; no other binding tells its shapes."""

    def items(binding: Any) -> int:
        try:
            return _checked(int(binding.shape_bound_to(axis.input)[axis.dim]))
        except (TypeError, KeyError, IndexError, AttributeError):
            raise _unmeasurable(axis, "bind inputs to what this session's io_binding() gives") from None

    return items


def of_vector(axis: Axis) -> Measure:
    """Make the function that counts the items of `(feed_names, feeds)`, an OrtValueVector and its order."""

    def items(named: Any) -> int:
        names, feeds = named
        # A name that is no text, or comes twice, may stand for another value than it seems to.
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise _unmeasurable(axis)
        if names.count(axis.input) != 1:
            raise _unmeasurable(axis)
        try:
            return _checked(int(shape_of(feeds[names.index(axis.input)])[axis.dim]))
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
            raise _unmeasurable(axis) from None

    return items


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of an input: an array of any class, whatever it says itself; an OrtValue; nested lists."""
    if isinstance(value, np.ndarray):
        true_shape: tuple[int, ...] = np.asarray(value).view(np.ndarray).shape
        return true_shape
    if callable(getattr(value, "shape", None)):
        return tuple(getattr(value, "_ortvalue", value).shape())
    shape: list[int] = []
    while isinstance(value, list | tuple):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _checked(units: int) -> int:
    if not 0 <= units <= limits.CALL_UNITS_MAX:
        raise DeviceError("feed_unmeasurable", f"at most {limits.CALL_UNITS_MAX} items at once")
    return units


def _unmeasurable(axis: Axis, advice: str = "") -> DeviceError:
    where = f"input {axis.input!a}, dimension {axis.dim}"
    return DeviceError("feed_unmeasurable", f"{where}: {advice}" if advice else where)
