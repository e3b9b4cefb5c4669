"""Fixtures that more than one package's tests use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Api, Fleet
from hypothesis import HealthCheck, settings
from postgresql import Cluster
from starlette.testclient import TestClient

from licensing_server.app import create_app

# How long an example takes is the machine's business, and what else it does: no test is about that.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real PostgreSQL, started for whoever asks for it first."""
    made = Cluster()
    yield made
    made.close()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def postgresql(request: pytest.FixtureRequest) -> Cluster | None:
    """Where a server has its database: once in the embedded one, once there."""
    found: Cluster | None = request.getfixturevalue("cluster") if request.param == "postgresql" else None
    return found


@pytest.fixture(scope="session")
def first_fleet(postgresql: Cluster | None, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A server as `init` makes it, once on each database: tests work on copies of it."""
    made = Fleet.start(tmp_path_factory.mktemp("fleet"), cluster=postgresql)
    made.close()
    return made


@pytest.fixture
def fleet(first_fleet: Fleet, tmp_path: Path) -> Iterator[Fleet]:
    """A real server in a temporary directory, under a clock that only the test moves."""
    made = first_fleet.copy(tmp_path, seed=2)
    yield made
    made.remove()


@pytest.fixture
def client(fleet: Fleet) -> Iterator[TestClient]:
    """The real application over HTTP, with no key; errors are answered, not raised."""
    with TestClient(create_app(fleet.server), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def api(client: TestClient, fleet: Fleet) -> Api:
    """The API as the vendor's own programs ask it: with a key that may do everything."""
    return Api(client, fleet.made.api_key)
