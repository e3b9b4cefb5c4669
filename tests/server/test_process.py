"""A real `meterkit-server serve`, over a real socket, with more than one process on one directory."""

import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from fleet import Api, Fleet

from meterkit.exchange import ACTIVATION_MEDIA_TYPE, BATCH_MEDIA_TYPE, read_reply

COMMAND = Path(sys.executable).parent / "meterkit-server"


@pytest.fixture
def fleet(tmp_path):
    made = Fleet.start(tmp_path, now=int(time.time()))
    yield made
    made.close()


@pytest.fixture
def serve(fleet, tmp_path):
    """Start servers on the fleet's directory; give their URLs."""
    started = []

    def start():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = (tmp_path / f"serve-{port}.log").open("wb")
        arguments = ["serve", "--directory", str(fleet.server.directory), "--port", str(port)]
        process = subprocess.Popen([COMMAND, *arguments], stdout=log, stderr=subprocess.STDOUT)
        started.append((process, log))
        url = f"http://127.0.0.1:{port}"
        for _ in range(400):
            try:
                if httpx2.get(f"{url}/readyz").status_code == 200:
                    return url
            except httpx2.TransportError:
                time.sleep(0.05)
        raise RuntimeError("the server did not come up")

    yield start
    for process, log in started:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()


def exchange(url, *texts):
    body = "\n".join(texts).encode()
    answer = httpx2.post(
        f"{url}/v1/exchanges", content=body, headers={"content-type": BATCH_MEDIA_TYPE}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return read_reply(answer.content)


def test_a_life_over_a_socket_leaves_no_secret_in_the_log(fleet, serve, tmp_path):
    url = serve()
    with httpx2.Client(base_url=url) as client:
        api = Api(client, fleet.made.api_key)
        license_id = fleet.grant()
        code = api.post(f"/v1/licenses/{license_id}/codes", {})["code"]
        device = fleet.device()
        headers = {"content-type": ACTIVATION_MEDIA_TYPE}
        answer = client.post("/v1/activations", content=device.request(code), headers=headers)
        device.take(read_reply(answer.content))
        device.install()
        device.use(5)
        reply = exchange(url, device.batch())
        assert device.open_receipt(reply.receipts[0]).position == device.position
        assert api.get("/v1/usage", license=license_id)["items"][0]["units"] == 5
        assert "server" not in answer.headers
    logged = b"".join(path.read_bytes() for path in tmp_path.glob("serve-*.log")).decode()
    secrets = [fleet.made.api_key.split(".")[1], code.split(".")[1], reply.token, device.request(code)]
    secrets += [path.read_text().strip().rsplit(".", 1)[-1] for path in fleet.server.directory.rglob("*.key")]
    assert logged
    assert not [secret for secret in secrets if secret in logged]
    assert not re.search(r"mk-secret|Traceback", logged)


def test_two_processes_on_one_directory_count_once(fleet, serve):
    urls = [serve(), serve()]
    license_id = fleet.grant()
    devices = [fleet.device(license_id) for _ in range(3)]
    texts = []
    for device in devices:
        for units in (1, 2, 3, 4):
            device.use(units)
        texts += [device.batch(1, last) for last in (3, 4, 5, 6)] * 2
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda case: exchange(urls[case[0] % 2], case[1]), enumerate(texts)))
    assert all(len(reply.receipts) == 1 for reply in replies)
    assert fleet.units(license_id) == 30
    assert fleet.exceptions() == []


def test_serve_refuses_a_database_of_another_version(fleet):
    fleet.server.engine.dispose()
    (fleet.server.directory / "meterkit.sqlite3").write_bytes(b"")
    arguments = [COMMAND, "serve", "--directory", fleet.server.directory, "--port", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("[database_unavailable]\n")
    assert "migrate" in done.stderr
    subprocess.run([COMMAND, "migrate", "--directory", fleet.server.directory], check=True, capture_output=True)
