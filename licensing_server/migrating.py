"""Bringing a database to this version's schema, with Alembic and no ini file."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from licensing_server.database import HasEngine, migration, read
from licensing_server.settings import DATABASE_URL
from meterkit.errors import ServiceError

MOVED = "moved_"  # what the tables of a database are called whose data was moved to another


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "licensing_server:migrations")
    config.set_main_option("path_separator", "os")
    return config


def is_empty(engine: sa.Engine) -> bool:
    """Tell whether a database holds no table at all; raises `database_unavailable` where it cannot be asked."""
    with migration(engine) as connection:
        return not sa.inspect(connection).get_table_names()


def upgrade(engine: sa.Engine) -> None:
    """Run every migration that is missing, in one transaction; what fails leaves the schema as it was."""
    config = _config()
    with migration(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def is_current(connection: sa.Connection) -> bool:
    """Tell whether the database has exactly this version's schema."""
    wanted = set(ScriptDirectory.from_config(_config()).get_heads())
    return set(MigrationContext.configure(connection).get_current_heads()) == wanted


def check(server: HasEngine) -> None:
    """Return if the database can be reached and has this version's schema.

    Raises:
        ServiceError: `database_unavailable`, saying what to do.
    """
    with read(server) as connection:
        if sa.inspect(connection).has_table(f"{MOVED}counters"):
            raise ServiceError("database_unavailable", f"its data was moved; set {DATABASE_URL}")
        if not is_current(connection):
            raise ServiceError("database_unavailable", "another schema version; run `meterkit-server migrate`")
