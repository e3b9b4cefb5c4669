"""Where a server's directory and database are: from the command line, else from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meterkit.errors import ServiceError

DIRECTORY = "METERKIT_DIRECTORY"
DATABASE_URL = "METERKIT_DATABASE_URL"
DATABASE_FILE = "meterkit.sqlite3"
POSTGRESQL = "postgresql+psycopg://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The server's own directory, and the URL of its PostgreSQL database. Without one, the embedded database is a
    file in the directory. The URL may hold a password: it is in no repr.
    """

    directory: Path
    postgresql_url: str | None = field(default=None, repr=False)

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
    return Settings(directory=Path(named).absolute(), postgresql_url=postgresql_url(environ))


def postgresql_url(environ: Mapping[str, str]) -> str | None:
    """The URL of the PostgreSQL database that the environment names, if any. No refusal shows it."""
    url = environ.get(DATABASE_URL)
    if url and not url.startswith(POSTGRESQL):
        raise ServiceError("database_unavailable", f"{DATABASE_URL} must start with {POSTGRESQL}")
    return url or None
