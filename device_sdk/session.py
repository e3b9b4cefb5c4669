"""LicensedSession: a drop-in `onnxruntime.InferenceSession` that runs while the license allows it.

The only home of `onnxruntime`. What a caller does with the private native session goes past the gate; the
threat model says so.
"""

import threading
import weakref
from typing import Any, NoReturn, Self

import numpy as np
import onnxruntime

from device_sdk import models
from device_sdk.device import Device
from device_sdk.gate import Run, call_gate, item_gate
from meterkit.errors import DenialError, DeviceError
from meterkit.licenses import ModelTerms

_CPU_ONLY = ["CPUExecutionProvider"]


class LicensedSession(onnxruntime.InferenceSession):  # type: ignore[misc] # it ships no types
    """An inference session whose every delivered answer is counted, and which stops where the license does.

    Takes what `InferenceSession` takes, and the device and the licensed model's name. The file is hashed and
    loaded from the same bytes; weights outside the file are refused.

    It raises `DenialError` where the license does not allow a run, `LedgerError` where usage can no longer be
    recorded, and otherwise what `InferenceSession` raises. A failed run counts nothing.
    """

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        *,
        device: Device,
        model: str,
        **kwargs: Any,
    ) -> None:
        self._model_digest = ""
        data = models.read_model(path_or_bytes)
        terms = _terms(device, model, models.digest(data))
        models.refuse_external_data(data)
        super().__init__(data, sess_options, providers, provider_options, **kwargs)
        self._device = device
        self._terms = terms
        self._model_digest = models.digest(data)
        self._measure = models.measure(terms.axis, self.get_inputs()) if terms.axis else None
        self._gates = threading.local()
        device.watch_forks(self)

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Compute the outputs, as `InferenceSession.run` does, if the license allows it; count if it worked."""
        try:
            gate = self._gates.run
        except AttributeError:
            gate = self._gates.run = self._make_gate()
        return gate(output_names, input_feed, run_options)

    def _make_gate(self) -> Run:
        counter = self._device.counter
        count = counter.meter(self._terms.meter)
        run = _runner(self)
        if self._measure is None:
            return call_gate(counter, count, self._model_digest, run)
        return item_gate(counter, count, self._model_digest, run, self._measure)

    def after_fork(self) -> None:
        """In the child: every thread makes new gates, on cells of its own."""
        self._gates = threading.local()

    def set_providers(self, *args: Any, **kwargs: Any) -> None:
        """Register other execution providers; the native session is made anew."""
        super().set_providers(*args, **kwargs)
        self._gates = threading.local()

    def run_async(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refused with `run_path_unsupported`: not metered yet."""
        raise DeviceError("run_path_unsupported", "run_async")

    def run_with_iobinding(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refused with `run_path_unsupported`: not metered yet."""
        raise DeviceError("run_path_unsupported", "run_with_iobinding")

    def run_with_ort_values(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refused with `run_path_unsupported`: not metered yet."""
        raise DeviceError("run_path_unsupported", "run_with_ort_values")

    def run_with_ortvaluevector(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refused with `run_path_unsupported`: not metered yet."""
        raise DeviceError("run_path_unsupported", "run_with_ortvaluevector")

    def __copy__(self) -> Self:
        """Another name for the same gated session."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        self._device.watch_forks(made)
        return made

    def __reduce__(self) -> NoReturn:
        raise DeviceError("run_path_unsupported", "a licensed session cannot be pickled")


def _terms(device: Device, model: str, digest: str) -> ModelTerms:
    """The license's terms for the model, if these bytes are that model."""
    terms = device.token().terms(model)
    if terms is None:
        raise DenialError("model_not_licensed", model)
    if digest not in terms.sha256:
        raise DenialError("model_digest_wrong", f"{model}: sha256 {digest}")
    return terms


def _runner(session: LicensedSession) -> Run:
    """How an admitted call runs: on the native session where nothing is lost by it, else the public way."""
    # A weak one: the session keeps its gates, and would never be freed if they kept the session.
    weak = weakref.ref(session)

    def public(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        return onnxruntime.InferenceSession.run(weak(), output_names, input_feed, run_options)

    native = getattr(session._sess, "run", None)  # noqa: SLF001 - guarded: without it the public way is taken
    if native is None or session.get_providers() != _CPU_ONLY:
        return public
    names = [output.name for output in session.get_outputs()]
    inputs = len(session.get_inputs())
    array = np.ndarray

    def run(output_names: Any, input_feed: Any, run_options: Any) -> Any:
        if type(input_feed) is not dict or len(input_feed) != inputs:
            return public(output_names, input_feed, run_options)
        for value in input_feed.values():
            if type(value) is not array:
                return public(output_names, input_feed, run_options)
        try:
            return native(output_names or names, input_feed, run_options)
        except Exception:
            alive = weak()
            if alive is not None:
                alive._validate_input(list(input_feed))  # noqa: SLF001 - the public way's own, clearer error
            raise

    return run
