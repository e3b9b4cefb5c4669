"""Where a server's directory and database are, and its account at Stripe: from the environment, in the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from meterkit.errors import ServiceError

DIRECTORY = "METERKIT_DIRECTORY"
DATABASE_URL = "METERKIT_DATABASE_URL"
DATABASE_FILE = "meterkit.sqlite3"
POSTGRESQL = "postgresql+psycopg://"
WEBHOOK_HOSTS = "METERKIT_WEBHOOK_HOSTS"
STRIPE_KEY = "METERKIT_STRIPE_KEY"
STRIPE_API = "METERKIT_STRIPE_API"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The server's own directory, and the URL of its PostgreSQL database. Without one, the embedded database is a
    file in the directory. The URL may hold a password: it is in no repr. Webhooks reach a host whose address is
    internal only where it is named here.
    """

    directory: Path
    postgresql_url: str | None = field(default=None, repr=False)
    webhook_hosts: frozenset[str] = frozenset()

    @property
    def database_url(self) -> str:
        """The database's URL, as SQLAlchemy reads it."""
        return self.postgresql_url or f"sqlite:///{self.directory / DATABASE_FILE}"


def read(environ: Mapping[str, str], directory: str | None = None) -> Settings:
    """Read the settings; what is given on the command line goes before the environment.

    Raises:
        ServiceError: `not_initialized` if neither names a directory; `database_unavailable` for a URL of another
            database.
    """
    named = directory or environ.get(DIRECTORY)
    if not named:
        raise ServiceError("not_initialized", f"name it with --directory or {DIRECTORY}")
    hosts = environ.get(WEBHOOK_HOSTS, "").lower().split(",")
    return Settings(
        directory=Path(named).absolute(),
        postgresql_url=postgresql_url(environ),
        webhook_hosts=frozenset(host.strip().rstrip(".") for host in hosts) - {""},
    )


def postgresql_url(environ: Mapping[str, str]) -> str | None:
    """The URL of the PostgreSQL database that the environment names, if any. No refusal shows it."""
    url = environ.get(DATABASE_URL)
    if url and not url.startswith(POSTGRESQL):
        raise ServiceError("database_unavailable", f"{DATABASE_URL} must start with {POSTGRESQL}")
    return url or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripe:
    """An account at Stripe: its secret key, which no repr shows, and where the API is, if elsewhere."""

    secret_key: str = field(repr=False)
    api_base: str | None = None


def stripe(environ: Mapping[str, str]) -> Stripe:
    """Read the account at Stripe that the environment names. No refusal shows the key.

    Raises:
        ServiceError: `target_unavailable` without a key, or for an API that the key would reach in the clear.
    """
    key = environ.get(STRIPE_KEY, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ServiceError("target_unavailable", f"set {STRIPE_KEY}")
    base = environ.get(STRIPE_API) or None
    if base is not None and not _is_private(base):
        raise ServiceError("target_unavailable", f"{STRIPE_API}: https, or http on this machine")
    return Stripe(secret_key=key, api_base=base)


def _is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent there."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    plain = port != 0 and parts.username is None and not (parts.query or parts.fragment)
    return plain and bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK))
