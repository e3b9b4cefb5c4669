"""Fixtures that more than one package's tests use."""

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from billing_fleet import Biller
from fleet import START_S, Api
from hypothesis import HealthCheck, settings
from memory import in_memory
from postgresql import Cluster
from starlette.testclient import TestClient

from licensing_server.app import create_app

# How long an example takes is the machine's business, and what else it does: no test is about that.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

LONG = (  # whose single tests, or what a module of them shares, take many seconds
    "test_device_machine.py",
    "test_power_loss_replayed.py",
    "test_server_killed.py",
    "test_sigkill.py",
    "test_simulator.py",
    "test_usage_life.py",
)


def pytest_configure() -> None:
    """Have temporary directories in memory: thousands of tests write what is gone with them."""
    place = in_memory()
    if place is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, or else it is what one worker still has to do when the others have ended."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """Let no collection of garbage look through thousands of tests and all modules again: they stay."""
    gc.collect()
    gc.freeze()


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


# To make a server takes longer than most tests: each is made once, as `init` makes it, and tests work on copies.


def _made_once(cluster: Cluster | None, paths: pytest.TempPathFactory, *, now: int = START_S) -> Biller:
    made = Biller.start(paths.mktemp("fleet"), cluster=cluster, now=now)
    made.close()
    return made


def _copied(first: Biller, path: Path, *, now: int = START_S) -> Iterator[Biller]:
    made = first.copy(path, seed=2)
    made.clock.now = now
    yield made
    made.remove()


@pytest.fixture(scope="session")
def first_fleet(postgresql: Cluster | None, tmp_path_factory: pytest.TempPathFactory) -> Biller:
    """A server on each database."""
    return _made_once(postgresql, tmp_path_factory)


@pytest.fixture(scope="session")
def first_embedded_fleet(tmp_path_factory: pytest.TempPathFactory) -> Biller:
    """A server on the embedded database alone."""
    return _made_once(None, tmp_path_factory)


@pytest.fixture(scope="session")
def first_fleet_of_today(postgresql: Cluster | None, tmp_path_factory: pytest.TempPathFactory) -> Biller:
    """A server on each database that was made an hour ago."""
    return _made_once(postgresql, tmp_path_factory, now=int(time.time()) - 3_600)


@pytest.fixture(scope="session")
def first_embedded_fleet_of_today(tmp_path_factory: pytest.TempPathFactory) -> Biller:
    """A server on the embedded database alone that was made an hour ago."""
    return _made_once(None, tmp_path_factory, now=int(time.time()) - 3_600)


@pytest.fixture
def fleet(first_fleet: Biller, tmp_path: Path) -> Iterator[Biller]:
    """A real server in a temporary directory, under a clock that only the test moves."""
    yield from _copied(first_fleet, tmp_path)


@pytest.fixture
def embedded_fleet(first_embedded_fleet: Biller, tmp_path: Path) -> Iterator[Biller]:
    """The same on the embedded database, for what is not the database's business."""
    yield from _copied(first_embedded_fleet, tmp_path)


@pytest.fixture
def fleet_of_today(first_fleet_of_today: Biller, tmp_path: Path) -> Iterator[Biller]:
    """A real server under a clock that stands at the present: what else reads clocks agrees with it."""
    yield from _copied(first_fleet_of_today, tmp_path, now=int(time.time()))


@pytest.fixture
def embedded_fleet_of_today(first_embedded_fleet_of_today: Biller, tmp_path: Path) -> Iterator[Biller]:
    """The same on the embedded database."""
    yield from _copied(first_embedded_fleet_of_today, tmp_path, now=int(time.time()))


@pytest.fixture
def client(fleet: Biller) -> Iterator[TestClient]:
    """The real application over HTTP, with no key; errors are answered, not raised."""
    with TestClient(create_app(fleet.server), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def api(client: TestClient, fleet: Biller) -> Api:
    """The API as the vendor's own programs ask it: with a key that may do everything."""
    return Api(client, fleet.made.api_key)
