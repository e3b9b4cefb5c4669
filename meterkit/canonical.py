"""The one way a value becomes bytes, and the one way bytes become a value.

Out: RFC 8785, whole numbers only. In: strict JSON (FORMATS, "Encodings"). Hashes carry their purpose, so
that nothing hashed as one thing can pass for another.
"""

from __future__ import annotations

import binascii
import functools
import json
from typing import Any, NoReturn

from cryptography.hazmat.primitives.hashes import SHA256, Hash

from meterkit import limits
from meterkit.errors import InputError

_CONTAINERS = (dict, list)
_SEQUENCES = (list, tuple)
_TO_URL, _FROM_URL = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")
_PIECE_BYTES = 1024 * 1024
_LAST_CHARACTERS = ("", None, "AQgw", "AEIMQUYcgkosw048")  # by length modulo 4: its unused bits are zero
_WRITER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
# What a number may stand behind becomes a colon, and each digit a zero.
_NUMBERS_MARKED = bytes.maketrans(b" \t\r\n[,123456789", b"::::::000000000")


def to_bytes(value: Any) -> bytes:
    """Write a value as canonical JSON (RFC 8785).

    Members are sorted by UTF-16 code units. Numbers must be whole and within ±(2^53 − 1).

    Raises:
        InputError: `malformed_json` for a float, a lone surrogate, a number out of range, or another type.
    """
    text = _WRITER.encode(_ordered(value))
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("malformed_json", "lone surrogate") from None


def _ordered(value: Any) -> Any:
    if isinstance(value, int):
        if not -limits.INTEGER_MAX <= value <= limits.INTEGER_MAX:
            raise InputError("malformed_json", "number out of range")
        return value
    if value is None or isinstance(value, str):
        return value
    if type(value) in _SEQUENCES:  # a record is a tuple too, and must say itself how it is written
        return [_ordered(item) for item in value]
    if isinstance(value, dict):
        try:
            ascii_only = "".join(value).isascii()  # then code points are in the same order as UTF-16 code units
        except TypeError:
            raise InputError("malformed_json", "member name is not text") from None
        ordered = sorted(value, key=None if ascii_only else _utf_16)
        return {name: each if type(each := value[name]) is str else _ordered(each) for name in ordered}
    raise InputError("malformed_json", f"{type(value).__name__} has no canonical form")


def _utf_16(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def from_bytes(data: bytes, *, bytes_max: int) -> Any:
    """Read strict JSON: no duplicate member, float, exponent, mark, lone surrogate, or depth above 8.

    It does not judge which members there are (`meterkit.shapes` does), nor that the bytes are canonical.

    Raises:
        InputError: `too_large`, `not_text` or `malformed_json`; never another type, in bounded time.
    """
    if len(data) > bytes_max:
        raise InputError("too_large", f"{len(data)} bytes, at most {bytes_max}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("not_text", "not UTF-8") from None
    try:
        value = (_STRICT if _has_doubtful_number(data) else _PLAIN_NUMBERS).decode(text)
    except (ValueError, RecursionError):
        raise InputError("malformed_json", "does not parse") from None
    if text.count("{") + text.count("[") > limits.JSON_DEPTH_MAX:  # fewer can't be nested deeper
        _check_depth(value)
    if "\\u" in text:
        _check_surrogates(value)
    return value


def _has_doubtful_number(data: bytes) -> bool:
    """Whether a number may be out of range, or a minus zero; it may also only be a piece of text."""
    marked = b":" + data.translate(_NUMBERS_MARKED)
    return b":-" in marked or b":0000000000000000" in marked


def from_canonical(data: bytes, *, bytes_max: int) -> Any:
    """Read strict JSON that must also be byte for byte canonical, as ledger records are."""
    value = from_bytes(data, bytes_max=bytes_max)
    if to_bytes(value) != data:
        raise InputError("not_canonical")
    return value


def _check_depth(value: Any) -> None:
    """Walk the containers level by level: as many as there are, which the size of the text bounds."""
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(limits.JSON_DEPTH_MAX):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _CONTAINERS
        ]
    if level:
        raise InputError("malformed_json", f"nested deeper than {limits.JSON_DEPTH_MAX}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError("malformed_json", "a member stands twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 17 or digits == "-0" or abs(int(digits)) > limits.INTEGER_MAX:
        raise InputError("malformed_json", "number out of range")
    return int(digits)


def _refuse_number(_: str) -> NoReturn:
    raise InputError("malformed_json", "only whole numbers are allowed")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("malformed_json", "lone surrogate") from None


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_refuse_number, parse_constant=_refuse_number
)
_PLAIN_NUMBERS = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_refuse_number, parse_constant=_refuse_number
)


def digest(purpose: str, *parts: bytes) -> bytes:
    """Hash parts for one purpose: SHA-256 of the purpose line and the parts. 32 bytes.

    The parts are joined as they are: at most the last one may vary in length.
    """
    hashing = _begun(purpose).copy()
    hashing.update(b"".join(parts))
    return hashing.finalize()


@functools.cache
def _begun(purpose: str) -> Hash:
    # Not by `hashlib`: it loads OpenSSL a second time, 3 ms of a device's start, and is hardly faster.
    begun = Hash(SHA256())
    begun.update(f"{purpose}/1\n".encode("ascii"))
    return begun


def sha256_hex(data: bytes) -> str:
    """Hash a file's exact bytes, as model digests and evidence manifests name them."""
    hashing = Hash(SHA256())
    whole = memoryview(data)
    for at in range(0, len(whole), _PIECE_BYTES):  # in pieces: other threads go on in between
        hashing.update(whole[at : at + _PIECE_BYTES])
    return hashing.finalize().hex()


def to_base64url(data: bytes) -> str:
    """Write bytes as unpadded base64url (RFC 7515 §2)."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL).decode("ascii")


def from_base64url(text: str) -> bytes:
    """Read unpadded base64url whose last character is canonical.

    Raises:
        InputError: `malformed_envelope`, for padding, another alphabet, or bits that nobody wrote.
    """
    last = _LAST_CHARACTERS[len(text) % 4]
    if last is None or "+" in text or "/" in text or "=" in text:
        raise InputError("malformed_envelope", "not base64url")
    if last and text[-1] not in last:
        raise InputError("malformed_envelope", "base64url is not canonical")
    try:
        padded = text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4)
        return binascii.a2b_base64(padded, strict_mode=True)
    except ValueError:
        raise InputError("malformed_envelope", "not base64url") from None
