"""Whole fleets at random, each from one seed, against the real server: see `tests/simulator.py`."""

import subprocess
import sys
from pathlib import Path

import pytest
import sim_restores
import sim_run

SEEDS = 100
IN_CHUNK = 10
SIMULATOR = Path(__file__).parents[1] / "simulator.py"


@pytest.fixture
def play(first_fleet, tmp_path):
    """Play a seed on a fresh server."""

    def played(seed, name="server"):
        path = tmp_path / f"{name}-{seed}"
        path.mkdir()
        fleet = first_fleet.copy(path, seed=seed)
        try:
            return sim_run.play(fleet, seed)
        finally:
            fleet.remove()

    return played


ON_SQLITE = [("sqlite", range(first, first + IN_CHUNK)) for first in range(0, SEEDS, IN_CHUNK)]
ON_POSTGRESQL = ("postgresql", range(SEEDS, SEEDS + 5))


@pytest.mark.parametrize(("postgresql", "seeds"), [*ON_SQLITE, ON_POSTGRESQL], indirect=["postgresql"])
def test_whatever_befalls_a_fleet_the_server_says_what_is_true(play, seeds):
    for seed in seeds:
        run = play(seed)
        assert run.difference is None, run.explain()


@pytest.mark.parametrize("postgresql", ["sqlite"], indirect=True)
def test_a_seed_replays_its_run_exactly(play):
    one, two = play(3), play(3, "again")
    assert (one.digest, one.story) == (two.digest, two.story)
    assert play(4).digest != one.digest


@pytest.mark.parametrize("postgresql", ["sqlite"], indirect=True)
def test_a_run_that_differs_says_so_and_how_to_see_it_again(play, monkeypatch):
    monkeypatch.setattr("licensing_server.usage.taking.add_units", lambda *_: None)
    run = play(4)
    assert run.difference is not None
    assert "python tests/simulator.py 4" in run.explain()
    assert run.story[-1] in run.explain()


@pytest.mark.parametrize("postgresql", ["sqlite"], indirect=True)
def test_the_command_plays_the_same_run_from_a_server_of_its_own(play):
    command = [sys.executable, str(SIMULATOR), "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert play(3).digest in done.stdout


RESTORES = [
    ("sqlite", range(1_000, 1_010)),
    ("sqlite", range(1_010, 1_020)),
    ("postgresql", range(1_020, 1_023)),
]


@pytest.mark.parametrize(("postgresql", "seeds"), RESTORES, indirect=["postgresql"])
def test_a_server_put_back_from_backups_counts_all_that_was_used_once(first_fleet, tmp_path, seeds):
    for seed in seeds:
        path = tmp_path / str(seed)
        path.mkdir()
        fleet = first_fleet.copy(path, seed=seed)
        try:
            sim_restores.play(fleet, seed)
        finally:
            fleet.remove()
