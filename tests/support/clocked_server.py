"""A real server process under a clock that a test moves: `clocked_server.py DIRECTORY PORT CLOCK_FILE`.

The clock file holds seconds to add to the system's time. The product has no such switch: this script injects a
clock where `meterkit-server serve` injects the system's.
"""

import sys
import time
from pathlib import Path

import uvicorn

from licensing_server.app import create_app
from licensing_server.directory import open_server
from licensing_server.heads import BoundedHeads
from licensing_server.settings import Settings


def main() -> None:
    directory, port, clock_file = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    def clock() -> int:
        return int(time.time()) + int(clock_file.read_text() or 0)

    server = open_server(Settings(directory=directory), clock=clock)
    settings = {"log_level": "warning", "access_log": False, "http": BoundedHeads}
    uvicorn.run(create_app(server), host="127.0.0.1", port=port, **settings)


main()
