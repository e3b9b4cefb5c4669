"""Opening a request before any transaction: signatures, form and hashes, which need no database but for a key."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from licensing_server.usage import store, usual
from licensing_server.usage.usual import Run
from meterkit import ledger
from meterkit.errors import LedgerError, MeterkitError
from meterkit.exchange import Batch, open_batch
from meterkit.keys import VerifyKey
from meterkit.ledger import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBatch:
    """A batch whose signature is good and whose records hash to the head that it names, also as it will be kept.

    Of a usual batch, `entries` are the records before its run.
    """

    text: str
    packed: bytes
    batch: Batch
    entries: tuple[Entry, ...]
    run: Run | None

    def all_entries(self) -> tuple[Entry, ...]:
        """Every record by itself."""
        return self.entries if self.run is None else tuple(ledger.read_all(self.batch.start, self.batch.bodies))


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
            found.append(_read(text, batch))
    except MeterkitError:
        return None
    if len(signers) != 1 or not all(each.batch.bodies for each in found):
        return None
    return Opened(device=f"dev_{signers.pop()}", batches=tuple(found))


def _read(text: str, batch: Batch) -> OpenedBatch:
    usually = usual.read(batch.start, batch.bodies)
    entries, run = usually or (ledger.read_all(batch.start, batch.bodies), None)
    hashes = [entry.hash for entry in entries] if run is None else run.hashes
    if hashes and hashes[-1] != batch.head:
        raise LedgerError("chain_broken", "its head is not the hash of its last record")
    return OpenedBatch(text=text, packed=store.pack(text), batch=batch, entries=tuple(entries), run=run)
