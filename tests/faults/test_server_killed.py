"""`kill -9` of the server under load: what it acknowledged is there, and what devices used is counted once."""

import signal
import threading
import time

import httpx2
import pytest
from serving import Serving, exchange

KILLS = 3
DEVICES = 4


@pytest.fixture
def fleet(fleet_of_today):
    return fleet_of_today


@pytest.fixture
def serving(fleet, tmp_path):
    made = Serving(fleet, tmp_path)
    yield made
    made.close()


class Busy(threading.Thread):
    """A device that hands over what it uses, again and again, until it is told to come to an end."""

    def __init__(self, device, url, ending):
        super().__init__()
        self.device = device
        self.url = url
        self.ending = ending
        self.used = self.lost_replies = 0
        self.acknowledged = []
        self.fault = None

    def run(self):
        try:
            while not self.ending.is_set():
                self.used += 1
                self.device.use(1, at=int(time.time()))  # by the clock of the server's process
                self.hand_over(self.device.batch())
        except BaseException as fault:  # noqa: BLE001 - shown by the test
            self.fault = fault

    def hand_over(self, text):
        while True:
            try:
                self.device.take(exchange(self.url, text))
            except httpx2.TransportError:
                self.lost_replies += 1
                time.sleep(0.01)
            else:
                self.acknowledged.append(self.device.open_receipt(self.device.receipt).position)
                return


def test_killed_under_load_it_loses_nothing_and_counts_nothing_twice(fleet, serving):
    license_id = fleet.grant()
    ending = threading.Event()
    serving.start()
    busy = [Busy(fleet.device(license_id), serving.url, ending) for _ in range(DEVICES)]
    for each in busy:
        each.start()
    for number in range(1, KILLS + 1):
        while any(each.is_alive() and len(each.acknowledged) < 2 * number for each in busy):
            time.sleep(0.003 * number)
        serving.kill()
        serving.start()
    ending.set()
    for each in busy:
        each.join()
    assert [each.fault for each in busy] == [None] * DEVICES
    for each in busy:
        assert each.acknowledged[-1] == each.device.position
        assert [position.seq for position in each.acknowledged] == list(range(3, 3 + each.used))
    assert fleet.units(license_id) == sum(each.used for each in busy)
    assert any(each.lost_replies for each in busy)
    assert fleet.exceptions() == []


def test_asked_to_end_it_answers_what_it_has_begun(fleet, serving):
    license_id = fleet.grant()
    ending = threading.Event()
    serving.start()
    busy = Busy(fleet.device(license_id), serving.url, ending)
    busy.start()
    while busy.used < 3 and busy.is_alive():
        time.sleep(0.01)
    assert serving.stop() in {0, -signal.SIGTERM}  # uvicorn ends by the signal that it was sent
    while not busy.lost_replies and busy.is_alive():
        time.sleep(0.01)
    assert fleet.units(license_id) == len(busy.acknowledged)
    serving.start()
    ending.set()
    busy.join()
    assert busy.fault is None
    assert fleet.units(license_id) == busy.used
