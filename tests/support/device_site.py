"""A device in a directory, under clocks that a test moves, beside a vendor that signs for it."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import device_models
import onnxruntime
import vendor as vendors
from vendor import PRODUCT, Vendor, call_model, item_model

from device_sdk import Device, LicensedSession
from device_sdk.inbox import Outcome
from device_sdk.readings import Clocks
from meterkit import limits
from meterkit.licenses import ModelTerms

NS = 1_000_000_000
START_S = 1_800_000_000 // limits.WINDOW_S * limits.WINDOW_S + 10  # ten seconds into a window
BOOTS = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(1, 100)]

MUL = call_model("mul", device_models.digest(device_models.mul()))
ROWS = item_model("rows", device_models.digest(device_models.rows()), "frames")
LOOPING = call_model("looping", device_models.digest(device_models.looping()))
HOLDING = call_model("holding", device_models.digest(device_models.holding()))
BYTES = {name: getattr(device_models, name) for name in ("mul", "rows", "looping", "holding")}
PATIENCE_S = 60  # how long a test waits for what must come, before it fails; nothing is measured


def limited(terms: ModelTerms, limit: int | None) -> ModelTerms:
    make = call_model if terms.unit == "call" else item_model
    rest = () if terms.axis is None else (terms.axis.input,)
    return make(terms.name, terms.sha256[0], *rest, limit=limit)


class FakeClocks:
    """A wall clock, a boot clock and a boot id, which stand until a test moves them."""

    def __init__(self, now_s: int = START_S) -> None:
        self.true_ns = self.wall_ns = now_s * NS
        self.boot_ns = 5_000 * NS
        self.boot = BOOTS[0]

    @property
    def clocks(self) -> Clocks:
        """They stand, so that a thread in the background waits on; a test calls `keeper.tick`. A caller who would
        wait for something to be done there does not.
        """
        return Clocks(
            boot_ns=lambda: self.boot_ns,
            wall_ns=lambda: self.wall_ns,
            boot=lambda: self.boot,
            wait=lambda event, _seconds: event.wait() if threading.current_thread().daemon else event.is_set(),
        )

    @property
    def now_s(self) -> int:
        """What time it truly is: a server's time, whatever the device's wall clock shows."""
        return self.true_ns // NS

    def run_on(self, seconds: float) -> None:
        """Let time pass, as it does."""
        self.true_ns += int(seconds * NS)
        self.wall_ns += int(seconds * NS)
        self.boot_ns += int(seconds * NS)

    def set_true(self) -> None:
        """Begin at the real time: for tests with processes of their own."""
        self.true_ns = self.wall_ns = time.time_ns()

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self.wall_ns += int(seconds * NS)

    def reboot(self, off_s: float) -> None:
        """Switch off and on: the wall clock ran on, the boot clock starts anew under another id."""
        self.true_ns += int(off_s * NS)
        self.wall_ns += int(off_s * NS)
        self.boot_ns = 20 * NS
        self.boot = BOOTS[BOOTS.index(self.boot) + 1]


def quiet_options() -> onnxruntime.SessionOptions:
    """One thread, nothing on stderr: what a test's model needs, also after fork()."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def quiet_run_options() -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


@dataclass
class Site:
    """A directory for a device, its clocks, and its vendor. `open` may be called any number of times."""

    path: Path
    time: FakeClocks = field(default_factory=FakeClocks)
    vendor: Vendor = field(default_factory=lambda: Vendor(now=START_S))
    opened: list[Device] = field(default_factory=list)

    def open(self, *, real_clocks: bool = False) -> Device:
        clocks = None if real_clocks else self.time.clocks
        device = Device.open(self.path, trust=self.vendor.trust, product=PRODUCT, clocks=clocks)
        self.opened.append(device)
        return device

    def activated(self, *models: ModelTerms, real_clocks: bool = False, **changes) -> Device:
        device = self.open(real_clocks=real_clocks)
        self.activate(device, *models, **changes)
        return device

    def activate(self, device: Device, *models: ModelTerms, **changes) -> Outcome:
        self.vendor.now = self.time.now_s
        request = device.request_activation(vendors.code())
        outcome = device.take_reply(self.vendor.answer_activation(request, list(models), **changes))
        assert not outcome.refused, outcome
        return outcome

    def sync(self, device: Device, *models: ModelTerms, **changes) -> Outcome:
        """Hand everything over; models given come back in a new token."""
        self.vendor.now = self.time.now_s
        return device.take_reply(self.vendor.accept(device.make_batches(), list(models) or None, **changes))

    def close(self) -> None:
        for device in self.opened:
            device.close()


def session(device: Device, name: str = "mul", **kwargs) -> LicensedSession:
    kwargs.setdefault("sess_options", quiet_options())
    return LicensedSession(BYTES[name](), device=device, model=name, **kwargs)


def use(running: LicensedSession, times: int = 1) -> None:
    for _ in range(times):
        running.run(None, device_models.MUL_FEED)


def outcome(running: onnxruntime.InferenceSession, args: tuple, kwargs: dict | None = None):
    """What a call gives: its arrays, or its exception's type and text."""
    try:
        answers = running.run(*args, **(kwargs or {}))
    except Exception as fault:  # noqa: BLE001 - whatever it is, it must be the same
        return type(fault), re.sub(r"0x[0-9a-f]+|\w*Session\.", "", str(fault))
    return [(answer.dtype, answer.shape, answer.tobytes()) for answer in answers]


def records(device: Device, kind: str | None = None) -> list[dict]:
    """The records of the current ledger, as they were hashed."""
    with device.counter.transaction() as tx:
        found = [json.loads(body) for body in tx.bodies(1)]
    return [record for record in found if kind in (None, record["kind"])]


def recorded(device: Device, model: str = "mul") -> int:
    """Units of a model in the current ledger, after folding everything."""
    with device.counter.fold_everything():
        pass
    return sum(record["units"] for record in records(device, "usage") if record["model"] == model)


def leased(device: Device) -> int:
    with device.counter.transaction() as tx:
        return tx.execute("SELECT COALESCE(SUM(units), 0) FROM leases").fetchone()[0]


def digests(directory: Path) -> dict[str, str]:
    """Every file under a directory, by its content."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def wait_until(met: Callable[[], object]) -> None:
    """Return when it is so, however long that takes in good order."""
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.005)  # or another process would hardly find the ledger free


def run_to_their_end(*threads: threading.Thread) -> None:
    """Start them, and return when the system knows them no more."""
    for thread in threads:
        thread.start()
    wait_for_the_end(*threads)


def wait_for_the_end(*threads: threading.Thread) -> None:
    """Until the system knows them no more: a thread can be joined before it lets go of its cell."""
    for thread in threads:
        thread.join()
        while Path(f"/proc/self/task/{thread.native_id}").exists():
            time.sleep(0)


def in_flight(device: Device) -> bool:
    """Whether a call was admitted whose answer is not counted yet, after folding everything."""
    with device.counter.fold_everything() as (_, _, folded):
        return folded.in_flight


def let_go(handle: int) -> None:
    """Close the file behind a descriptor, as its process's end would. The number itself stays taken: who owned it
    will close it once more, and by then it might be somebody else's.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, handle, inheritable=False)
    os.close(nothing)


@contextmanager
def unchanged(directory: Path, *besides: str) -> Iterator[None]:
    """Whatever happens inside changes no file of the directory, besides those named."""
    before = digests(directory)
    yield
    after = digests(directory)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= set(besides)
