import device_models
import onnxruntime
import pytest
from device_site import LOOPING, MUL, ROWS, Site, quiet_options, session, use
from http_answers import Server

from meterkit import limits


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    yield made
    made.close()


@pytest.fixture
def device(site):
    """A device that may run every model here without limit."""
    return site.activated(MUL, ROWS, LOOPING)


@pytest.fixture
def licensed(device):
    """A session whose meter counts calls."""
    return session(device)


@pytest.fixture
def rows(device):
    """A session whose meter counts items: the first dimension of `frames`."""
    return session(device, "rows")


@pytest.fixture
def plain():
    """ONNX Runtime's own session of the model that `licensed` runs."""
    return onnxruntime.InferenceSession(device_models.mul(), quiet_options(), ["CPUExecutionProvider"])


@pytest.fixture
def plain_rows():
    """ONNX Runtime's own session of the model that `rows` runs."""
    return onnxruntime.InferenceSession(device_models.rows(), quiet_options(), ["CPUExecutionProvider"])


@pytest.fixture
def used(site):
    """A device with usage of several windows in its ledger, all folded, and closed."""
    device = site.activated(MUL)
    running = session(device)
    for times in (3, 4, 5):
        use(running, times)
        site.time.run_on(limits.WINDOW_S)
    device.close()
    return device


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.stop()
