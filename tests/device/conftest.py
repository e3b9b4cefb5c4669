import pytest
from device_site import MUL, Site, session, use

from meterkit import limits


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path / "device")
    yield made
    made.close()


@pytest.fixture
def used(site):
    """A device with usage of several windows in its ledger, all folded, and closed."""
    device = site.activated(MUL)
    running = session(device)
    for times in (3, 4, 5):
        use(running, times)
        site.time.run_on(limits.WINDOW_S)
    device.close()
    return device
