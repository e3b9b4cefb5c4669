"""Servers to be billed, and as real processes for the tests that need a socket."""

import pytest
from serving import Serving
from webhook_receiver import Receiver


@pytest.fixture
def biller(fleet):
    """The fleet, whose customer is billed."""
    return fleet


@pytest.fixture
def serve(fleet, tmp_path):
    """Start servers on the fleet's directory; give their URLs. What they log is in `serve-<port>.log`."""
    started = []

    def start():
        serving = Serving(fleet, tmp_path)
        started.append(serving)
        serving.start()
        return serving.url

    yield start
    for serving in started:
        serving.close()


@pytest.fixture
def receiver(tmp_path, monkeypatch):
    """Who receives webhooks at `localhost`; its certificate is trusted."""
    made = Receiver(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    yield made
    made.stop()
