"""Servers as real processes, for the tests that need a socket."""

import pytest
from serving import Serving


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
