"""Where a server's directory and database are: from the command line, else from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meterkit.errors import ServiceError

DIRECTORY = "METERKIT_DIRECTORY"
DATABASE_FILE = "meterkit.sqlite3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The server's own directory. The embedded database is a file in it."""

    directory: Path

    @property
    def database_url(self) -> str:
        """The database's URL, as SQLAlchemy reads it."""
        return f"sqlite:///{self.directory / DATABASE_FILE}"


def read(environ: Mapping[str, str], directory: str | None = None) -> Settings:
    """Read the settings; what is given on the command line goes before the environment.

    Raises:
        ServiceError: `not_initialized` if neither names a directory.
    """
    named = directory or environ.get(DIRECTORY)
    if not named:
        raise ServiceError("not_initialized", f"name it with --directory or {DIRECTORY}")
    return Settings(directory=Path(named).absolute())
