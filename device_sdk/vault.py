"""The small files of a device: its keys, what it trusts, its token and receipt.

Each is replaced whole or not at all (temporary file, fsync, rename, fsync of the directory), and only the
owner may read it. Nothing here judges a signature: what is read back is verified by whoever uses it.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from device_sdk.files import remove_file, sync_directory
from meterkit import limits
from meterkit.canonical import from_base64url, from_bytes, to_base64url, to_bytes
from meterkit.errors import DeviceError, InputError
from meterkit.keys import SigningKey, device_id

_SEAL_PREFIX = "mk-secret-x25519."
_SEAL_BYTES = 32
_FILE_BYTES_MAX = 1024 * 1024


class DeviceKeys:
    """What makes a device the one it is: an Ed25519 key to sign, an X25519 key to receive model keys."""

    __slots__ = ("_seal", "sign")

    def __init__(self, sign: SigningKey, seal: bytes) -> None:
        if len(seal) != _SEAL_BYTES:
            raise InputError("malformed_key", "a secret key is 32 bytes")
        self.sign = sign
        self._seal = seal

    @property
    def device(self) -> str:
        """The device id."""
        return device_id(self.sign.verify_key)

    @property
    def seal_public(self) -> str:
        """The public half of the sealing key, as an activation request carries it."""
        from cryptography.hazmat.primitives.asymmetric import x25519  # noqa: PLC0415 - not on the way to an answer

        seal = x25519.X25519PrivateKey.from_private_bytes(self._seal)
        return to_base64url(seal.public_key().public_bytes_raw())

    def unsafe_to_text(self) -> str:
        """Write both secret keys as text, to be stored owner-only and never shown."""
        return f"{self.sign.unsafe_to_text()}\n{_SEAL_PREFIX}{to_base64url(self._seal)}\n"

    def __repr__(self) -> str:
        return f"DeviceKeys({self.device})"


class Vault:
    """The owner-only files in a device's directory."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        try:
            _make_directory(directory, mode=0o700)
            _make_directory(self.cells, mode=0o700)
            mode = os.stat(directory).st_mode
        except OSError as fault:
            raise DeviceError("directory_unusable", fault.strerror or "cannot be made") from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise DeviceError("directory_unusable", "others may write to it")

    @property
    def cells(self) -> str:
        """Where the live counts are."""
        return self._path("cells")

    @property
    def ledger(self) -> str:
        """The ledger of the current epoch."""
        return self._path("ledger.sqlite")

    def set_aside(self) -> list[str]:
        """Ledgers that were put aside because they were damaged or did not fit, oldest first."""
        try:
            names = os.listdir(self.directory)
        except OSError as fault:
            raise DeviceError("directory_unusable", fault.strerror or "") from None
        found = [self._path(name) for name in names if name.startswith("ledger-") and name.endswith(".sqlite")]
        return sorted(found, key=lambda path: os.stat(path).st_mtime_ns)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def stamp(self) -> tuple[int, ...]:
        """Something that changes whenever another process installs a token, keyring or revocation list."""
        names = ("token.jws", "keyring.json", "revocations.jws")
        return tuple(part for name in names for part in self._version(name))

    def _version(self, name: str) -> tuple[int, int]:
        """A file's inode and time: two replaced within one tick of the file system differ in the first."""
        try:
            found = os.stat(self._path(name))
        except OSError:
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes from installing, or setting a ledger aside, at the same time.

        It is taken after `Counter.lock` and before a ledger's transaction, wherever more than one is held.
        """
        try:
            handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as fault:
            raise DeviceError("directory_unusable", fault.strerror or "") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def read(self, name: str) -> bytes | None:
        """Read a small file, or None where there is none."""
        try:
            with open(self._path(name), "rb") as file:
                return file.read(_FILE_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise DeviceError("directory_unusable", f"{name}: {fault.strerror}") from None

    def replace(self, name: str, data: bytes) -> None:
        """Replace a small file: afterwards it holds these bytes, durably; after a crash, these or the old."""
        temporary = self._path(f".{name}.{os.urandom(8).hex()}")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, self._path(name))
            except BaseException:
                remove_file(temporary)
                raise
            sync_directory(self.directory)
        except OSError as fault:
            raise DeviceError("directory_unusable", f"{name}: {fault.strerror}") from None

    def keys(self) -> DeviceKeys:
        """The device's keys; made here, on the device, at the first call."""
        held = self.read("device.key")
        if held is None:
            made = DeviceKeys(SigningKey(os.urandom(32)), os.urandom(_SEAL_BYTES))
            return self._keep_first(made.unsafe_to_text().encode())
        if os.stat(self._path("device.key")).st_mode & 0o077:
            raise DeviceError("device_key_bad", "others may read it; its mode must be 0600")
        return _read_keys(held)

    def _keep_first(self, data: bytes) -> DeviceKeys:
        """Store new keys, unless another process was first: linking refuses where renaming would not."""
        name = f".device.key.{os.urandom(8).hex()}"
        self.replace(name, data)
        made = self._path(name)
        try:
            os.link(made, self._path("device.key"))
            sync_directory(self.directory)
        except FileExistsError:
            pass
        except OSError as fault:
            raise DeviceError("directory_unusable", f"device.key: {fault.strerror}") from None
        finally:
            remove_file(made)
        return _read_keys(self.read("device.key") or b"")

    def identity(self, *, issuer: str, product: str) -> None:
        """Return if the directory is this vendor's and product's; a new one becomes so."""
        wanted = to_bytes({"v": 1, "issuer": issuer, "product": product})
        held = self.read("identity.json")
        if held is None:
            self.replace("identity.json", wanted)
        elif held != wanted:
            raise DeviceError("product_wrong")

    def settings(self) -> dict[str, Any]:
        """What the last exchange left for the next: the server's address and when to sync."""
        held = self.read("sync.json")
        try:
            value = from_bytes(held, bytes_max=limits.RECORD_BYTES_MAX) if held else {}
        except InputError:
            return {}
        return value if isinstance(value, dict) else {}

    def keyrings(self) -> list[list[str]]:
        """The keyring documents held, oldest first, as they were signed."""
        held = self.read("keyring.json")
        try:
            value = json.loads(held) if held else []
        except ValueError:
            return []
        return value if isinstance(value, list) else []


def _read_keys(data: bytes) -> DeviceKeys:
    try:
        sign, seal = data.decode("ascii").split()
        if not seal.startswith(_SEAL_PREFIX):
            raise DeviceError("device_key_bad")
        raw = from_base64url(seal.removeprefix(_SEAL_PREFIX))
        return DeviceKeys(SigningKey.from_text(sign), raw)
    except (ValueError, InputError):
        raise DeviceError("device_key_bad") from None


def _make_directory(path: str, mode: int = 0o777) -> None:
    """Make a directory, and those above it, whose names a power loss does not take away again."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(os.path.abspath(path))
    _make_directory(above)
    try:
        os.mkdir(path, mode)
    except FileExistsError:  # another process was faster, unless it is a file
        if not os.path.isdir(path):
            raise
    with suppress(PermissionError):  # who may not read the directory above cannot sync it
        sync_directory(above)
