"""What a reply brings beside receipts and a token: the keyrings and revocations that the device lacks."""

from licensing_server.database import Connection
from licensing_server.devices import revocation_store
from licensing_server.licenses.store import License
from licensing_server.server import Server
from meterkit import limits
from meterkit.exchange import Has, Reply

NOTHING = Has()


def make(
    server: Server,
    connection: Connection,
    *,
    has: Has,
    receipts: tuple[str, ...],
    token: str | None,
    license_: License | None,
) -> Reply:
    """Put a reply together for a device that holds `has` already."""
    return compose(
        server, revocation_store.newest(connection), has=has, receipts=receipts, token=token, license_=license_
    )


def compose(
    server: Server,
    newest: tuple[int, str | None],
    *,
    has: Has,
    receipts: tuple[str, ...],
    token: str | None,
    license_: License | None,
) -> Reply:
    """The same, told the newest list of what is revoked."""
    lacking = [document for version, document in sorted(server.keyrings.items()) if version > has.keyring]
    version, revoked = newest
    return Reply(
        keyrings=tuple(lacking[: limits.REPLY_KEYRINGS_MAX]),
        revocations=revoked if version > has.revocations else None,
        receipts=receipts,
        token=token,
        models=tuple(grant.model for grant in license_.grants) if license_ else (),
    )
