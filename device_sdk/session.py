"""LicensedSession: a drop-in `onnxruntime.InferenceSession` that runs while the license allows it.

What a caller does with the private native session, or with `InferenceSession`'s own functions on a licensed
session, goes past the gate; the threat model says so.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from device_sdk import denial_hook, items, models, run_paths, runtime
from device_sdk.denial_hook import OnDenied
from device_sdk.device import Device
from device_sdk.gate import Run, call_gate, item_gate, strict_gate
from meterkit.errors import DenialError, DeviceError
from meterkit.licenses import ModelTerms

if TYPE_CHECKING:
    from device_sdk.async_gate import AsyncGate, Callback


class LicensedSession(runtime.InferenceSession):  # type: ignore[misc] # it ships no types
    """An inference session whose every delivered answer is counted, and which stops where the license does.

    Takes what `InferenceSession` takes, and the device and the licensed model's name. The file is hashed and
    loaded from the same bytes; weights outside the file are refused.

    It raises `DenialError` where the license does not allow a run, `LedgerError` where usage can no longer be
    recorded, and otherwise what `InferenceSession` raises. A failed run counts nothing. `on_denied` is told of
    each `DenialError`, here and in every run, by the thread that is refused and before it is raised; it may
    sync the device, but should not run the session.

    With `count="strict"` each unit is durable before its answer is delivered, whatever happens to the power: a
    call then costs a commit before and a flush after it. It is a matter of the meter: other sessions of this
    process on the same model then lease no more than they use at once, either.

    As a context manager it lets go of its cells at the end, and of nothing else: `Device.close` ends the usage.
    """

    _async: AsyncGate | None

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        *,
        device: Device,
        model: str,
        on_denied: OnDenied | None = None,
        count: Literal["leased", "strict"] = "leased",
        **kwargs: Any,
    ) -> None:
        if count not in ("leased", "strict"):
            raise ValueError(f"count is leased or strict, not {count!a}")
        self._strict = count == "strict"
        self._on_denied = on_denied
        data = models.read_model(path_or_bytes)
        digest = models.digest(data)
        try:
            terms = _terms(device, model, digest)
        except DenialError as denial:
            denial_hook.tell(on_denied, denial)
            raise
        models.refuse_external_data(data)
        # Now: later it would wait for a processor that ONNX Runtime's threads hold.
        device.counter.keeper.start(None if self._strict else (terms.meter, digest))
        super().__init__(data, sess_options, providers, provider_options, **kwargs)
        if terms.axis:
            items.check_axis(terms.axis, self.get_inputs())
        self._device = device
        self._terms = terms
        self._model_digest = digest
        self._drop_gates()
        device.watch_forks(self)

    # -- the ways to run, each behind a gate of its own for each thread

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Compute the outputs, as `InferenceSession.run` does, if the license allows it; count if it worked."""
        try:
            gate = self._gates.run
        except AttributeError:
            gate = self._make_gate("run")
        try:
            return gate(output_names, input_feed, run_options)
        except DenialError as denial:
            denial_hook.tell(self._on_denied, denial)
            raise

    def run_with_ort_values(self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None) -> Any:
        """Compute the outputs as OrtValues; gated and counted as `run` is."""
        return self._run("run_with_ort_values", output_names, input_dict_ort_values, run_options)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        """Compute the outputs that are bound; gated and counted as `run` is.

        An item meter needs a binding that this class's `io_binding` made: it refuses others with
        `feed_unmeasurable`. A call counts too if an interrupt follows when the outputs are there.
        """
        run_paths.finish(self._run("run_with_iobinding", None, iobinding, run_options))

    def run_with_ortvaluevector(  # noqa: PLR0917 - ONNX Runtime's own signature
        self, run_options: Any, feed_names: Any, feeds: Any, fetch_names: Any, fetches: Any, fetch_devices: Any
    ) -> None:
        """Compute the outputs into `fetches`; gated and counted as `run_with_iobinding` is."""
        named, fetch = (feed_names, feeds), (fetch_names, fetches, fetch_devices)
        run_paths.finish(self._run("run_with_ortvaluevector", run_options, named, fetch))

    def run_async(
        self, output_names: Any, input_feed: Any, callback: Callback, user_data: Any, run_options: Any = None
    ) -> None:
        """Compute the outputs on another thread, which then calls back, as `InferenceSession.run_async` does; it
        needs more than one intra-op thread.

        It is admitted here, and counted before `callback` gets its results; a run that failed counts nothing. The
        call is in flight until then, also when the device is closed meanwhile. As with `InferenceSession`, the
        session must be kept until its callbacks have returned.
        """
        gate = self._async or self._make_async_gate()
        try:
            ticket = gate.admit(1 if self._terms.axis is None else items.of_feed(self._terms.axis)(input_feed))
        except DenialError as denial:
            denial_hook.tell(self._on_denied, denial)
            raise
        try:
            settling = gate.settling(ticket, callback)
            super().run_async(output_names, input_feed, settling, user_data, run_options)
        except Exception:  # an interrupt may come when it runs already: its callback will tell
            gate.settle(ticket, answered=False)
            raise

    def io_binding(self) -> Any:
        """Make an IOBinding of this session; for an item meter, one whose bound inputs can be counted."""
        if self._terms.axis is None:
            return super().io_binding()
        from device_sdk.bindings import MeasuredBinding  # noqa: PLC0415 - not on the way to an answer

        return MeasuredBinding(self)

    def _run(self, path: str, first: Any, measured: Any, last: Any) -> Any:
        """What `run` does in place, for the other ways."""
        try:
            gate = getattr(self._gates, path)
        except AttributeError:
            gate = self._make_gate(path)
        try:
            return gate(first, measured, last)
        except DenialError as denial:
            denial_hook.tell(self._on_denied, denial)
            raise

    def _make_gate(self, path: str) -> Run:
        """Make this thread's gate for a way to run, and keep it."""
        gates = self._gates  # read first: what is dropped while this goes on takes the gate with it
        counter = self._device.counter
        count = counter.meter(self._terms.meter)
        run = run_paths.RUNS[path](self)
        measure = run_paths.MEASURES[path](self._terms.axis) if self._terms.axis else None
        if self._strict:
            gate = strict_gate(counter, count, self._model_digest, run, measure or items.of_call)
        elif measure is None:
            gate = call_gate(counter, count, self._model_digest, run)
        else:
            gate = item_gate(counter, count, self._model_digest, run, measure)
        setattr(gates, path, gate)
        return gate

    def _make_async_gate(self) -> AsyncGate:
        """Make the gate of `run_async`; where two threads make one at once, either will do."""
        from device_sdk.async_gate import AsyncGate  # noqa: PLC0415 - not on the way to an answer

        count = self._device.counter.meter(self._terms.meter)
        count.exact = count.exact or self._strict
        gate = self._async = AsyncGate(self._device.counter, count, self._model_digest)
        return gate

    def _drop_gates(self) -> None:
        """Make every thread begin with new gates; the cells of the old ones are folded at the next commit."""
        self._gates = threading.local()
        self._async = None

    # -- what else a session can do

    def set_providers(self, *args: Any, **kwargs: Any) -> None:
        """Register other execution providers; the native session is made anew."""
        self._drop_gates()  # they hold the native session, which is freed before there is a new one
        try:
            super().set_providers(*args, **kwargs)
        finally:
            self._drop_gates()

    def after_fork(self) -> None:
        """In the child: every thread makes new gates, on cells of its own."""
        self._drop_gates()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_gates()

    def __copy__(self) -> Self:
        """Another name for the same gated session, with gates of its own: they live as long as it does."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._drop_gates()
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
