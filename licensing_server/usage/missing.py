"""Records that only a receipt stands for, and what may be them: while they come in pieces, they look like a fork.

Nobody can tell before they lead up to that receipt, or past it. Until then a person is told of a fork, but nothing
is kept from the device: it was the server that forgot.
"""

from collections.abc import Sequence

from licensing_server.usage.branches import Taken
from meterkit.tuples import NamedTuple


class Missing(NamedTuple):
    """The first and the last record of an epoch that a receipt stands for."""

    first: int
    last: int


def shows_a_clone(taken: Taken, missing: Sequence[Missing]) -> bool:
    """Whether a batch shows that two keep its ledger: what parts from a branch, and can't be what is missing.

    `missing` is what is still missing of the batch's epoch, once what the batch brings of it is not.
    """
    if taken.filled is not None:
        return False
    for gone in missing:
        if gone.first <= taken.before.position.seq + 1 <= gone.last:
            is_past = taken.after.position.seq >= gone.last
            return is_past or (taken.fork_at is not None and _is_second(taken, gone))
    return taken.fork_at is not None


def _is_second(taken: Taken, gone: Missing) -> bool:
    """Whether other records stand already where a batch's own would."""
    begins_amid = taken.before.position.seq + 1 > gone.first
    return begins_amid or any(gone.first <= tip.seq < gone.last for tip in taken.fork_of)
