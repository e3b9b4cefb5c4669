"""Model files: their exact bytes, their digest, and that nothing outside those bytes is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from meterkit.canonical import sha256_hex
from meterkit.errors import DeviceError, InputError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1
_DEPTH_MAX = 64


def read_model(path_or_bytes: Any) -> bytes:
    """Read a model once: these bytes are hashed, and these bytes are loaded."""
    if isinstance(path_or_bytes, bytes):
        return path_or_bytes
    if not isinstance(path_or_bytes, str | os.PathLike):
        raise DeviceError("model_unsupported", f"cannot load a model from {type(path_or_bytes).__name__}")
    try:
        with open(path_or_bytes, "rb") as file:
            return file.read()
    except OSError as fault:
        raise InputError("malformed_file", f"model: {fault.strerror}") from None


def digest(model: bytes) -> str:
    """The digest by which a license names a plain model."""
    return sha256_hex(model)


def refuse_external_data(model: bytes) -> None:
    """Return if all weights are inside the file; else raise `model_unsupported`.

    A model loaded from bytes would read external weights from the working directory, so that the digest
    would not cover them.
    """
    if b"location" not in model:
        return
    try:
        external = any(_external_in(model, 0, len(model), _MODEL, 0))
    except (ValueError, IndexError, RecursionError):
        raise DeviceError("model_unsupported", "the file does not parse as ONNX") from None
    if external:
        raise DeviceError("model_unsupported", "its weights lie outside the file; save it as one file")


# Which fields of which ONNX message lead to tensors (onnx.proto): message → field → message.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _TRAINING, _FUNCTION = range(8)
_LEADS: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
}
_DATA_LOCATION, _EXTERNAL_DATA = 14, 13


def _external_in(data: bytes, start: int, end: int, message: int, depth: int) -> Iterator[bool]:
    if depth > _DEPTH_MAX:
        raise ValueError("nested too deeply")
    leads = _LEADS[message]
    for field, wire, low, high in _fields(data, start, end):
        if message == _TENSOR:
            yield field == _EXTERNAL_DATA or (field == _DATA_LOCATION and wire == _VARINT and low == _EXTERNAL)
        elif wire == _BYTES and field in leads:
            yield from _external_in(data, low, high, leads[field], depth + 1)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk the fields of one protobuf message: number, wire type, and value or bounds."""
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, wire, value, value
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("truncated")
            yield key >> 3, wire, at, at + length
            at += length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("unknown wire type")
    if at != end:
        raise ValueError("truncated")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
