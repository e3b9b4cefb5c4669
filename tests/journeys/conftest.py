import hashlib
import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from real_server import ISSUER, RealServer

from device_sdk import Trust

PLAN = {
    "v": 1,
    "currency": "EUR",
    "interval": "month",
    "interim": True,
    "late": {"policy": "true_up"},
    "close": {"policy": "grace", "days": 0},
    "charges": [
        {
            "id": "fee",
            "type": "recurring",
            "per": "license",
            "due": "advance",
            "from_period": 0,
            "price": {"model": "flat", "amount": "49.00"},
        },
        {
            "id": "calls",
            "type": "usage",
            "meter": {"model": "mul", "unit": "call"},
            "price": {
                "model": "graduated",
                "tiers": [{"up_to": 100, "unit_amount": "0.10"}, {"up_to": None, "unit_amount": "0.01"}],
            },
        },
    ],
}


@pytest.fixture(scope="session")
def model_path() -> Path:
    return Path(onnxruntime.__file__).parent / "datasets" / "mul_1.onnx"


@pytest.fixture
def server(tmp_path, model_path):
    made = RealServer(tmp_path)
    try:
        made.start()
        made.offer("mul", hashlib.sha256(model_path.read_bytes()).hexdigest(), PLAN)
        yield made
    finally:
        made.close()


@pytest.fixture
def trust(server):
    return Trust(issuer=ISSUER, roots=(server.root,))


class JourneyDevice:
    """A device whose every act is a process of its own, with clocks that a test lets run on."""

    def __init__(self, path: Path, root: str, network: str = "online") -> None:
        self.path = path
        self.root = root
        self.network = network
        self.shift_s = 0

    def __call__(self, verb: str, *rest: object):
        script = Path(__file__).resolve().parents[1] / "support" / "journey_device.py"
        fixed = [self.path, self.root, self.shift_s, self.network, verb, *rest]
        command = [sys.executable, script, *map(str, fixed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def device(tmp_path, server):
    return JourneyDevice(tmp_path / "device", server.root)


@pytest.fixture
def offline_device(tmp_path, server):
    return JourneyDevice(tmp_path / "offline-device", server.root, network="offline")
