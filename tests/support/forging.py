"""What a vendor can forge who holds all of its own keys: any leaf of any part that the server writes or signs."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import core_world as world
import evidence_world as ew

from meterkit import envelopes, signing
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
