"""A server that was restored from a backup: what it signed since, and forgot, its devices bring back (DESIGN §6).

A receipt that only this server can have signed, for a position that it does not know, proves that its own past
is lost. It is no fork and no reset: the device is asked for its records again, from the last position known here
on, and a person is told.
"""

from typing import Any, Protocol

from licensing_server.server import Server
from licensing_server.usage.branches import Adopted
from licensing_server.usage.records import Finding
from meterkit.envelopes import Addressee
from meterkit.errors import MeterkitError
from meterkit.exchange import Batch
from meterkit.ledger import Chain
from meterkit.positions import Position
from meterkit.receipts import Receipt, open_receipt, read_own, totals_to_claims

KIND = "server_rollback"
GONE = "records_gone"


class Known(Protocol):
    """What is known of a device's ledgers."""

    @property
    def device(self) -> str:
        """Whose they are."""

    def chain_at(self, position: Position) -> Any:
        """The chain at a position, or None if it is not known."""


def forgotten(server: Server, known: Known, batch: Batch) -> Receipt | None:
    """The receipt that a batch brings, if this server signed it for this device and does not know its position.

    A receipt that is not ours, or anybody else's, proves nothing and is passed over.
    """
    text = batch.has.receipt
    if text is None:
        return None
    try:
        if known.chain_at(read_own(text).position) is not None:  # nearly always: no signature to check then
            return None
        addressee = Addressee(issuer=server.issuer, product=batch.product, device=known.device)
        return open_receipt(text, keyring=server.keyring, addressee=addressee)
    except MeterkitError:
        return None


def gone(adopted: Adopted) -> Finding:
    """What a person is told of records that the device has no more: how many units they held, by which proof."""
    evidence = {
        "receipt": adopted.batch.has.receipt,
        "first": adopted.before.position.seq + 1,
        "last": adopted.receipt.position.seq,
        "units": totals_to_claims(adopted.gone),
    }
    return Finding(kind=GONE, license=adopted.batch.license_id, evidence=evidence)


def finding(batch: Batch, receipt: Receipt, reached: Chain) -> Finding:
    """What a person is told: the receipt itself as proof, and how far the server still knows the ledger."""
    evidence = {
        "receipt": batch.has.receipt,
        "position": receipt.position.to_claims(),
        "totals": totals_to_claims(receipt.totals),
        "signed_at": receipt.iat,
        "known": reached.position.to_claims(),
        "known_totals": totals_to_claims(reached.totals),
    }
    return Finding(kind=KIND, license=batch.license_id, evidence=evidence)
