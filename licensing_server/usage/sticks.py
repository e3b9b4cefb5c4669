"""Files that devices wrote, carried here by somebody: found, answered one by one, and replied to beside them.

Each file is judged alone, by the same rules as what comes over HTTP (FORMATS). What is refused is told to the
device in its `.mkreply`; the server's own trouble is raised, and written for nobody.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from licensing_server import problem_documents
from licensing_server.devices import service as devices
from licensing_server.server import Server
from licensing_server.usage import service
from meterkit import envelopes, limits
from meterkit.canonical import to_bytes
from meterkit.errors import InputError, MeterkitError
from meterkit.exchange import split_batches

REPLY_SUFFIX = ".mkreply"
_SUFFIXES = (".mkact", ".mkbatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What became of one file: the bytes of its reply, and the first refusal, if something was refused.

    `in_part` tells that something of the file was taken all the same.
    """

    reply: bytes
    refused: MeterkitError | None = None
    in_part: bool = False

    @property
    def why(self) -> str | None:
        """The refusal as a person reads it."""
        if self.refused is None:
            return None
        detail = f" ({self.refused.detail})" if self.refused.detail else ""
        return ("In part: " if self.in_part else "") + self.refused.sentence + detail


def find(paths: Iterable[Path]) -> list[Path]:
    """The files to be answered, once each: those named, and of a folder all that devices write, at any depth.

    Activation requests come first: a device is known before its usage is judged, whatever the files are called.
    Links and hidden files in folders are passed over.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        for each in sorted(_inside(path)) if path.is_dir() else [path]:
            found.setdefault(each.resolve(), each)
    return sorted(found.values(), key=lambda path: path.suffix != _SUFFIXES[0])


def _inside(folder: Path) -> Iterable[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in _SUFFIXES and not hidden and not path.is_symlink() and path.is_file():
            yield path


def reply_path(path: Path) -> Path:
    """Where a file's reply goes."""
    return path.with_suffix(REPLY_SUFFIX)


def answer(server: Server, path: Path) -> Answered:
    """Answer one file.

    Raises:
        MeterkitError: the server's own trouble, as `signing_unavailable`.
    """
    try:
        texts = split_batches(_read(path), batches_max=limits.FILE_BATCHES_MAX)
        if len(texts) == 1 and _is_activation(texts[0]):
            return Answered(reply=devices.activate(server, texts[0]).to_bytes())
        taken = service.take(server, texts)
        return Answered(reply=taken.reply.to_bytes(), refused=taken.refused, in_part=True)
    except MeterkitError as error:
        if error.status >= 500:
            raise
        return Answered(reply=to_bytes(problem_documents.to_document(error)), refused=error)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limits.FILE_BYTES_MAX + 1)
    except OSError as fault:
        raise InputError("malformed_file", f"it cannot be read: {fault.strerror}") from None
    if len(data) > limits.FILE_BYTES_MAX:
        raise InputError("too_large", f"at most {limits.FILE_BYTES_MAX} bytes a file")
    return data


def _is_activation(text: str) -> bool:
    try:
        envelopes.unverified_parts(envelopes.ACTIVATION, text)
    except InputError:
        return False
    return True


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, durably: a stick may be pulled out at any moment."""
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with building.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        building.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        building.unlink(missing_ok=True)
