"""A device as several processes use it, and what truly happened there: what `machine_checks` compares with.

The processes are `Device` objects on one directory: each has cells, leases and a lock of its own. What the end of
a process does to its cell file is done by hand: its lock is freed, and nothing else.
"""

import base64
import copy
import json
import os
import struct
from collections import Counter as Tally
from pathlib import Path

import pytest
from device_site import MUL, ROWS, FakeClocks, Site, session
from failing_commits import Killed, fail_commits
from machine_disk import Disk
from machine_ledger import LedgerView, Row, Word
from vendor import PRODUCT

from device_sdk import Device, LicensedSession
from device_sdk.async_gate import AsyncGate, Ticket
from device_sdk.cells import CellFile
from device_sdk.keeper import tick
from meterkit import limits
from meterkit.errors import MeterkitError
from meterkit.tokens import Token

METERS = {"mul": MUL.meter, "rows": ROWS.meter}


class Process:
    """One process: its device, its sessions, its cell file, and its calls in flight."""

    def __init__(self, device: Device, *, strict: bool) -> None:
        self.device = device
        self.strict = strict
        self.file: CellFile | None = None
        self.ended = False
        self.calls_in_flight = 0
        self.serial_known = 0  # it has looked at a token so new, and may use no older one
        self.tickets: list[tuple[Ticket, AsyncGate, str, int]] = []
        self._sessions: dict[tuple[str, int], LicensedSession] = {}

    def session(self, name: str, number: int = 0) -> LicensedSession:
        """A session of a model; each number is a session with a cell of its own."""
        if (name, number) not in self._sessions:
            count = "strict" if self.strict else "leased"
            first = self._sessions.get((name, 0)) or session(self.device, name, count=count)
            self._sessions[name, 0] = first
            self._sessions[name, number] = copy.copy(first) if number else first
        return self._sessions[name, number]

    def forget_session(self, name: str, number: int) -> None:
        self._sessions.pop((name, number), None)

    def remember_file(self) -> None:
        self.file = self.device.counter.own.file or self.file

    def end(self) -> None:
        """What the system does when a process has ended, however it did."""
        self.remember_file()
        self.ended = True
        self.device.counter.keeper.stop()
        self.device._store.drop()
        if self.file is not None and Path(self.file.path).exists():
            os.close(self.file._handle)  # where the file was removed, its lock went with it


class World:
    """The site, and what truly happened: units by model, whatever the device says of them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, granted: list, token: dict) -> None:
        self.site = Site(directory / "device")
        self.time: FakeClocks = self.site.time
        self.vendor = self.site.vendor
        self.faults: list[str] = []
        self.processes: list[Process] = []
        self.closing: list[Process] = []
        self.tokens: dict[str, Token] = {}
        self.batches: list[list[str]] = []
        self.replies: list[bytes] = []
        self.promises: list[tuple[int, int]] = []  # (seq, through): no usage before `through` follows `seq`
        self.delivered: Tally[str] = Tally()
        self.counted: Tally[str] = Tally()
        self.lost: Tally[str] = Tally()  # counted, but not on the disk when the power was lost
        self.extra: Tally[str] = Tally()  # recorded as used because the cell that would tell is gone
        self.windows: Tally[tuple[str, int]] = Tally()
        self.clock_right = True
        self.floor_may_fall = False
        self.happened: set[str] = set()
        self.codes: Tally[str] = Tally()
        self.struck = False
        self.disk = Disk(monkeypatch)
        device = self.site.activated(*granted, **token)
        self.site.opened.clear()
        self._note_token(device.holder.genuine.text)
        self.view = LedgerView(self.site.path)
        self._image = (self.site.path / "ledger.sqlite").read_bytes()
        self.processes.append(Process(device, strict=False))
        self.faults = fail_commits(monkeypatch)

    # -- processes

    def open(self, *, strict: bool = False) -> Process | None:
        opened: list[Process] = []

        def make() -> None:
            device = Device.open(self.site.path, trust=self.vendor.trust, product=PRODUCT, clocks=self.time.clocks)
            opened.append(Process(device, strict=strict))

        self.act(None, make)
        self.processes += opened
        return opened[0] if opened else None

    def act(self, process: Process | None, do, *args) -> str | None:
        """Do something in a process; gives the code with which it was refused, or `killed`."""
        pending = len(self.faults)
        self.struck = False
        if process is not None:
            process.remember_file()
        try:
            do(*args)
        except Killed:
            if process is not None:
                self.kill(process)
            return "killed"
        except MeterkitError as fault:
            self.codes[fault.code] += 1
            return fault.code
        finally:
            self.struck = len(self.faults) < pending
            if process is not None:
                process.remember_file()
        return None

    def kill(self, process: Process) -> None:
        for alive in (self.processes, self.closing):
            if process in alive:
                alive.remove(process)
                process.end()

    def close(self, process: Process) -> None:
        """Close the device; the process ends with it, or with its last call in flight."""
        if self.act(process, process.device.close) == "killed":
            return
        self.processes.remove(process)
        self.closing.append(process)
        self.end_closed(process)

    def end_closed(self, process: Process) -> None:
        if process in self.closing and not process.tickets and not process.calls_in_flight:
            self.kill(process)

    def seconds_to(self, edge: str) -> int:
        """How far it is to the end of the window, or of the newest token, or of its grace."""
        if edge == "window":
            return limits.WINDOW_S - self.time.now_s % limits.WINDOW_S
        token = self.tokens[self.view.token["jti"]]
        return token.exp + (token.grace_s if edge == "grace" else 0) - self.time.now_s

    def look_after(self, process: Process) -> None:
        """What the keeper's thread does about once a second: from then on an installed token is in force."""
        self.act(process, tick, process.device.counter)
        if not self.struck:
            self.note_known(process)

    def note_known(self, process: Process) -> None:
        stored = process.device.vault.read("token.jws").decode()
        process.serial_known = self.read_token(stored).serial

    def _note_token(self, text: str) -> None:
        token = self.read_token(text)
        self.tokens[token.jti] = token

    @staticmethod
    def read_token(text: str) -> Token:
        payload = text.split(".")[1]
        return Token.from_claims(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))

    # -- what the disk says

    def alive_files(self) -> set[str]:
        """Names of the cell files whose processes live."""
        alive = [*self.processes, *self.closing]
        for process in alive:
            process.remember_file()
        return {process.file.name for process in alive if process.file}

    def cell_files(self) -> list[Path]:
        return sorted((self.site.path / "cells").glob("cells_*"))

    def word(self, row: Row) -> Word | None:
        path = self.site.path / "cells" / row.file
        try:
            with path.open("rb") as file:
                file.seek(row.slot * limits.CELL_SLOT_BYTES)
                word, started, _ = struct.unpack("=QQQ", file.read(24))
        except FileNotFoundError:
            return None
        return Word(word, started)

    def unfolded_by_file(self) -> dict[str, Tally[str]]:
        """Units that cells prove, and that are in no record yet."""
        self.view.read()
        found: dict[str, Tally[str]] = {row.file: Tally() for row in self.view.cells}
        for row in self.view.cells:
            word = self.word(row)
            if word is not None:
                found[row.file][row.model] += max(0, word.count - row.mark)
        return found
