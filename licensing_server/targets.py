"""Where usage goes that leaves the house: a named target takes raw usage or rated lines, never both (BILLING §7).

Who sent both to one system would bill there twice. What a target takes is decided by what it is sent first.
"""

from typing import Literal

import sqlalchemy as sa

from licensing_server.audit_log import service as audit_log
from licensing_server.database import Connection, metadata
from licensing_server.server import Server
from meterkit import shapes
from meterkit.errors import ServiceError

Takes = Literal["usage", "lines"]

export_targets = sa.Table(
    "export_targets",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("takes", sa.Text, nullable=False),  # usage | lines
    sa.Column("created_at", sa.BigInteger, nullable=False),
)


def claim(
    server: Server, connection: Connection, name: str, takes: Takes, *, who: str = audit_log.COMMAND
) -> None:
    """Return if a target may be sent this; a name that is new takes this and nothing else from now on, for good.

    Raises:
        InputError: `malformed_members` for what is no name.
        ServiceError: `target_conflict` if it takes the other.
    """
    shapes.NAME(name, "target")
    chosen = sa.select(export_targets.c.takes).where(export_targets.c.name == name)
    known = connection.execute(chosen).scalar_one_or_none()
    if known == takes:
        return
    if known is not None:
        raise ServiceError("target_conflict", f"{name} takes {known}")
    row = {"name": name, "takes": takes, "created_at": server.clock()}
    connection.execute(sa.insert(export_targets), [row])
    body = {"takes": takes}
    audit_log.append(server, connection, who=who, action="export_target.create", subject=name, body=body)
