"""The server's directory on disk: made whole or not at all, owner-only, and read back at start.

server.json             who the vendor is
meterkit.sqlite3        the embedded database, unless there is one of PostgreSQL
keys/*.key              online signing keys by purpose, the pepper, the sealing key
keyrings/<version>.json keyring documents, as devices are given them
root/root.key           the root's secret key, unless it was placed elsewhere: take it offline
"""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from licensing_server import database, migrating
from licensing_server.api_keys import service as api_keys
from licensing_server.billing import ways
from licensing_server.sealing import Sealer
from licensing_server.server import Server
from licensing_server.settings import DATABASE_FILE, Settings
from licensing_server.sodium import SodiumVerifyKey
from meterkit import envelopes, limits, shapes, signing
from meterkit.canonical import from_base64url, from_bytes, to_base64url, to_bytes
from meterkit.errors import InputError, MeterkitError, ServiceError
from meterkit.keys import KEYRING, Keyring, SigningKey, roots_fingerprint

PURPOSES = ("token", "receipt", "revocations", "invoice")
_SETTINGS = "server.json"
_SETTINGS_SHAPE = shapes.Members(v=shapes.VERSION_1, issuer=shapes.text())
_PEPPER = "api-keys.pepper"
_SEALING = "sealing"
_SMALL_FILE_BYTES_MAX = limits.KEYRING_BYTES_MAX * 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialized:
    """What `init` hands to the person who ran it. The API key is not kept anywhere."""

    directory: Path
    issuer: str
    roots: tuple[str, ...]
    fingerprint: str
    root_key: Path
    api_key: str

    def __repr__(self) -> str:
        return f"Initialized({self.directory})"


def system_clock() -> int:
    """The time, in whole seconds UTC."""
    return int(time.time())


def init(
    directory: Path,
    *,
    issuer: str,
    root_key: Path | None = None,
    postgresql_url: str | None = None,
    clock: Callable[[], int] = system_clock,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> Initialized:
    """Make a server: keys, keyring, database and a first API key, beside the target and then renamed into place.

    A PostgreSQL database must be there, and empty; it alone is not undone where anything fails afterwards.

    Raises:
        ServiceError: `already_initialized` if the directory, the root key's file, or the database is there and not
            empty; `database_unavailable`.
    """
    shapes.text()(issuer, "issuer")
    _check_free(directory, root_key)
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.parent / f".{directory.name}.{random(8).hex()}"
    building.mkdir(mode=0o700)
    try:
        root = SigningKey(random(32))
        _build(building, issuer, root, now=clock(), random=random)
        _make_database(Settings(directory=building, postgresql_url=postgresql_url))
        if root_key is None:
            (building / "root").mkdir(mode=0o700)
            write_new(building / "root" / "root.key", root.unsafe_to_text())
        api_key = _first_api_key(Settings(directory=building, postgresql_url=postgresql_url), clock, random)
        _place(building, directory, root_key, root)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return Initialized(
        directory=directory,
        issuer=issuer,
        roots=(root.verify_key.text,),
        fingerprint=roots_fingerprint((root.verify_key.text,), 1),
        root_key=root_key or directory / "root" / "root.key",
        api_key=api_key,
    )


def _check_free(directory: Path, root_key: Path | None) -> None:
    if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
        raise ServiceError("already_initialized", str(directory))
    if root_key is not None and (root_key.exists() or root_key.is_symlink()):
        raise ServiceError("already_initialized", f"{root_key} is there already")


def _build(building: Path, issuer: str, root: SigningKey, *, now: int, random: Callable[[int], bytes]) -> None:
    write_new(building / _SETTINGS, to_bytes({"v": 1, "issuer": issuer}).decode())
    for name in ("keys", "keyrings"):
        (building / name).mkdir(mode=0o700)
    keys = {purpose: SigningKey(random(32)) for purpose in PURPOSES}
    for purpose, key in keys.items():
        write_new(building / "keys" / f"{purpose}.key", key.unsafe_to_text())
    for name in (_PEPPER, _SEALING):
        write_new(building / "keys" / f"{name}.key", to_base64url(random(32)))
    claims = first_keyring(issuer, root, keys, now=now)
    document = [signing.sign(envelopes.KEYRING_DOCUMENT, claims, root)]
    write_new(building / "keyrings" / "1.json", to_bytes(document).decode())


def _make_database(settings: Settings) -> None:
    """Create the schema, in a new file or in a database that holds nothing yet."""
    engine = database.make_engine(settings.database_url)
    try:
        if settings.postgresql_url is None:
            os.close(os.open(settings.directory / DATABASE_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        elif not migrating.is_empty(engine):
            raise ServiceError("already_initialized", "the database is not empty")
        migrating.upgrade(engine)
    finally:
        engine.dispose()


def first_keyring(issuer: str, root: SigningKey, keys: dict[str, SigningKey], *, now: int) -> dict[str, object]:
    """The claims of a keyring of one root, version 1, good for a year from now."""
    return {
        "v": 1,
        "iss": issuer,
        "iat": now,
        "version": 1,
        "expires": now + limits.KEYRING_LIFE_S,
        "roots": {"threshold": 1, "keys": [root.verify_key.text]},
        "keys": [keyring_key(key, purpose, now=now) for purpose, key in keys.items()],
    }


def keyring_key(key: SigningKey, purpose: str, *, now: int) -> dict[str, object]:
    """The entry of a new key in a keyring: it may sign for one purpose, for a year from now."""
    return {
        "kid": key.kid,
        "key": key.verify_key.text,
        "purposes": [purpose],
        "not_before": now,
        "not_after": now + limits.SIGNING_KEY_LIFE_S,
        "distrusted_after": None,
    }


def _first_api_key(settings: Settings, clock: Callable[[], int], random: Callable[[int], bytes]) -> str:
    server = open_server(settings, clock=clock, random=random)
    try:
        made = api_keys.create(server, name="first", scopes=["admin"])
    finally:
        server.engine.dispose()
    text: str = made["key"]
    return text


def _place(building: Path, directory: Path, root_key: Path | None, root: SigningKey) -> None:
    """Put the directory, and the root's key if it is to be elsewhere, where they belong: both or neither."""
    if root_key is None:
        _move(building, directory)
        return
    write_new(root_key, root.unsafe_to_text())
    try:
        _move(building, directory)
    except ServiceError:
        root_key.unlink()
        raise


def _move(building: Path, directory: Path) -> None:
    sync_directory(building)
    try:
        building.rename(directory)  # also onto an empty directory, never onto a full one
    except OSError:
        raise ServiceError("already_initialized", str(directory)) from None
    sync_directory(directory.parent)


def write_new(path: Path, text: str) -> None:
    """Write a new file, owner-only from its first byte on, durably; never over another."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ServiceError("already_initialized", f"{path} is there already") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names that were made or changed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_server(
    settings: Settings,
    *,
    clock: Callable[[], int] = system_clock,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> Server:
    """Open the server that a directory holds. It does not ask whether the database is there or current.

    Raises:
        ServiceError: `not_initialized` if there is none; `signing_unavailable` if a key is missing, damaged, or
            readable by others.
    """
    directory = settings.directory
    if not (directory / _SETTINGS).is_file():
        raise ServiceError("not_initialized", str(directory))
    issuer = _read_issuer(directory / _SETTINGS)
    keyrings, keyring = _read_keyrings(directory / "keyrings", issuer)
    keys = directory / "keys"
    return Server(
        directory=directory,
        issuer=issuer,
        engine=database.make_engine(settings.database_url),
        clock=clock,
        random=random,
        keys={purpose: read_signing_key(keys / f"{purpose}.key") for purpose in PURPOSES},
        keyrings=keyrings,
        keyring=keyring,
        pepper=_secret(keys / f"{_PEPPER}.key"),
        sealer=Sealer(_secret(keys / f"{_SEALING}.key"), random),
        check_exclusion=ways.check_exclusion,
        webhook_hosts=settings.webhook_hosts,
    )


def _read_issuer(path: Path) -> str:
    settings = from_bytes(path.read_bytes()[:_SMALL_FILE_BYTES_MAX], bytes_max=_SMALL_FILE_BYTES_MAX)
    _SETTINGS_SHAPE(settings, _SETTINGS)
    issuer: str = settings["issuer"]
    return issuer


def _read_owner_only(path: Path) -> str:
    """Read a secret file, if it is one file, and its owner's alone."""
    name = f"{path.parent.name}/{path.name}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        raise ServiceError("signing_unavailable", f"{name} cannot be read") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise ServiceError("signing_unavailable", f"{name} must be readable by its owner only")
        data = file.read(_SMALL_FILE_BYTES_MAX)
    return data.decode("ascii", errors="replace").strip()


def read_signing_key(path: Path) -> SigningKey:
    """Read a secret key from a file that is its owner's alone; else raise `signing_unavailable`."""
    try:
        return SigningKey.from_text(_read_owner_only(path), checked_by=SodiumVerifyKey)
    except InputError:
        raise ServiceError("signing_unavailable", f"{path.parent.name}/{path.name} is damaged") from None


def _secret(path: Path) -> bytes:
    try:
        secret = from_base64url(_read_owner_only(path))
    except InputError:
        secret = b""
    if len(secret) != 32:
        raise ServiceError("signing_unavailable", f"keys/{path.name} is damaged")
    return secret


def _read_keyrings(folder: Path, issuer: str) -> tuple[dict[int, tuple[str, ...]], Keyring]:
    """Read the keyring documents, oldest first, each as its own roots have signed it."""
    found: dict[int, tuple[str, ...]] = {}
    newest: Keyring | None = None
    for path in sorted(folder.glob("*.json")):
        try:
            document = from_bytes(path.read_bytes(), bytes_max=limits.KEYRING_BYTES_MAX * limits.ROOTS_MAX)
            keyring = _open_own(document, issuer)
        except MeterkitError as error:
            raise ServiceError("signing_unavailable", f"keyrings/{path.name}: {error.code}") from None
        found[keyring.version] = tuple(document)
        if newest is None or keyring.version > newest.version:
            newest = keyring
    if newest is None:
        raise ServiceError("signing_unavailable", "there is no keyring")
    return found, newest


def _open_own(document: list[str], issuer: str) -> Keyring:
    """Open a keyring by the roots that it names itself: it is the server's own file."""
    if not isinstance(document, list) or not document:
        raise InputError("malformed_file", "keyring")
    payload = envelopes.unverified_parts(envelopes.KEYRING_DOCUMENT, document[0]).payload
    claims = from_bytes(payload, bytes_max=limits.KEYRING_BYTES_MAX)
    KEYRING(claims, "keyring")
    roots = claims["roots"]
    keyring, _ = envelopes.open_keyring(
        document, issuer=issuer, roots=tuple(roots["keys"]), threshold=roots["threshold"]
    )
    return keyring
