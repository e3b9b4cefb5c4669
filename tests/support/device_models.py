"""Small ONNX models for tests of the device, built with the onnx package or taken from ONNX Runtime's wheel."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_OPSET = [helper.make_opsetid("", 17)]
MUL = Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"
MUL_FEED = {"X": np.arange(6, dtype=np.float32).reshape(3, 2)}


def digest(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()


@functools.cache
def mul() -> bytes:
    """X [3, 2] → Y, from ONNX Runtime's own data sets."""
    return MUL.read_bytes()


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=_OPSET, ir_version=8)


@functools.cache
def rows() -> bytes:
    """frames [N, 4] and a scale [4] → frames × scale: N may be anything, also 0."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["frames", "scale"], ["scaled"])],
        "rows",
        [
            helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, [4]),
        ],
        [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, ["N", 4])],
    )
    return _model(graph).SerializeToString()


def frames(count: int) -> dict[str, np.ndarray]:
    return {"frames": np.ones((count, 4), np.float32), "scale": np.full(4, 2, np.float32)}


def _loop(name: str, given: onnx.ValueInfoProto, trips: str, go: str, go_on: onnx.NodeProto) -> bytes:
    """One input → how often the loop ran."""
    body = helper.make_graph(
        [go_on, helper.make_node("Add", ["sum_in", "one"], ["sum_out"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.INT64, []),
        ],
        initializer=[numpy_helper.from_array(np.array(1, np.int64), "one")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", [trips, go, "zero"], ["turns"], body=body)],
        name,
        [given],
        [helper.make_tensor_value_info("turns", TensorProto.INT64, [])],
        initializer=[numpy_helper.from_array(np.array(0, np.int64), "zero")],
    )
    return _model(graph).SerializeToString()


@functools.cache
def looping() -> bytes:
    """trips [] → how often the loop ran: a call lasts as long as its caller wants."""
    trips = helper.make_tensor_value_info("trips", TensorProto.INT64, [])
    return _loop("looping", trips, "trips", "", helper.make_node("Identity", ["go"], ["go_on"]))


@functools.cache
def holding() -> bytes:
    """held [] → how often the loop ran: a call lasts until the memory that was fed says False."""
    held = helper.make_tensor_value_info("held", TensorProto.BOOL, [])
    return _loop("holding", held, "", "held", helper.make_node("And", ["held", "go"], ["go_on"]))


@contextmanager
def held() -> Iterator[dict[str, np.ndarray]]:
    """What to feed `holding`: calls are in flight, in the model, until the block ends."""
    feed = {"held": np.array(True)}  # noqa: FBT003 - a tensor of it
    try:
        yield feed
    finally:
        feed["held"][...] = False


def _external(name: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def external(place: str) -> bytes:
    """A model one of whose tensors lies outside the file, at a place in the graph that is named."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    if place == "initializer":
        node = helper.make_node("Add", ["x", "w"], ["y"])
        return _model(helper.make_graph([node], "g", [x], [y], initializer=[_external("w")])).SerializeToString()
    if place == "attribute":
        nodes = [
            helper.make_node("Constant", [], ["w"], value=_external("w")),
            helper.make_node("Add", ["x", "w"], ["y"]),
        ]
        return _model(helper.make_graph(nodes, "g", [x], [y])).SerializeToString()
    if place == "subgraph":
        inner = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])
        then = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["inner"])], "then", [], [inner], initializer=[_external("w")]
        )
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["inner"])], "other", [], [inner])
        flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
        node = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)
        return _model(helper.make_graph([node], "g", [flag, x], [y])).SerializeToString()
    if place == "function":
        function = helper.make_function(
            "test.domain",
            "AddW",
            ["a"],
            ["b"],
            [
                helper.make_node("Constant", [], ["w"], value=_external("w")),
                helper.make_node("Add", ["a", "w"], ["b"]),
            ],
            _OPSET,
        )
        graph = helper.make_graph([helper.make_node("AddW", ["x"], ["y"], domain="test.domain")], "g", [x], [y])
        opsets = [*_OPSET, helper.make_opsetid("test.domain", 1)]
        model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
        return model.SerializeToString()
    raise ValueError(place)


EXTERNAL_PLACES = ("initializer", "attribute", "subgraph", "function")


def innocent_location() -> bytes:
    """A model that only has the word "location" in it, as an input's name."""
    x = helper.make_tensor_value_info("location", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    return _model(
        helper.make_graph([helper.make_node("Neg", ["location"], ["y"])], "g", [x], [y])
    ).SerializeToString()
