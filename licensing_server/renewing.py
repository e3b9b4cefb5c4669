"""New online keys, and the next keyring that names them, signed by the root: each year, or because one was stolen.

The keys before stay in the keyring, so that what they signed stays good: that is judged by when it was signed,
never by now. A key that others may have is distrusted from an instant on: what it signed after that is refused.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.database import write
from licensing_server.directory import PURPOSES, keyring_key, sync_directory, write_new
from licensing_server.pages import Document
from licensing_server.server import Server
from meterkit import envelopes, limits, signing
from meterkit.canonical import to_bytes
from meterkit.errors import InputError, ServiceError, TrustError
from meterkit.keys import Keyring, KeyringKey, SigningKey

SHOWN = ("kid", "purposes", "not_before", "not_after", "distrusted_after")


def show_keys(keyring: Keyring) -> Document:
    """Show the keys that a keyring names, those that end first before others."""
    entries = sorted(keyring.keys.items(), key=lambda each: (each[1].not_after, each[0]))
    items = [{name: _kept(kid, entry, None)[name] for name in SHOWN} for kid, entry in entries]
    return {"version": keyring.version, "expires": keyring.expires, "items": items}


def renew(server: Server, roots: Sequence[SigningKey], *, distrusted: Mapping[str, int] | None = None) -> Document:
    """Replace all online keys, and sign the next keyring; it is good for a year from now.

    `distrusted` says of a key, by its id, after which instant nothing that it signed is to be believed. Processes
    that run go on with the keys that they have read: start them again. It does not change the roots.

    Raises:
        TrustError: `threshold_unmet` if these roots are not enough of those that the keyring names.
        InputError: `malformed_members` if there is no such key to distrust, or the instant is still to come.
        ServiceError: `signing_unavailable` if the clock lies before the keyring's, `state_conflict` if it was
            renewed meanwhile, `database_unavailable`. Nothing is changed then, unless the commit failed, or the
            disk: what was placed by then stays, unlogged, and the server can sign with it.
    """
    now, held = server.clock(), server.keyring
    signers = {root.verify_key.text: root for root in roots if root.verify_key.text in held.roots}
    if len(signers) < held.threshold:
        raise TrustError("threshold_unmet", f"{held.threshold} of the keyring's roots must sign")
    if not held.iat <= now <= limits.TIME_MAX_S - limits.KEYRING_LIFE_S:
        raise ServiceError("signing_unavailable", "the clock lies before the keyring's own time, or too far ahead")
    keys = {purpose: SigningKey(server.random(32)) for purpose in PURPOSES}
    claims = next_claims(held, keys, distrusted or {}, now=now)
    document = [signing.sign(envelopes.KEYRING_DOCUMENT, claims, root) for root in signers.values()]
    told = {"version": claims["version"], "expires": claims["expires"], "distrusted": dict(distrusted or {})}
    with write(server) as connection:
        audit_log.append(
            server, connection, who=audit_log.COMMAND, action="keyring.renew", subject=server.issuer, body=told
        )
        _place(server.directory, claims["version"], document, keys)
    return {**told, "keys": {purpose: key.kid for purpose, key in keys.items()}}


def next_claims(
    held: Keyring, keys: Mapping[str, SigningKey], distrusted: Mapping[str, int], *, now: int
) -> dict[str, Any]:
    """What the keyring after this one says: the new keys, and of the old ones as many as there is room for."""
    for kid, instant in distrusted.items():
        if kid not in held.keys or instant > now:
            raise InputError(
                "malformed_members", f"distrusted: {kid!a:.60} must be a key's id, and its instant past"
            )
    before = sorted(held.keys.items(), key=lambda each: each[1].not_after)
    kept = before[-(limits.KEYRING_KEYS_MAX - len(keys)) :]
    return {
        "v": 1,
        "iss": held.issuer,
        "iat": now,
        "version": held.version + 1,
        "expires": now + limits.KEYRING_LIFE_S,
        "roots": {"threshold": held.threshold, "keys": list(held.roots)},
        "keys": [
            *(_kept(kid, entry, distrusted.get(kid)) for kid, entry in kept),
            *(keyring_key(key, purpose, now=now) for purpose, key in keys.items()),
        ],
    }


def _kept(kid: str, entry: KeyringKey, distrusted_after: int | None) -> dict[str, Any]:
    instants = [each for each in (entry.distrusted_after, distrusted_after) if each is not None]
    return {
        "kid": kid,
        "key": entry.key.text,
        "purposes": sorted(entry.purposes),
        "not_before": entry.not_before,
        "not_after": entry.not_after,
        "distrusted_after": min(instants, default=None),
    }


def _place(folder: Path, version: int, document: list[str], keys: Mapping[str, SigningKey]) -> None:
    """The keyring first: it names the old keys and the new, so the server can sign with any mixture of them."""
    _put(folder / "keyrings" / f"{version}.json", to_bytes(document).decode(), replace=False)
    for purpose, key in keys.items():
        _put(folder / "keys" / f"{purpose}.key", key.unsafe_to_text(), replace=True)


def _put(path: Path, text: str, *, replace: bool) -> None:
    """Put a whole file in its place, durably, or leave what is there."""
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        write_new(beside, text)
        if replace:
            beside.replace(path)
        else:
            os.link(beside, path)
    except FileExistsError:
        raise ServiceError(
            "state_conflict", f"{path.name} is there already: the keys were renewed meanwhile"
        ) from None
    finally:
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)
