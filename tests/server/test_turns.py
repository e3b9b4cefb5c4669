"""Turns at writing to SQLite, among threads and processes."""

import shutil
import subprocess
import sys
import threading

import pytest

from licensing_server import turns
from licensing_server.database import next_number, read, write
from meterkit.errors import ServiceError

HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(embedded_fleet):
    """Another process that has its turn, and does not end it."""
    command = [sys.executable, "-c", HOLDER, embedded_fleet.server.directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def count(server) -> int:
    with write(server) as connection:
        return next_number(connection, "x")


def test_threads_write_one_after_the_other(embedded_fleet):
    found = []
    threads = [threading.Thread(target=lambda: found.append(count(embedded_fleet.server))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 17))


def test_one_who_waits_goes_on_when_the_other_process_is_gone(embedded_fleet, holder):
    found = []
    waiting = threading.Thread(target=lambda: found.append(count(embedded_fleet.server)))
    waiting.start()
    with read(embedded_fleet.server):  # reading takes no turn
        assert found == []
    holder.kill()
    waiting.join()
    assert found == [1]


@pytest.mark.usefixtures("holder")
def test_one_who_waits_too_long_is_told(embedded_fleet, monkeypatch):
    monkeypatch.setattr(turns, "BUSY_TIMEOUT_MS", 20)
    with pytest.raises(ServiceError) as refused:
        count(embedded_fleet.server)
    assert refused.value.code == "database_unavailable"


def test_a_turn_ends_with_what_fails_in_it(embedded_fleet):
    def broken():
        with write(embedded_fleet.server):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert count(embedded_fleet.server) == 1


def test_where_the_directory_is_gone_the_database_is_unavailable(embedded_fleet):
    shutil.rmtree(embedded_fleet.server.directory)
    with pytest.raises(ServiceError) as refused:
        count(embedded_fleet.server)
    assert refused.value.code == "database_unavailable"
