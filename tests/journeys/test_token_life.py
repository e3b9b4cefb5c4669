"""A token's life, through real processes: issued, verified offline, due, in grace, ended, renewed, revoked."""

DAY_S = 86_400


def test_a_token_lives_until_its_grace_has_ended_and_a_sync_renews_it(server, device, model_path):
    license_id = server.grant(limit=1_000)
    activated = device("activate", server.code(license_id), server.url)
    assert device("run", model_path, 10) == {"delivered": 10, "code": None}
    server.stop()

    status = device("status")
    assert (status["state"], status["device"], status["license"]) == ("ok", activated["device"], license_id)
    assert status["models"][0]["left_units"] == 990

    device.shift_s = 25 * DAY_S
    assert device("status")["state"] == "renew_due"
    assert device("run", model_path, 10) == {"delivered": 10, "code": None}

    device.shift_s = 31 * DAY_S
    assert device("status")["state"] == "grace"
    assert device("run", model_path, 10) == {"delivered": 10, "code": None}

    device.shift_s = 38 * DAY_S
    ended = device("status")
    assert (ended["state"], ended["code"]) == ("denied", "token_expired")
    assert device("run", model_path, 1) == {"delivered": 0, "code": "token_expired"}
    assert device("sync") == {"refused": "server_unreachable"}

    server.move_clock(38 * DAY_S)
    server.start()
    assert {each["part"]: each["state"] for each in device("sync")} == {"receipt": "taken", "token": "taken"}
    assert device("status")["state"] == "ok"
    assert device("run", model_path, 10) == {"delivered": 10, "code": None}
    items = server.ask("GET", f"/usage?license={license_id}")["items"]
    assert [(item["model"], item["units"]) for item in items] == [("mul", 30)]


def test_a_revoked_device_stops_at_its_next_sync(server, device, model_path):
    license_id = server.grant()
    device_id = device("activate", server.code(license_id), server.url)["device"]
    assert device("run", model_path, 3)["delivered"] == 3
    server.ask("POST", f"/devices/{device_id}/revoke")
    parts = {each["part"]: each["state"] for each in device("sync")}
    assert parts == {"revocations": "taken", "receipt": "taken"}
    assert device("run", model_path, 1) == {"refused": "token_revoked"}
    assert server.ask("GET", f"/usage?license={license_id}")["items"][0]["units"] == 3


def test_a_limit_is_refused_with_a_code_and_a_sync_frees_it(server, device, model_path):
    device("activate", server.code(server.grant(limit=25)), server.url)
    assert device("run", model_path, 40) == {"delivered": 25, "code": "limit_reached"}
    assert device("status")["code"] == "limit_reached"
    device("sync")
    assert device("run", model_path, 40) == {"delivered": 25, "code": "limit_reached"}


def test_a_code_for_one_place_serves_one_device(server, device, offline_device):
    code = server.code(server.grant(devices_max=1))
    device("activate", code, server.url)
    assert device("activate", code, server.url)["device"]
    offline_device.network = "online"
    assert offline_device("activate", code, server.url) == {"refused": "code_used_up"}
