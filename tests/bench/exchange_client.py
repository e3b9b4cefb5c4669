"""A client that sends prepared batches as fast as answers come: `exchange_client.py CONNECTIONS URL,… FILE…`.

Each file holds one device's batches, one a line; they are sent in order, and the devices are dealt out to the
connections. Prints the seconds from the first request to the last answer, and the median and 99th percentile of
the milliseconds that an answer took. An answer that is not 200 ends it.
"""

import asyncio
import statistics
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

HEAD = (
    "POST /v1/exchanges HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-mk-batch\r\n"
    "content-length: {length}\r\n\r\n"
)


async def send(url: str, files: list[Path], waited_s: list[float]) -> None:
    """Send some devices' batches over one connection, a batch of each in turn."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    devices = [path.read_bytes().split(b"\n") for path in files]
    for turn in range(max(map(len, devices), default=0)):
        for batches in devices:
            if turn < len(batches):
                started = time.perf_counter()
                head = HEAD.format(host=at.netloc, length=len(batches[turn]))
                writer.write(head.encode() + batches[turn])
                await answered(reader)
                waited_s.append(time.perf_counter() - started)
    writer.close()


async def answered(reader: asyncio.StreamReader) -> None:
    """Read one whole answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    if not head.startswith(b"HTTP/1.1 200 "):
        sys.exit(f"refused: {head.decode()} {body.decode()}")


async def main() -> None:
    """Deal the devices out, and send."""
    connections, urls, files = int(sys.argv[1]), sys.argv[2].split(","), [Path(name) for name in sys.argv[3:]]
    waited_s: list[float] = []
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(send(urls[number % len(urls)], files[number::connections], waited_s))
    seconds = time.perf_counter() - started
    cuts = statistics.quantiles(waited_s, n=100)
    print(seconds, 1e3 * cuts[49], 1e3 * cuts[98])


asyncio.run(main())
