"""What the benchmarks measure on: a licensed device in a folder of its own, and three models."""

import hashlib
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from vendor import PRODUCT, Vendor, call_model, code, item_model

from device_sdk import Device, LicensedSession

Feed = dict[str, np.ndarray]


def add_model(elements: int | str = 1) -> bytes:
    """One Add of one element: nothing a model can do is faster. A named dimension is a dynamic one."""
    shape = [elements]
    nodes = [helper.make_node("Add", ["X", "X"], ["Y"])]
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "add", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def squeezenet() -> bytes:
    """`light_squeezenet` of the onnx wheel."""
    return (Path(onnx.__file__).parent / "backend/test/data/light/light_squeezenet.onnx").read_bytes()


def magika() -> bytes:
    """The file-type model of the magika wheel."""
    spec = importlib.util.find_spec("magika")
    return (Path(spec.origin).parent / "models/standard_v3_3/model.onnx").read_bytes()


MODELS = {
    "add": (add_model(), {"X": np.ones(1, np.float32)}),
    "items": (add_model("N"), {"X": np.ones(8, np.float32)}),
    "squeezenet": (squeezenet(), {"data_0": np.ones((1, 3, 224, 224), np.float32)}),
    "magika": (magika(), {"bytes": np.zeros((1, 2048), np.int32)}),
}


def options() -> onnxruntime.SessionOptions:
    """One thread, so that the machine's other core is nobody's business."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    return made


@contextmanager
def licensed_device(limit: int | None = None) -> Iterator[Device]:
    """A device with a license for all the models; without limits, unless one is named."""
    vendor = Vendor(now=int(time.time()))
    terms = [call_model(name, hashlib.sha256(data).hexdigest(), limit) for name, (data, _) in MODELS.items()]
    items = MODELS["items"][0]
    terms[1] = item_model("items", hashlib.sha256(items).hexdigest(), "X")
    with (
        tempfile.TemporaryDirectory(prefix="meterkit-bench-") as directory,
        Device.open(directory, trust=vendor.trust, product=PRODUCT) as device,
    ):
        device.take_reply(vendor.answer_activation(device.request_activation(code()), terms))
        yield device


def sessions(device: Device, model: str) -> tuple[onnxruntime.InferenceSession, LicensedSession, Feed]:
    """The plain and the licensed session of one model, and something to feed them."""
    data, feed = MODELS[model]
    plain = onnxruntime.InferenceSession(data, options())
    return plain, LicensedSession(data, options(), device=device, model=model), feed
