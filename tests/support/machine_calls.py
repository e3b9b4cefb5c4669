"""The calls of a simulated process: delivered, failed, refused, in flight, and cut short."""

import threading
from pathlib import Path

from device_models import MUL_FEED, frames
from device_site import MUL, run_to_their_end
from failing_commits import Killed
from machine_disk import PAGE_BYTES
from machine_world import METERS, Process, World

from device_sdk.async_gate import Ticket
from device_sdk.gate import call_gate
from meterkit import limits
from meterkit.errors import DenialError, TrustError


class Calls(World):
    """Everybody's calls. What was counted and delivered is noted, and whether a refusal was right is asked."""

    def call(self, process: Process, name: str, number: int, units: int) -> str | None:
        """One call through a licensed session; notes what was delivered, and asks whether a refusal is right."""
        count = process.device.counter.meter(METERS[name])
        remembered = count.denied is not None
        code = self.act(process, self._run, process, name, number, units)
        if code is None:
            self.note_counted(name, units, self.note_admitted(process, name))
            self.delivered[name] += units
        elif not remembered and not self.struck:
            self.check_denial(code, name, units)
        return code

    @staticmethod
    def _run(process: Process, name: str, number: int, units: int) -> None:
        process.session(name, number).run(None, MUL_FEED if name == "mul" else frames(units))

    def call_in_thread(self, process: Process, name: str, units: int) -> str | None:
        """One call by a thread that ends with it, and leaves its cell behind."""
        faults: list[BaseException] = []

        def target() -> None:
            try:
                self._run(process, name, 0, units)
            except BaseException as fault:  # noqa: BLE001 - raised below, as if the caller had called
                faults.append(fault)

        def do() -> None:
            run_to_their_end(threading.Thread(target=target))
            if faults:
                raise faults.pop()

        code = self.act(process, do)
        if code is None:
            self.note_counted(name, units, self.note_admitted(process, name))
            self.delivered[name] += units
        return code

    def call_while(self, process: Process, inside) -> None:
        """One call during which something happens, its process's end perhaps: then it is not counted."""
        admitted: list[int] = []
        left: list[bytes] = []

        def run(*_args) -> str:
            process.calls_in_flight += 1
            admitted.append(self.note_admitted(process, "mul"))
            inside()
            if process.ended:
                left.append(bytes(process.file.words)[:PAGE_BYTES])
                raise Killed
            return "answer"

        gate = call_gate(process.device.counter, process.device.counter.meter(MUL.meter), MUL.sha256[0], run)
        code = self.act(process, gate, None, MUL_FEED, None)
        process.calls_in_flight -= len(admitted)
        if left and Path(process.file.path).exists():  # what a killed process does no more
            with Path(process.file.path).open("r+b") as file:
                file.write(left[0])
        elif code is None:
            self.note_counted("mul", 1, admitted[0])
            self.delivered["mul"] += 1
            self.end_closed(process)

    def start(self, process: Process, name: str, units: int) -> None:
        """A call that is admitted now, and answers when `settle` says so."""
        tickets: list[Ticket] = []

        def admit() -> None:
            running = process.session(name)
            gate = running._async or running._make_async_gate()
            tickets.append(gate.admit(units))

        self.act(process, admit)
        if tickets:
            window = self.note_admitted(process, name)
            process.tickets.append((tickets[0], process.session(name)._async, name, window))

    def settle(self, process: Process, index: int, *, answered: bool, delivered: bool) -> None:
        ticket, gate, name, window = process.tickets.pop(index % len(process.tickets))
        self.act(process, lambda: gate.settle(ticket, answered=answered))
        if answered:
            self.note_counted(name, ticket.units, window)
            self.delivered[name] += ticket.units if delivered else 0
        if not delivered:
            self.kill(process)
        self.end_closed(process)

    def note_admitted(self, process: Process, name: str) -> int:
        """A call was admitted just now: gives its window, which is that of the true time."""
        window = self.time.now_s // limits.WINDOW_S
        lease = process.device.counter.meter(METERS[name]).lease
        assert lease is not None
        token = self.tokens[lease.standing.token]
        assert token.serial >= process.serial_known, "a call under a token that was replaced"
        if self.clock_right:
            assert self.time.now_s < token.exp + token.grace_s or token.policy.expiry == "flag"
            # The window before is kept only where the fold at its edge failed.
            assert lease.standing.window == window or "faults" in self.happened
        return lease.standing.window

    def note_counted(self, name: str, units: int, window: int) -> None:
        self.counted[name] += units
        self.windows[name, window] += units

    def check_denial(self, code: str, name: str, units: int) -> None:
        """Nobody is refused who need not be."""
        if code == "killed" or "tampered" in self.happened:
            return
        self.view.read()
        token = self.tokens[self.view.token["jti"]]
        if code == "limit_reached":
            limit = token.terms(name).limit
            assert token.policy.limit == "deny"
            assert limit - self.view.used(name, self.view.token["anchor"]) < units, "denied, and units are left"
        elif code == "token_expired":
            assert token.policy.expiry == "deny"
            assert not self.clock_right or self.time.now_s >= token.exp + token.grace_s
        elif code == "clock_rolled_back":
            assert not self.clock_right
        else:
            assert code == "token_revoked", code
            assert "revoked" in self.happened

    def calls_at_once(self, process: Process, name: str, times: int) -> None:
        """Two threads call at the same time, each until it is refused. Their cells are folded when both are gone:
        it should matter little who was faster.
        """
        together = threading.Barrier(2)
        answered: list[int] = []
        faults: list[BaseException] = []

        def target() -> None:
            try:
                for _ in range(times):
                    self._run(process, name, 0, 1)
                    answered.append(1)
            except (DenialError, TrustError):
                return
            except BaseException as fault:  # noqa: BLE001 - shown below
                faults.append(fault)
            finally:
                together.wait()

        if self.act(process, process.session, name) is not None:
            return
        run_to_their_end(*(threading.Thread(target=target) for _ in range(2)))
        assert not faults
        self.act(process, process.device.status)
        self.note_counted(name, len(answered), self.time.now_s // limits.WINDOW_S)
        self.delivered[name] += len(answered)
