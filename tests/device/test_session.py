"""LicensedSession beside the session that it stands in for: same answers, same exceptions, the licensed model."""

import device_models
import numpy as np
import onnxruntime
import pytest
from device_models import MUL_FEED
from device_site import MUL, outcome, quiet_options, quiet_run_options, recorded, session
from vendor import call_model

from device_sdk import DenialError, DeviceError, LicensedSession, MeterkitError
from meterkit.errors import InputError

ARRAY = MUL_FEED["X"]
RUN_OPTIONS = quiet_run_options()


class Sub(np.ndarray):
    """An array of another class."""


ODD_INPUTS = {
    "as documented": lambda: ((None, {"X": ARRAY}), {}),
    "named outputs": lambda: ((["Y"], {"X": ARRAY}), {}),
    "a tuple of names": lambda: ((("Y",), {"X": ARRAY}), {}),
    "one output twice": lambda: ((["Y", "Y"], {"X": ARRAY}), {}),
    "no names": lambda: (([], {"X": ARRAY}), {}),
    "a generator of names": lambda: (((name for name in ["Y"]), {"X": ARRAY}), {}),
    "a name as text": lambda: (("Y", {"X": ARRAY}), {}),
    "an unknown output": lambda: ((["Z"], {"X": ARRAY}), {}),
    "a name that is a number": lambda: (([1], {"X": ARRAY}), {}),
    "run options": lambda: ((None, {"X": ARRAY}, RUN_OPTIONS), {}),
    "run options by name": lambda: ((None, {"X": ARRAY}), {"run_options": RUN_OPTIONS}),
    "all by name": lambda: ((), {"output_names": None, "input_feed": {"X": ARRAY}}),
    "wrong run options": lambda: ((None, {"X": ARRAY}, "fast"), {}),
    "no input": lambda: ((None, {}), {}),
    "no feed": lambda: ((None, None), {}),
    "a list as feed": lambda: ((None, [("X", ARRAY)]), {}),
    "an input too many": lambda: ((None, {"X": ARRAY, "Z": ARRAY}), {}),
    "another input": lambda: ((None, {"Z": ARRAY}), {}),
    "an input that is no text": lambda: ((None, {1: ARRAY}), {}),
    "wrong type": lambda: ((None, {"X": ARRAY.astype(np.float64)}), {}),
    "integers": lambda: ((None, {"X": ARRAY.astype(np.int64)}), {}),
    "wrong shape": lambda: ((None, {"X": ARRAY.reshape(2, 3)}), {}),
    "wrong rank": lambda: ((None, {"X": ARRAY.reshape(6)}), {}),
    "a column first": lambda: ((None, {"X": np.asfortranarray(ARRAY)}), {}),
    "every second": lambda: ((None, {"X": np.repeat(ARRAY, 2, axis=0)[::2]}), {}),
    "big endian": lambda: ((None, {"X": ARRAY.astype(">f4")}), {}),
    "not writable": lambda: ((None, {"X": np.broadcast_to(np.float32(3), (3, 2))}), {}),
    "a subclass": lambda: ((None, {"X": ARRAY.view(Sub)}), {}),
    "a list": lambda: ((None, {"X": ARRAY.tolist()}), {}),
    "an OrtValue": lambda: ((None, {"X": onnxruntime.OrtValue.ortvalue_from_numpy(ARRAY)}), {}),
    "None": lambda: ((None, {"X": None}), {}),
    "text": lambda: ((None, {"X": "frames"}), {}),
    "objects": lambda: ((None, {"X": ARRAY.astype(object)}), {}),
    "nothing at all": lambda: ((), {}),
    "an argument too many": lambda: ((None, {"X": ARRAY}, None, None), {}),
}


@pytest.mark.parametrize("odd", ODD_INPUTS)
def test_it_answers_and_fails_as_the_plain_session_does(device, licensed, plain, odd):
    expected = outcome(plain, *ODD_INPUTS[odd]())
    assert outcome(licensed, *ODD_INPUTS[odd]()) == expected
    assert recorded(device) == (1 if isinstance(expected, list) else 0)


def test_odd_inputs_hold_answers_and_failures(plain):
    found = [isinstance(outcome(plain, *make()), list) for make in ODD_INPUTS.values()]
    assert found.count(True) >= 12
    assert found.count(False) >= 12


def test_it_is_an_inference_session(licensed, plain):
    assert isinstance(licensed, onnxruntime.InferenceSession)
    assert [node.name for node in licensed.get_inputs()] == [node.name for node in plain.get_inputs()]
    assert [node.shape for node in licensed.get_outputs()] == [node.shape for node in plain.get_outputs()]
    assert licensed.get_providers() == plain.get_providers()


def test_it_takes_what_the_plain_session_takes(device, tmp_path):
    path = tmp_path / "mul.onnx"
    path.write_bytes(device_models.mul())
    for source in (str(path), path, device_models.mul()):
        made = LicensedSession(source, quiet_options(), ["CPUExecutionProvider"], [{}], device=device, model="mul")
        assert made.run(None, MUL_FEED)[0].shape == (3, 2)
    assert recorded(device) == 3


@pytest.mark.parametrize("source", [None, 5, bytearray(b"x"), object()])
def test_a_model_is_a_path_or_bytes(device, source):
    with pytest.raises(DeviceError) as caught:
        LicensedSession(source, device=device, model="mul")
    assert caught.value.code == "model_unsupported"


def test_a_model_that_is_not_there_is_a_typed_refusal(device, tmp_path):
    with pytest.raises(InputError) as caught:
        LicensedSession(tmp_path / "no.onnx", device=device, model="mul")
    assert caught.value.code == "malformed_file"


def test_an_unbound_call_is_gated_too(device, licensed):
    LicensedSession.run(licensed, None, MUL_FEED)
    type(licensed).run(licensed, None, MUL_FEED)
    assert recorded(device) == 2


# -- which model


@pytest.mark.parametrize("change", [lambda old: old + b"\x00\x00", lambda old: old[:-1], lambda _: b""])
def test_other_bytes_than_the_licensed_ones_are_refused(device, change):
    with pytest.raises(DenialError) as caught:
        LicensedSession(change(device_models.mul()), device=device, model="mul")
    assert caught.value.code == "model_digest_wrong"


def test_the_digest_is_of_the_exact_bytes_not_of_what_they_parse_to(site):
    """An unknown field at the end loads fine, and is another file (M05)."""
    same = device_models.mul() + b"\xa2\x1f\x00"
    onnxruntime.InferenceSession(same, quiet_options())
    with pytest.raises(DenialError) as caught:
        LicensedSession(same, device=site.activated(MUL), model="mul")
    assert caught.value.code == "model_digest_wrong"


def test_the_caller_does_not_choose_which_license_counts(device):
    with pytest.raises(DenialError) as caught:
        LicensedSession(device_models.mul(), device=device, model="rows")
    assert caught.value.code == "model_digest_wrong"
    with pytest.raises(DenialError) as caught:
        LicensedSession(device_models.mul(), device=device, model="unheard-of")
    assert caught.value.code == "model_not_licensed"


def test_without_a_token_there_is_no_session(site):
    with pytest.raises(DenialError) as caught:
        session(site.open())
    assert caught.value.code == "not_activated"


@pytest.mark.parametrize("place", device_models.EXTERNAL_PLACES)
def test_weights_outside_the_file_are_refused_wherever_they_are_named(site, monkeypatch, tmp_path, place):
    model = device_models.external(place)
    (tmp_path / "weights.bin").write_bytes(np.full(4, 7, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    device = site.activated(call_model("outside", device_models.digest(model)))
    with pytest.raises(DeviceError) as caught:
        LicensedSession(model, device=device, model="outside")
    assert caught.value.code == "model_unsupported"


def test_a_model_that_only_has_the_word_in_it_is_fine(site):
    model = device_models.innocent_location()
    device = site.activated(call_model("word", device_models.digest(model)))
    running = LicensedSession(model, quiet_options(), device=device, model="word")
    assert running.run(None, {"location": np.ones(4, np.float32)})[0].tolist() == [-1] * 4


@pytest.mark.parametrize("cut", [1, 2, 5, 20, 60])
def test_a_torn_model_with_outside_weights_is_a_typed_refusal(site, cut):
    model = device_models.external("initializer")[:-cut]
    device = site.activated(call_model("torn", device_models.digest(model)))
    with pytest.raises((MeterkitError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf)):
        LicensedSession(model, quiet_options(), device=device, model="torn")


def test_what_is_no_model_fails_as_it_does_without_us(site):
    junk = b"this is not a model" * 10
    device = site.activated(call_model("junk", device_models.digest(junk)))
    with pytest.raises(Exception) as plain:  # noqa: PT011 - the other one must be the same
        onnxruntime.InferenceSession(junk, quiet_options())
    with pytest.raises(type(plain.value)):
        LicensedSession(junk, quiet_options(), device=device, model="junk")
