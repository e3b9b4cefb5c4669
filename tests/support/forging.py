"""What a vendor can forge who holds all of its own keys: any leaf of any part that the server writes or signs."""

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

import core_world as world
import evidence_world as ew
from evidence_world import forge

from meterkit import audit, envelopes, signing
from meterkit.canonical import from_base64url, from_bytes, to_bytes
from meterkit.evidence import Bundle

SERVER_KEYS = {"mk-receipt+jws": "receipt", "mk-token+jwt": "token"}
Path = tuple[Any, ...]


def value_of(bundle: Bundle, name: str) -> Any:
    data = bundle.parts[name]
    return from_bytes(data if name.endswith(".json") else ew.payload(data), bytes_max=10**8)


def with_value(bundle: Bundle, name: str, value: Any) -> bytes:
    """The part with another content, signed with the server's own key where it is a signed one."""
    if name.endswith(".json"):
        return to_bytes(value)
    header = from_bytes(from_base64url(bundle.parts[name].split(b".")[0].decode()), bytes_max=512)
    kind = envelopes.KINDS[header["typ"]]
    return signing.sign(kind, value, world.key(SERVER_KEYS[kind.typ])).encode()


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf of a part, and where it is."""
    if isinstance(value, dict | list):
        for step in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[step], (*path, step))
    else:
        yield path, value


def put(value: Any, path: Path, new: Any) -> Any:
    """The same part with another leaf."""
    changed = copy.deepcopy(value)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = new
    return changed


def one_more(leaf: Any) -> Any:
    """The next value to a leaf's, or None where there is none."""
    if type(leaf) is bool:
        return not leaf
    if type(leaf) is int:
        return leaf + 1
    if isinstance(leaf, str) and re.fullmatch(r"\d+(\.\d+)?", leaf):
        return leaf[:-1] + str((int(leaf[-1]) + 1) % 10)
    return None


def another(leaf: Any) -> Any:
    """Another value of a leaf, whatever it is: one more, or another last letter."""
    if leaf is None:
        return 1
    new = one_more(leaf)
    if new is not None or not leaf:
        return new
    last = leaf[-1]
    return leaf[:-1] + (str((int(last) + 1) % 10) if last.isdigit() else "b" if last == "a" else "a")


def server_parts(bundle: Bundle) -> Iterator[str]:
    """The parts that the server writes or signs itself: those that it could forge."""
    for name in sorted(bundle.parts):
        if name.endswith(".json") or name.startswith(("receipts/", "tokens/")):
            yield name


def changed_by_one(bundle: Bundle) -> Iterator[tuple[str, audit.AuditResult]]:
    """Change every number, text and truth of the server's own parts, one at a time, all signed anew: each change's
    place, and what an audit says of it.
    """
    for name in server_parts(bundle):
        value = value_of(bundle, name)
        for path, leaf in leaves(value):
            new = one_more(leaf)
            if new is not None:
                forged = forge(bundle, {name: with_value(bundle, name, put(value, path, new))})
                yield f"{name} {'.'.join(map(str, path))}", audit.recompute(forged)


def unnoticed(found: Iterable[tuple[str, audit.AuditResult]], indifferent: Iterable[str]) -> list[str]:
    """The places of changes that an audit did not find, and should have."""
    return [
        place
        for place, result in found
        if result.holds and not any(re.fullmatch(each, place) for each in indifferent)
    ]
