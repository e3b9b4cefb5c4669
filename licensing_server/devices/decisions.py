"""What people decide about devices: that one is retired or lost, what is written off, and what is replaced."""

from dataclasses import replace
from typing import Any

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, read
from licensing_server.devices import decision_store, issue, token_store
from licensing_server.devices import service as devices
from licensing_server.devices.store import Device
from licensing_server.idempotency import NO_KEY, Once
from licensing_server.licenses import service as licenses
from licensing_server.licenses.store import License
from licensing_server.pages import Document, Page
from licensing_server.server import Server
from meterkit import limits
from meterkit.errors import ServiceError

DECLARED = ("active", "retired", "lost")  # between these a person may move a device


def show_exposures(server: Server, device_id: str) -> Document:
    """Show what a device's usable tokens may still let each life of its ledger use (DESIGN §4)."""
    with read(server) as connection:
        devices.find(connection, device_id)
        return {"items": token_store.read_exposures(connection, device_id), "next": None}


def write_off(server: Server, device_id: str, *, epoch: str, why: str, who: str, once: Once = NO_KEY) -> Document:
    """Count the exposure of one life of a device's ledger as 0: its pool may be given to others.

    It is a figure, no money, and takes nothing from the device: what it used after all is accepted and billed
    when it comes, and its coming undoes the write-off. Tokens given later are exposed anew.

    Raises:
        ServiceError: `not_found`; `state_conflict` where nothing of that ledger is exposed.
    """

    def make(connection: Connection) -> Document:
        devices.find(connection, device_id)
        for license_id in sorted({each["license"] for each in _exposed(connection, device_id, epoch)}):
            licenses.find(connection, license_id, lock=True)
        device = devices.find(connection, device_id)
        exposed = _exposed(connection, device_id, epoch)
        if not exposed:
            raise ServiceError("state_conflict", "nothing of this ledger is exposed")
        row = _write_off(server, connection, device, exposed, why=why, who=who)
        devices.save(connection, device)
        audit_log.append(server, connection, who=who, action="device.write_off", subject=device_id, body=row)
        return {**row, "reversed_at": None, "reversed_by": None}

    return once.run(server, make)


def _write_off(
    server: Server, connection: Connection, device: Device, exposed: list[Document], *, why: str, who: str
) -> Document:
    """Store that so much of one life of a ledger is written off, all that is exposed of it."""
    epoch = exposed[0]["epoch"]
    row = {
        "id": server.make_id("wof"),
        "device": device.id,
        "epoch": epoch,
        "serial": device.serial,
        "exposures": exposed,
        "why": why,
        "who": who,
        "created_at": server.clock(),
    }
    decision_store.insert_write_off(connection, row)
    issue.refresh(connection, device.id, epoch)
    return row


def declare(server: Server, device_id: str, *, state: str, why: str, who: str, once: Once = NO_KEY) -> Document:
    """Declare a device `retired` or `lost`, or take that back (`active`), saying why.

    Neither is expected to report any more: both are out of coverage, and get receipts only. Of a lost one, what
    its tokens may still let it use is written off, as a figure (BILLING §4); if it reports after all, that is
    undone, its usage is late usage, and it is active again. A retired one stays retired, whatever it reports. To
    take a declaration back undoes no write-off: its records do, when they come.

    Raises:
        ServiceError: `not_found`; `state_conflict` where it is in that state, or revoked or replaced.
    """

    def make(connection: Connection) -> Document:
        exposed = token_store.read_exposures(connection, devices.find(connection, device_id).id)
        for license_id in sorted({each["license"] for each in exposed}):
            licenses.find(connection, license_id, lock=True)
        device = devices.find(connection, device_id)
        if device.state not in DECLARED or device.state == state:
            raise ServiceError("state_conflict", f"it is {device.state}")
        made = []
        if state == "lost":
            epochs = sorted({each["epoch"] for each in token_store.read_exposures(connection, device_id)})
            own = [_exposed(connection, device_id, epoch) for epoch in epochs]
            made = [_write_off(server, connection, device, each, why=why, who=who) for each in own if each]
        devices.save(connection, replace(device, state=state))
        decision_store.insert_declaration(connection, device_id, state)
        body = {"from": device.state, "why": why, "write_offs": [each["id"] for each in made]}
        audit_log.append(server, connection, who=who, action=f"device.{state}", subject=device_id, body=body)
        return devices.find(connection, device_id).to_document()

    return once.run(server, make)


def _exposed(connection: Connection, device_id: str, epoch: str) -> list[dict[str, Any]]:
    found = token_store.read_exposures(connection, device_id)
    return [each for each in found if each["epoch"] == epoch and (each["units"] or each["unbounded"])]


def page_write_offs(server: Server, device_id: str, asked: Page) -> Document:
    """List what was written off of a device, who did it and why, and what came after all."""
    with read(server) as connection:
        devices.find(connection, device_id)
        return decision_store.page_write_offs(connection, device_id, asked)


def replace_device(server: Server, device_id: str, *, why: str, who: str, once: Once = NO_KEY) -> Document:
    """Put a new device in the place of one that is broken: frees its place, and makes a code for the new one.

    The old device is revoked, for good; what it used and brings later is taken and billed. What its tokens may
    still let it use stays out of the pool until it is written off. The code is shown this once.

    Raises:
        ServiceError: `not_found`; `state_conflict` for a device that is revoked, replaced already, or held for
            a fork; `license_inactive`; `replacements_used_up` beyond what a license has in one period.
    """

    def make(connection: Connection) -> Document:
        now = server.clock()
        license_ = licenses.find(connection, devices.find(connection, device_id).license or "", lock=True)
        device = devices.find(connection, device_id)
        _check_replaceable(connection, device, license_, now)
        expires_at = now + limits.REPLACEMENT_CODE_LIFE_S
        code = licenses.make_code(server, connection, license_.id, expires_at=expires_at, who=who)
        row = {
            "id": server.make_id("rpl"),
            "device": device_id,
            "license": license_.id,
            "code": code["id"],
            "why": why,
            "who": who,
            "created_at": now,
        }
        decision_store.insert_replacement(connection, row)
        devices.save(connection, replace(device, state="replaced"))
        decision_store.insert_declaration(connection, device_id, "retired")
        devices.publish_revocation(server, connection, "device", device_id, now)
        audit_log.append(server, connection, who=who, action="device.replace", subject=device_id, body=row)
        return {**row, "code": code}

    return once.run(server, make)


def _check_replaceable(connection: Connection, device: Device, license_: License, now: int) -> None:
    if device.license != license_.id:
        raise ServiceError("state_conflict", "it changed its license meanwhile")
    if device.state != "active" or device.held:
        raise ServiceError("state_conflict", "it is held for a fork" if device.held else f"it is {device.state}")
    devices.check_active(license_, now)
    most = max(1, license_.devices_max * limits.REPLACEMENTS_PERCENT // 100)
    since = now - limits.REPLACEMENT_PERIOD_S
    if decision_store.count_replacements(connection, license_.id, since) >= most:
        days = limits.REPLACEMENT_PERIOD_S // 86_400
        raise ServiceError("replacements_used_up", f"{most} in {days} days")


def page_replacements(server: Server, license_id: str, asked: Page) -> Document:
    """List the devices of a license that were replaced, by whom and why; never the codes' secrets."""
    with read(server) as connection:
        licenses.find(connection, license_id)
        return decision_store.page_replacements(connection, license_id, asked)
