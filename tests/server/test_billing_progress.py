"""`billing run` shows a person at a terminal how far it is, and says nothing of it to anything else."""

import json
import os
import re
import subprocess

import pytest
from serving import COMMAND

from licensing_server.billing import service
from licensing_server.database import write

CUSTOMERS = 101  # one more than are billed at once


@pytest.fixture
def biller(fleet_of_today):
    fleet_of_today.clock.now -= 60  # the command has a real clock
    return fleet_of_today


def bill_at_a_terminal(biller, *flags: str) -> tuple[int, str, bytes]:
    """Run the command with its errors on a terminal; gives its status, what stood there, and its output."""
    here, there = os.openpty()
    command = [COMMAND, "billing", "run", "--json", "--directory", str(biller.server.directory), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=there, env=biller.environment) as process:
        os.close(there)
        shown = b""
        while piece := read_terminal(here):
            shown += piece
        output, _ = process.communicate(timeout=120)
    os.close(here)
    return process.returncode, shown.decode(), output


def read_terminal(here: int) -> bytes:
    try:
        return os.read(here, 4096)
    except OSError:  # how Linux says that nobody holds its other end any more
        return b""


def counted(shown: str) -> list[str]:
    """How far the bar was, each time it was drawn."""
    return re.findall(r"(\d+/\d+)", shown)


def test_a_person_sees_how_many_customers_are_billed(biller):
    for _ in range(CUSTOMERS):
        biller.grant(customer=biller.add_customer())
    status, shown, output = bill_at_a_terminal(biller)
    assert (status, json.loads(output)["state"]) == (0, "done")
    assert counted(shown) == ["0/101", "100/101", "101/101"]
    assert "billing customers" in shown


def test_a_run_that_was_interrupted_is_seen_to_go_on(biller):
    biller.grant()
    biller.grant(customer=biller.add_customer())
    with write(biller.server) as connection:
        stored = service._start(biller.server, connection, None, None, "test")
    status, shown, output = bill_at_a_terminal(biller, "--cut-off", str(stored.cut_off))
    assert (status, json.loads(output)["number"]) == (0, stored.number)
    assert counted(shown) == ["0/2", "2/2"]
    biller.clock.now += 1
    with write(biller.server) as connection:
        service._start(biller.server, connection, None, None, "test")
    _, shown, _ = bill_at_a_terminal(biller)  # the interrupted one, then its own
    assert [counted(line) for line in shown.split("\n") if counted(line)] == [["0/2", "2/2"]] * 2


def test_nothing_is_said_where_nobody_looks(biller):
    biller.grant()
    command = [COMMAND, "billing", "run", "--directory", str(biller.server.directory)]
    done = subprocess.run(command, capture_output=True, env=biller.environment, timeout=120, check=True)
    assert done.stderr == b""
    assert b"done" in done.stdout
    assert b"billing customers" not in done.stdout


def test_a_refusal_has_a_line_of_its_own(biller):
    """An interrupted run comes first, and has its bar; of the one that is refused there is none."""
    biller.grant()
    with write(biller.server) as connection:
        service._start(biller.server, connection, None, None, "test")
    status, shown, output = bill_at_a_terminal(biller, "--customer", "cus_none")
    assert (status, output) == (1, b"")
    assert counted(shown) == ["0/1", "1/1"]
    assert re.search(r"\nmeterkit-server: .*not_found", shown)
