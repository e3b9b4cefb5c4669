"""What devices can still report, as the database knows it and as the reference does, at many a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from licensing_server.billing import estimating
from licensing_server.billing.run_store import newest_acceptance
from licensing_server.database import read
from licensing_server.devices.store import devices
from licensing_server.devices.token_store import tokens
from licensing_server.licenses.store import licenses
from licensing_server.usage.chains import follow
from licensing_server.usage.store import batches
from meterkit import exposure
from meterkit.attribution import Run

if TYPE_CHECKING:
    from fleet import Fleet


def runs_through(connection: sa.Connection, count: int) -> list[Run]:
    """Runs whose limits are what was known when some of the batches had been accepted, the last one too."""
    newest = newest_acceptance(connection)
    return [_known_at(connection, 1 + (newest - 1) * place // count) for place in range(count + 1)]


def _known_at(connection: sa.Connection, acceptance_max: int) -> Run:
    chosen = sa.select(batches.c.received_at).where(batches.c.acceptance == acceptance_max)
    return Run(number=99, cut_off=connection.execute(chosen).scalar_one() + 1, acceptance_max=acceptance_max)


def compare_exposures(fleet: Fleet, count: int) -> list[estimating.Exposed]:
    """Ask both, run by run; gives what the database said. Nothing said is nothing left."""
    told = []
    with read(fleet.server) as connection:
        named, ids = (sorted(connection.execute(sa.select(table.c.id)).scalars()) for table in (devices, licenses))
        given = [estimating._open(body) for body in connection.execute(sa.select(tokens.c.body)).scalars()]
        replays = {device: follow(connection, device) for device in named}
        for run in runs_through(connection, count):
            expected = {
                (license_id, device, meter): most
                for license_id in ids
                for device in named
                for meter, most in exposure.of_device(
                    [each for each in given if (each.device, each.license_id) == (device, license_id)],
                    replays[device],
                    run,
                ).items()
            }
            found = estimating.exposures(connection, run, ids, named)
            assert _some(found) == _some(expected), run
            told.append(found)
    return told


def _some(found: estimating.Exposed) -> estimating.Exposed:
    return {name: most for name, most in found.items() if most != 0}
