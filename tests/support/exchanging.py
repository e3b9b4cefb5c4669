"""What the exchange tests share: a device with usage, and what the server stored of it."""

import pytest
from fleet import MODEL, FakeDevice, Fleet

from licensing_server.database import read
from licensing_server.devices import token_store
from licensing_server.usage import store
from meterkit.errors import MeterkitError


def refused(call, *args, **kwargs):
    """The code with which a call is refused."""
    with pytest.raises(MeterkitError) as error:
        call(*args, **kwargs)
    return error.value.code


def used_device(fleet: Fleet, license_id: str) -> FakeDevice:
    """A device with 21 units in six records, none of them sent yet."""
    made = fleet.device(license_id)
    for units in (1, 2, 3, 4, 5, 6):
        made.use(units)
    return made


def stored_records(fleet: Fleet):
    with read(fleet.server) as connection:
        return connection.execute(store.usage_records.select()).all()


def stored_batches(fleet: Fleet):
    with read(fleet.server) as connection:
        return connection.execute(store.batches.select()).all()


def limit_of(device: FakeDevice) -> int | None:
    """How many units the token that a device holds allows."""
    return device.token.terms(MODEL).limit


def exposed(fleet: Fleet, license_id: str) -> int:
    """The exposure of a license on the one meter."""
    with read(fleet.server) as connection:
        return token_store.exposed_units(connection, license_id, (MODEL, "call"))
