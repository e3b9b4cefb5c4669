"""Opening a request before any transaction: signatures, form and hashes, which need no database but for a key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meterkit import ledger
from meterkit.errors import LedgerError, MeterkitError
from meterkit.exchange import Batch, open_batch
from meterkit.keys import VerifyKey
from meterkit.ledger import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBatch:
    """A batch whose signature is good and whose records hash to the head that it names."""

    text: str
    batch: Batch
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A request of one device, whose batches continue each other. Whether they may stand there is not judged."""

    device: str
    batches: tuple[OpenedBatch, ...]

    @property
    def last(self) -> Batch:
        """The newest of its batches."""
        return self.batches[-1].batch


def open_plain(texts: Sequence[str], find: Callable[[str], VerifyKey]) -> Opened | None:
    """Open a request, or give None where there is anything about it that takes a closer look (`judging`)."""
    found: list[OpenedBatch] = []
    signers = set()
    try:
        for text in texts:
            kid, batch = open_batch(text, find)
            signers.add(kid)
            if found and found[-1].batch.end != batch.start:
                return None
            found.append(OpenedBatch(text=text, batch=batch, entries=_entries(batch)))
    except MeterkitError:
        return None
    if len(signers) != 1 or not all(each.entries for each in found):
        return None
    return Opened(device=f"dev_{signers.pop()}", batches=tuple(found))


def _entries(batch: Batch) -> tuple[Entry, ...]:
    entries = ledger.read_all(batch.start, batch.bodies)
    if entries and entries[-1].hash != batch.head:
        raise LedgerError("chain_broken", "its head is not the hash of its last record")
    return tuple(entries)
