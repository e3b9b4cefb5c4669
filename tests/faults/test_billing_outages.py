"""Billing while its database is gone, or its disk is full: it says so, and goes on where it stopped when that is
over, without a restart. Nothing is billed twice, and no number is left out (BILLING §3, §5).
"""

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from billing_fleet import FEBRUARY, MARCH, Biller, at
from postgresql import Cluster

from licensing_server.billing import service
from licensing_server.billing.store import invoice_lines, invoices
from licensing_server.database import read
from licensing_server.pages import Page
from meterkit.errors import ServiceError

OUTAGES = (8, 24, 40, 60, 100)  # statements into a run, which has some 40, and into finalizing what it drafted
FILE_BYTES_MAX = 16 * 1024 * 1024


def make(path: Path, cluster: Cluster | None = None) -> Biller:
    """Two customers who owe something of January."""
    biller = Biller.start(path, cluster=cluster)
    customers = (biller.customer, biller.add_customer())
    plan = biller.plan_of(biller.calls("0.013"))
    devices = [biller.device(biller.grant(customer=customer, plan=plan)) for customer in customers]
    for device, units in zip(devices, (150, 7), strict=True):
        biller.use(device, units, at("2026-01-05"))
    biller.clock.now = MARCH
    biller.close()
    return biller


def bill_all(biller: Biller) -> None:
    """Run, and finalize what was drafted; raises ServiceError unless all of it was done."""
    made = service.run(biller.server, cut_off=FEBRUARY)
    if made["state"] != "done":
        raise ServiceError(made["failed"][0]["code"])
    for item in service.page(biller.server, Page(limit=200))["items"]:
        service.finalize(biller.server, item["id"])


def billed(biller: Biller) -> list[tuple]:
    """Every line of every document, with the document's number."""
    number, line = invoices.c.number, invoice_lines.c
    chosen = sa.select(number, invoices.c.customer, line.charge, line.start_at, line.amount_minor)
    joined = chosen.join(invoices, invoices.c.id == line.invoice).order_by(number, line.place)
    with read(biller.server) as connection:
        return [tuple(row) for row in connection.execute(joined)]


def expected_of(biller: Biller, path: Path) -> list[tuple]:
    """What is billed where nothing goes wrong."""
    whole = biller.copy(path / "whole", seed=9, durable=True)
    bill_all(whole)
    lines = billed(whole)
    whole.remove()
    assert len(lines) == 2
    assert sorted(line[-1] for line in lines) == [9, 195]  # 7 and 150 × 0.013 EUR
    return lines


def go_away_at(engine: sa.Engine, nth: int, cluster: Cluster) -> None:
    """Let the database end, once, as the nth statement is about to be carried out."""
    left = [nth]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            cluster.stop()

    sa.event.listen(engine, "before_cursor_execute", count)


# Connections that died with their server are dropped by the pool, not closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_database_goes_away_in_the_middle(tmp_path):
    cluster = Cluster()
    try:
        biller = make(tmp_path, cluster)
        expected = expected_of(biller, tmp_path)
        for nth in OUTAGES:
            again = biller.copy(tmp_path / str(nth), seed=9)
            go_away_at(again.server.engine, nth, cluster)
            for _ in range(2):  # and it stays away: asked again, it says the same
                with pytest.raises(ServiceError) as refused:
                    bill_all(again)
                assert refused.value.code == "database_unavailable"
            cluster.start()
            bill_all(again)
            assert billed(again) == expected, f"gone at statement {nth}"
            again.remove()
    finally:
        cluster.close()
        gc.collect()


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process can be written beyond so many bytes: the disk is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_disk_is_full_until_there_is_room(tmp_path):
    """Each time with somewhat more room, until there is enough: wherever it runs out, nothing is half done."""
    biller = make(tmp_path)
    expected = expected_of(biller, tmp_path)
    failed, size = [], 16 * 1024
    while size <= FILE_BYTES_MAX:
        again = biller.copy(tmp_path / str(size), seed=9, durable=True)
        try:
            with files_end_at(size):
                bill_all(again)
        except ServiceError as full:
            failed.append((size, full.code))
            bill_all(again)
        assert billed(again) == expected, f"files ended at {size} bytes"
        again.remove()
        if failed and failed[-1][0] != size:
            break
        size = size * 3 // 2
    assert len(failed) > 3
    assert {code for _, code in failed} == {"database_unavailable"}
    assert size <= FILE_BYTES_MAX
