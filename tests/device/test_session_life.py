"""What becomes of a session: other providers, copies, a `with` block, fallbacks, its end."""

import copy
import gc
import pickle
import threading

import device_models
import onnxruntime
import pytest
from device_models import MUL_FEED
from device_paths import WAYS
from device_site import MUL, quiet_options, recorded, records, session
from onnxruntime.capi import onnxruntime_pybind11_state as native

from device_sdk import DeviceError, LicensedSession

AZURE = ["AzureExecutionProvider", "CPUExecutionProvider"]
CPU = ["CPUExecutionProvider"]
pytestmark = pytest.mark.filterwarnings("ignore:Specified provider")


@pytest.fixture(params=WAYS)
def use(request):
    """One call, by each way to run in turn."""
    return lambda running: WAYS[request.param](running, MUL_FEED)


def test_after_set_providers_it_still_counts_and_runs_on_the_new_ones(device, licensed, use):
    use(licensed)
    before = licensed._sess
    licensed.set_providers(AZURE)
    assert licensed.get_providers() == AZURE
    assert licensed._sess is not before
    use(licensed)
    licensed.set_providers(CPU)
    use(licensed)
    assert recorded(device) == 3


def test_set_providers_lets_go_of_the_native_session_first(licensed, use, monkeypatch):
    """Two of a large model would not fit: no gate keeps the old one while the new one is made."""
    use(licensed)
    held = [[way for way in WAYS if hasattr(licensed._gates, way)]]
    original = onnxruntime.InferenceSession._create_inference_session

    def look(self, *args, **kwargs):
        held.append([way for way in WAYS if hasattr(licensed._gates, way)])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", look)
    licensed.set_providers(CPU)
    assert len(held[0]) == 1
    assert held[1:] == [[]]


def test_a_gate_that_is_being_made_while_providers_change_is_not_kept(device, licensed, monkeypatch):
    """It would run on the old native session for ever."""
    counter = device.counter
    original = counter.meter

    def meanwhile(meter):
        monkeypatch.setattr(counter, "meter", original)
        licensed.set_providers(CPU)
        return original(meter)

    monkeypatch.setattr(counter, "meter", meanwhile)
    licensed.run(None, MUL_FEED)
    assert not hasattr(licensed._gates, "run")
    licensed.run(None, MUL_FEED)
    assert recorded(device) == 2


def test_after_providers_that_fail_it_is_as_without_us(device, licensed, plain):
    """ONNX Runtime leaves no session behind; ours must not go on with the one before."""
    licensed.run(None, MUL_FEED)
    for running in (plain, licensed):
        with pytest.raises(ValueError, match="provider"):
            running.set_providers([5])
        with pytest.raises((AttributeError, TypeError)):
            running.run(None, MUL_FEED)
    assert recorded(device) == 1


# -- an accelerator that fails: there is none here, so its failure is put in


class Failing:
    """A native session whose runs fail as an accelerator's does; all else is the real one's."""

    def __init__(self, real):
        self._real = real
        self.calls = 0

    def __getattr__(self, name):
        found = getattr(self._real, name)
        if not name.startswith("run"):
            return found

        def run(*_args):
            self.calls += 1
            raise native.EPFail("[ONNXRuntimeError] : 11 : EP_FAIL : the accelerator is gone")

        return run


@pytest.mark.parametrize("way", ["run", "run_with_ort_values"])
@pytest.mark.parametrize("providers", [AZURE, CPU])
def test_a_fallback_counts_once(device, capsys, way, providers):
    licensed = session(device, providers=providers)
    licensed.enable_fallback()
    licensed._sess = failing = Failing(licensed._sess)
    answer = WAYS[way](licensed, MUL_FEED)
    assert answer[0].shape == (3, 2)
    assert failing.calls >= 1
    assert licensed.get_providers() == CPU
    assert "Falling back" in capsys.readouterr().out
    WAYS[way](licensed, MUL_FEED)
    assert recorded(device) == 2
    assert not records(device, "recovery")


@pytest.mark.parametrize("way", ["run", "run_with_ort_values", "run_with_ortvaluevector"])
def test_an_accelerators_failure_without_a_fallback_counts_nothing(device, way):
    licensed = session(device, providers=AZURE)
    licensed.disable_fallback()
    real, licensed._sess = licensed._sess, Failing(licensed._sess)
    with pytest.raises(native.EPFail):
        WAYS[way](licensed, MUL_FEED)
    assert recorded(device) == 0
    licensed._sess = real


@pytest.mark.parametrize("way", WAYS)
def test_other_providers_count_too(device, way):
    licensed = session(device, providers=AZURE)
    for _ in range(3):
        WAYS[way](licensed, MUL_FEED)
    assert recorded(device) == 3


# -- copies, pickles, with


def test_a_copy_counts_as_the_original_does(device, licensed, use):
    use(licensed)
    use(copy.copy(licensed))
    assert recorded(device) == 2


def test_a_copy_outlives_the_original(device):
    """Its gates used to be the original's, and those hold it weakly."""
    made = session(device, providers=AZURE)
    made.run(None, MUL_FEED)
    kept = copy.copy(made)
    del made
    gc.collect()
    assert kept.run(None, MUL_FEED)[0].shape == (3, 2)
    assert kept.run(None, {"X": MUL_FEED["X"].tolist()})[0].shape == (3, 2)
    assert recorded(device) == 3


def test_a_session_is_freed_when_it_is_let_go(device, use):
    licensed = session(device)
    use(licensed)
    gone = threading.Event()
    freed = type("Freed", (), {"__del__": lambda _: gone.set()})()
    licensed.mark = freed
    gc.disable()
    try:
        del licensed, freed
        assert gone.is_set()
    finally:
        gc.enable()
    assert recorded(device) == 1


def test_it_cannot_be_pickled(licensed):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(DeviceError) as caught:
            pickle.dumps(licensed, protocol)
        assert caught.value.code == "run_path_unsupported"
    with pytest.raises(DeviceError):
        copy.deepcopy(licensed)


def test_a_with_block_lets_go_of_the_cells(device, use):
    with session(device) as licensed:
        assert isinstance(licensed, LicensedSession)
        use(licensed)
        use(licensed)
        with device.counter.transaction() as tx:
            assert tx.execute("SELECT count(*) FROM cells").fetchone() == (1,)
    with device.counter.transaction() as tx:
        assert tx.execute("SELECT count(*) FROM cells").fetchone() == (0,)
    assert sum(record["units"] for record in records(device, "usage")) == 2
    use(licensed)
    assert recorded(device) == 3


def test_a_with_block_that_fails_lets_go_too(device):
    def fails() -> None:
        with session(device) as licensed:
            licensed.run(None, MUL_FEED)
            raise LookupError("the host's own")

    with pytest.raises(LookupError):
        fails()
    assert recorded(device) == 1


def test_the_session_of_a_closed_device_is_made_by_nobody(site):
    device = site.activated(MUL)
    device.close()
    made = LicensedSession(device_models.mul(), quiet_options(), device=device, model="mul")
    with pytest.raises(DeviceError) as caught:
        made.run(None, MUL_FEED)
    assert caught.value.code == "device_closed"
