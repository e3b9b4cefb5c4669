"""What a value read from JSON must look like, said once for each kind.

A shape is a function `(value, where) -> value` that returns the value it was given, or raises
`malformed_members` naming the place. `Members` is the shape of an object with exactly the named members.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from meterkit import limits
from meterkit.errors import InputError
from meterkit.positions import ZERO

Shape = Callable[[Any, str], Any]

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_BASE64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_BASE64URL_LAST = "AEIMQUYcgkosw048"  # of 32 bytes: the two unused bits are zero
_HEX = "0123456789abcdef"
_NAME_FIRST = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_NAME = f"{_NAME_FIRST}._-"


def refuse(where: str, why: str) -> InputError:
    """Make the error of a shape that does not fit."""
    return InputError("malformed_members", f"{where}: {why}")


class Members:
    """An object with exactly these members, each of its own shape."""

    def __init__(self, **shapes: Shape) -> None:
        self._shapes = shapes

    def __call__(self, value: Any, where: str) -> dict[str, Any]:
        """Return the object if it has exactly these members, each as it must be."""
        if not isinstance(value, dict):
            raise refuse(where, "must be an object")
        if value.keys() != self._shapes.keys():
            odd = sorted(value.keys() ^ self._shapes.keys())
            raise refuse(where, f"missing or unknown: {', '.join(odd)[:80]!a}")
        for name, shape in self._shapes.items():
            try:
                shape(value[name], name)
            except InputError as misfit:  # the place is put together only where something does not fit
                raise InputError(misfit.code, f"{where}.{misfit.detail}") from None
        return value


class Choice:
    """An object whose member `by` says which of several shapes the whole object has."""

    def __init__(self, by: str, **shapes: Members) -> None:
        self._by = by
        self._shapes = shapes

    def __call__(self, value: Any, where: str) -> dict[str, Any]:
        """Return the object if it has the shape that its own member chooses."""
        chosen = value.get(self._by) if isinstance(value, dict) else None
        if not isinstance(chosen, str) or chosen not in self._shapes:
            raise refuse(where, f"{self._by} must be one of {', '.join(sorted(self._shapes))}")
        return self._shapes[chosen](value, where)


def integer(least: int = 0, most: int = limits.INTEGER_MAX) -> Shape:
    """A whole number within bounds; true, 1.0 and "1" are none."""

    def shape(value: Any, where: str) -> Any:
        if type(value) is not int or not least <= value <= most:
            raise refuse(where, f"must be a whole number from {least} to {most}")
        return value

    return shape


def boolean(value: Any, where: str) -> Any:
    """True or false, and nothing that merely looks like it."""
    if type(value) is not bool:
        raise refuse(where, "must be true or false")
    return value


def matching(pattern: str, what: str) -> Shape:
    """Text that the pattern matches whole. It is compiled when it is first needed."""
    match: Callable[[str], Any] | None = None

    def shape(value: Any, where: str) -> Any:
        nonlocal match
        if match is None:
            match = re.compile(rf"(?:{pattern})\Z").match
        if not isinstance(value, str) or not match(value):
            raise refuse(where, f"must be {what}")
        return value

    return shape


def letters(alphabet: str, count: int, what: str, *, prefix: str = "", last: str = "") -> Shape:
    """Text of so many letters of an alphabet, after a prefix; the last one may have to be one of fewer.

    A pattern would say the same, and take longer to compile than a device takes to read its token.
    """
    chars, last = len(prefix) + count, last or alphabet

    def shape(value: Any, where: str) -> Any:
        if (
            not isinstance(value, str)
            or len(value) != chars
            or not value.startswith(prefix)
            or value[len(prefix) :].strip(alphabet)  # it takes letters from both ends until it meets another
            or value[-1] not in last
        ):
            raise refuse(where, f"must be {what}")
        return value

    return shape


def text(chars_max: int = limits.TEXT_CHARS_MAX, *, least: int = 1) -> Shape:
    """Text of bounded length, with no NUL and no lone surrogate."""

    def shape(value: Any, where: str) -> Any:
        if not isinstance(value, str) or not least <= len(value) <= chars_max:
            raise refuse(where, f"must be text of {least} to {chars_max} characters")
        if "\x00" in value or (not value.isascii() and re.search("[\ud800-\udfff]", value)):
            raise refuse(where, "holds a character that is no text")
        return value

    return shape


def one_of(*values: str | int) -> Shape:
    """One of a closed list."""

    def shape(value: Any, where: str) -> Any:
        if type(value) not in (str, int) or value not in values:
            raise refuse(where, f"must be one of {', '.join(map(str, values))}")
        return value

    return shape


def optional(inner: Shape) -> Shape:
    """Null, or what the inner shape asks for."""

    def shape(value: Any, where: str) -> Any:
        return None if value is None else inner(value, where)

    return shape


def listed(inner: Shape, items_max: int, *, least: int = 0, unique: bool = False) -> Shape:
    """A list of bounded length, each item of the inner shape."""

    def shape(value: Any, where: str) -> Any:
        if not isinstance(value, list) or not least <= len(value) <= items_max:
            raise refuse(where, f"must be a list of {least} to {items_max} items")
        for place, item in enumerate(value):
            try:
                inner(item, "")
            except InputError as misfit:
                raise InputError(misfit.code, f"{where}[{place}]{misfit.detail}") from None
        if unique and len(set(value)) != len(value):
            raise refuse(where, "names one thing twice")
        return value

    return shape


def mapping(inner: Shape, items_max: int) -> Shape:
    """An object with free names, each value of the inner shape."""

    def shape(value: Any, where: str) -> Any:
        if not isinstance(value, dict) or len(value) > items_max:
            raise refuse(where, f"must be an object of at most {items_max} members")
        for name, item in value.items():
            NAME(name, where)
            try:
                inner(item, name)
            except InputError as misfit:
                raise InputError(misfit.code, f"{where}.{misfit.detail}") from None
        return value

    return shape


def ident(prefix: str) -> Shape:
    """An identifier: the prefix, and 128 random bits in base32."""
    return letters(_BASE32, 26, f"an id that starts with {prefix}_", prefix=f"{prefix}_")


def NAME(value: Any, where: str) -> Any:  # noqa: N802 - a shape like those below
    """A name, as products, models and meters have them."""
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= limits.NAME_CHARS_MAX
        or value.strip(_NAME)
        or value[0] not in _NAME_FIRST
    ):
        raise refuse(where, "must be a name of letters, digits, '.', '_' and '-'")
    return value


TIME = integer(0, limits.TIME_MAX_S)
SIGNED_TIME = integer(0, limits.SIGNED_TIME_MAX_S)
SEQ = integer(0)
UNITS = integer(0)
KEY = letters(_BASE64URL, 43, "32 bytes in base64url", last=_BASE64URL_LAST)
KID = KEY
HASH = letters(_HEX, 64, "64 hex digits")
DEVICE = letters(_BASE64URL, 43, "a device id", prefix="dev_", last=_BASE64URL_LAST)
EPOCH = ident("ep")
LICENSE = ident("lic")
TOKEN = ident("tok")
BOOT = letters(f"{_HEX}-", 36, "a boot id")
VERSION_1 = one_of(1)
METER_UNIT = one_of("call", "item")
JWS = matching(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86}", "a compact JWS")
_POSITION = Members(epoch=EPOCH, seq=SEQ, head=HASH)


def POSITION(value: Any, where: str) -> Any:  # noqa: N802 - a shape like those above
    """A position: before the first record, and only there, seq is 0 and the head is all zeros."""
    _POSITION(value, where)
    if (value["seq"] == 0) != (value["head"] == ZERO):
        raise refuse(where, "an all-zero head and seq 0 go together")
    return value
