"""Where a webhook may go: to addresses of the public Internet, judged when a name was resolved, used as judged.

Whoever may name a URL could otherwise have the server ask the machines beside it, or itself.
"""

import ipaddress
import re
import socket
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from meterkit.errors import InputError, ServiceError

URL_CHARS_MAX = 2_048
_URL = re.compile(r"https://[\x21-\x7e]+\Z")
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z")
_GLOBAL_V6 = ipaddress.ip_network(
    "2000::/3"
)  # all that is given out to anyone; not ::ffff:0:0/96, 64:ff9b::/96, …
# Within what is given out: what leads to an IPv4 address (6to4, Teredo and its like), or nowhere at all.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in ("192.88.99.0/24", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a URL names: a host and port to connect to, and what to ask there."""

    host: str
    port: int
    authority: str  # as the Host header has it
    target: str


def read_url(url: str) -> Place:
    """Read a webhook's URL: https, without a user or a fragment, of plain ASCII.

    Raises:
        InputError: `malformed_members`.
    """
    try:
        parts = urlsplit(url) if len(url) <= URL_CHARS_MAX and _URL.match(url) else None
        port = parts.port if parts else None
    except ValueError:
        parts = None
    host = (parts.hostname or "") if parts else ""
    if parts is None or parts.username is not None or parts.fragment or "#" in url or port == 0 or "\\" in url:
        raise InputError("malformed_members", "url: it must be https://HOST/…, without a user or a fragment")
    literal = _literal(host)
    if literal is None and not _HOST.match(host):
        raise InputError("malformed_members", "url: the host is no name")
    shown = f"[{host}]" if literal is not None and literal.version == 6 else host
    return Place(
        host=host,
        port=port or 443,
        authority=shown if port in (None, 443) else f"{shown}:{port}",
        target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_named(place: Place, allowed: Collection[str]) -> None:
    """Return if a URL may be stored: it does not itself name an internal address.

    Raises:
        ServiceError: `url_forbidden`.
    """
    literal = _literal(place.host)
    if literal is not None and not is_allowed(place.host, allowed) and not is_public(literal):
        raise ServiceError("url_forbidden", "an internal address")


def is_allowed(host: str, allowed: Collection[str]) -> bool:
    """Whether a setting names this host as one that may be internal."""
    return host.rstrip(".") in allowed


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet's, for one receiver."""
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address not in _GLOBAL_V6):
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _REFUSED if network.version == address.version)
    )


def resolve(place: Place, allowed: Collection[str], seconds: float) -> list[tuple[Any, Any]]:
    """Resolve a host, once: gives the families and addresses to connect to, and to no others.

    If any address of a name is internal, none is used.

    Raises:
        ServiceError: `url_forbidden`.
        OSError: the name could not be resolved in time.
    """
    found = _look_up(place.host, place.port, seconds)
    if not is_allowed(place.host, allowed):
        for _, address in found:
            if not is_public(ipaddress.ip_address(address[0])):
                raise ServiceError("url_forbidden", "the host has an internal address")
    return found


def _look_up(host: str, port: int, seconds: float) -> list[tuple[Any, Any]]:
    """All addresses of a name. The system's resolver takes no deadline: where it is late, it is left behind."""
    found: list[tuple[Any, Any]] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend((family, address) for family, _, _, _, address in answers)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive() or not found:
        raise OSError("the name has no address")
    return list(found)
