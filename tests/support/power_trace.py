"""Reading a trace of system calls: what a program did to the files in one directory, and what it told meanwhile.

The program is traced by `strace -f -xx`. What it stores through memory maps shows in no system call: it tells
that itself, as it tells what it has acknowledged, by lines of JSON in a file outside the directory.
"""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from power_disk import ROOT, MakeDirectory, Operation, Rename, Resize, SyncBegins, SyncEnds, Write

STRACE = shutil.which("strace")
_CALLS = (
    "openat,open,creat,close,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "fsync,fdatasync,msync,mmap,sync_file_range,copy_file_range,sendfile"
)
_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\w+)(?: .*)?", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>,? ?(.*)", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_UNFINISHED = " <unfinished ...>"
_SYNCS = ("fsync", "fdatasync", "msync")


class Told(NamedTuple):
    """What the program said: something that it acknowledged, or was about to do."""

    what: dict[str, Any]


Event = Operation | Told


def record(argv: list[str], into: Path) -> str:
    """Run a program to its end, and give the trace of what it did."""
    traced = "trace=?" + _CALLS.replace(",", ",?")  # ?: some systems do not have them all
    command = [STRACE, "--seccomp-bpf", "-f", "-xx", "-s", str(2**24), "-e", traced, "-o", into, *argv]
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return into.read_text()


class _Call(NamedTuple):
    name: str
    args: list[str]
    strings: list[bytes]
    result: int


class Reader:
    """Follows one process's files by their names and descriptors."""

    def __init__(self, directory: Path, told: Path) -> None:
        self._root = str(directory)
        self._told = str(told)
        self._nodes = {self._root: ROOT}
        self._last = ROOT
        self._open: dict[int, tuple[int, str]] = {}
        self._offsets: dict[int, int] = {}
        self._maps: dict[int, tuple[int, int]] = {}
        self._seen: dict[int, dict[int, int]] = {}
        self._directories = {ROOT}
        self._syncs = itertools.count(1)

    def read(self, text: str) -> Iterator[Event]:
        """Everything that happened, in its order. A call has done its work when it returns."""
        waiting: dict[str, tuple[str, SyncBegins | None]] = {}
        for line in text.splitlines():
            pid, call = _LINE.fullmatch(line).groups()
            resumed = _RESUMED.fullmatch(call)
            if resumed:
                begun, sync = waiting.pop(pid)
                call = begun + resumed[1]
            else:
                sync = self._begin(call)
                if sync is not None:
                    yield sync
                if call.endswith(_UNFINISHED):
                    waiting[pid] = call.removesuffix(_UNFINISHED), sync
                    continue
            yield from self._end(call, sync)

    def _begin(self, text: str) -> SyncBegins | None:
        """What happens when a call begins: a sync looks what there is to sync; a descriptor is free."""
        name = text.partition("(")[0]
        if name not in {"close", *_SYNCS}:
            return None
        call = _parse(f"{text.removesuffix(_UNFINISHED)}) = 0" if text.endswith(_UNFINISHED) else text)
        if name == "msync":
            return self._begin_msync(int(call.args[0], 16), int(call.args[1]))
        handle = int(call.args[0])
        if name == "close":
            self._open.pop(handle, None)
        elif handle in self._open:
            return SyncBegins(next(self._syncs), self._open[handle][0])
        return None

    def _begin_msync(self, start: int, size: int) -> SyncBegins | None:
        for at, (node, mapped) in self._maps.items():
            if at <= start < at + mapped:
                return SyncBegins(next(self._syncs), node, start - at, start - at + size)
        return None

    def _end(self, text: str, sync: SyncBegins | None) -> Iterator[Event]:
        """What a call did; nothing, if it failed."""
        call = _parse(text)
        if call is None or call.result < 0 or call.name == "close":
            return
        if call.name not in _SYNCS:
            yield from getattr(self, f"_{call.name}", self._refuse)(call)
        elif sync is not None:
            yield SyncEnds(sync.sync)

    # -- system calls

    def _openat(self, call: _Call) -> Iterator[Event]:
        path = call.strings[0].decode()
        flags = call.args[2]
        self._open.pop(call.result, None)
        if path == self._told:
            self._open[call.result] = -1, path
            return
        if not self._is_inside(path):
            return
        if path not in self._nodes:
            assert "O_CREAT" in flags, call
            yield from self._make(path)
        elif "O_TRUNC" in flags:
            yield Resize(self._nodes[path], 0)
        assert "O_APPEND" not in flags, call
        self._open[call.result] = self._nodes[path], path
        self._offsets[call.result] = 0

    def _write(self, call: _Call) -> Iterator[Event]:
        handle = int(call.args[0])
        if handle not in self._open:
            return
        data = call.strings[0][: call.result]
        node, path = self._open[handle]
        if path == self._told:
            yield from self._tell(json.loads(data))
            return
        yield Write(node, self._offsets[handle], data)
        self._offsets[handle] += call.result

    def _pwrite64(self, call: _Call) -> Iterator[Event]:
        if int(call.args[0]) in self._open:
            yield Write(self._open[int(call.args[0])][0], int(call.args[3]), call.strings[0][: call.result])

    def _ftruncate(self, call: _Call) -> Iterator[Event]:
        if int(call.args[0]) in self._open:
            yield Resize(self._open[int(call.args[0])][0], int(call.args[1]))

    def _fallocate(self, call: _Call) -> Iterator[Event]:
        if int(call.args[0]) in self._open:
            assert call.args[1:3] == ["0", "0"], call  # a new file, from its start on
            yield Resize(self._open[int(call.args[0])][0], int(call.args[3]))

    def _mkdir(self, call: _Call) -> Iterator[Event]:
        path = call.strings[0].decode()
        if self._is_inside(path):
            self._directories.add(self._last + 1)
            yield MakeDirectory(self._last + 1)
            yield from self._make(path)

    _mkdirat = _mkdir

    def _rename(self, call: _Call) -> Iterator[Event]:
        old, new = (path.decode() for path in call.strings)
        if self._is_inside(old) or self._is_inside(new):
            directory, name = self._place(new)
            assert self._place(old)[0] == directory, call
            self._nodes[new] = node = self._nodes.pop(old)
            assert node not in self._directories, call
            yield Rename(directory, {self._place(old)[1]: None, name: node})

    _renameat = _renameat2 = _rename

    def _link(self, call: _Call) -> Iterator[Event]:
        old, new = (path.decode() for path in call.strings)
        if self._is_inside(new):
            directory, name = self._place(new)
            self._nodes[new] = self._nodes[old]
            yield Rename(directory, {name: self._nodes[old]})

    _linkat = _link

    def _unlink(self, call: _Call) -> Iterator[Event]:
        path = call.strings[0].decode()
        if self._is_inside(path):
            directory, name = self._place(path)
            del self._nodes[path]
            yield Rename(directory, {name: None})

    def _unlinkat(self, call: _Call) -> Iterator[Event]:
        assert call.args[2] == "0", call  # a file, not a directory
        return self._unlink(call)

    def _mmap(self, call: _Call) -> Iterator[Event]:
        handle = int(call.args[4])
        start, size = call.result, int(call.args[1])
        # Whatever was mapped there before is so no longer, though its end shows in no call that is traced.
        self._maps = {
            at: (node, mapped)
            for at, (node, mapped) in self._maps.items()
            if at + mapped <= start or start + size <= at
        }
        shared = "MAP_SHARED" in call.args[3] and "PROT_WRITE" in call.args[2]
        if shared and handle in self._open:
            assert int(call.args[5], 16) == 0, call
            self._maps[start] = self._open[handle][0], size
        return iter(())

    def _refuse(self, call: _Call) -> Iterator[Event]:
        """Calls that the device does not make: were it to, the replay would have to know what they do."""
        paths = [path.decode("utf-8", "replace") for path in call.strings]
        handles = [int(arg) for arg in call.args if arg.isdigit()]
        ours = any(map(self._is_inside, paths)) or any(handle in self._open for handle in handles[:1])
        assert not ours, call
        return iter(())

    # -- names, and what was told

    def _is_inside(self, path: str) -> bool:
        return path == self._root or path.startswith(f"{self._root}/")

    def _place(self, path: str) -> tuple[int, str]:
        directory, _, name = path.rpartition("/")
        return self._nodes[directory], name

    def _make(self, path: str) -> Iterator[Event]:
        directory, name = self._place(path)
        self._last += 1
        self._nodes[path] = self._last
        yield Rename(directory, {name: self._last})

    def _tell(self, what: dict[str, Any]) -> Iterator[Event]:
        """A sample of mapped memory is stores of the words that are new in it; all else is told as it is."""
        if "mapped" not in what:
            yield Told(what)
            return
        node = self._nodes[what["mapped"]]
        seen = self._seen.setdefault(node, {})
        for place, word in enumerate(what["words"]):
            if seen.get(place, 0) != word:
                seen[place] = word
                yield Write(node, 8 * place, word.to_bytes(8, "little"))


def _parse(text: str) -> _Call | None:
    """One call: its arguments as strace writes them, and the bytes of those that are strings."""
    found = _CALL.fullmatch(text)
    if found is None or found[3] == "?":
        assert found or text.startswith(("+++", "---")), text[:200]
        return None
    strings: list[bytes] = []

    def take(match: re.Match[str]) -> str:
        assert not match[2], "strace cut a string"
        strings.append(bytes.fromhex(match[1].replace("\\x", "")))
        return f"<{len(strings) - 1}>"

    args = _STRING.sub(take, found[2]).split(", ")
    return _Call(found[1], args, strings, int(found[3], 0))
