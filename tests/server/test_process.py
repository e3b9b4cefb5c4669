"""A real `meterkit-server serve`, over a real socket, with more than one process on one directory."""

import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import httpx2
import psutil
import pytest
from device_site import wait_until
from exchanging import exposed, stored_batches, stored_records
from fleet import Api
from serving import COMMAND, Serving, exchange

from licensing_server import cli
from meterkit.exchange import ACTIVATION_MEDIA_TYPE, read_reply


@pytest.fixture
def fleet(fleet_of_today):
    return fleet_of_today


def test_a_life_over_a_socket_leaves_no_secret_in_the_log(fleet, serve, tmp_path):
    url = serve()
    with httpx2.Client(base_url=url, timeout=60) as client:
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


def test_a_hundred_retries_of_one_batch_at_once_on_two_processes_count_once(fleet, serve):
    urls = [serve(), serve()]
    license_id = fleet.grant(token_units_max=600, pool_units=1_000)
    device = fleet.device(license_id)
    for units in (1, 2, 3, 4):
        device.use(units)
    text = device.batch()
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda at: exchange(urls[at % 2], text), range(100)))
    assert len({reply.receipts for reply in replies}) == 1
    assert len({reply.token for reply in replies}) == 1  # whoever answered, the same token: one exposure
    assert (fleet.units(license_id), len(stored_batches(fleet)), len(stored_records(fleet))) == (10, 1, 4)
    assert exposed(fleet, license_id) == 600
    assert fleet.exceptions() == []


def test_serve_refuses_a_database_of_another_version(fleet):
    fleet.server.engine.dispose()
    fleet.empty_database()
    arguments = [COMMAND, "serve", "--directory", fleet.server.directory, "--port", "0"]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, check=False, env=fleet.environment
    )
    assert done.returncode == 1
    assert done.stderr.endswith("[database_unavailable]\n")
    assert "migrate" in done.stderr
    subprocess.run(
        [COMMAND, "migrate", "--directory", fleet.server.directory],
        check=True,
        capture_output=True,
        env=fleet.environment,
    )


def test_processes_that_share_a_port_both_answer_on_it_and_one_goes_on_alone(fleet, tmp_path):
    device = fleet.device(fleet.grant())
    with ExitStack() as stack:
        first = Serving(fleet, tmp_path, "--share-port")
        second = Serving(fleet, tmp_path, "--share-port", beside=first)
        for process in (first, second):
            stack.callback(process.close)
            process.start()
        assert second.url == first.url
        for process in (first, second):
            wait_until(partial(gets_its_share, process, stack))
        device.use(3)
        batch = device.batch()
        first.stop()
        replies = {exchange(second.url, batch).receipts for _ in range(3)}
    assert [device.open_receipt(text).position for (text,) in replies] == [device.position]
    assert fleet.exceptions() == []


def gets_its_share(process, stack):
    """Connect once more, and look whether the kernel has dealt the process any connection so far."""
    port = int(process.url.rpartition(":")[2])
    stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    found = psutil.Process(process.pid).net_connections("tcp4")
    return any(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


def test_what_is_answered_on_a_shared_port_is_sent_at_once():
    with (
        cli._shared_port("localhost", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("flags", "status"), [([], 3), (["--share-port"], 1)])
def test_a_port_that_is_not_shared_is_one_process_s_alone(fleet, serve, flags, status):
    port = serve().rpartition(":")[2]
    arguments = ["serve", "--directory", fleet.server.directory, "--port", port, *flags]
    refused = subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, env=fleet.environment, timeout=60, check=False
    )
    assert refused.returncode == status
    assert f"'127.0.0.1', {port}" in refused.stderr
    assert "Traceback" not in refused.stderr
