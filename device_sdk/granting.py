"""What one admission off the fast path writes into the ledger: units returned, a lease, a thread's cell.

Each function works in the caller's transaction and changes nothing in memory that a rollback would belie.
"""

from __future__ import annotations

import os

from device_sdk import deciding, folding, leases
from device_sdk.cells import Cell, CellFile, Standing
from device_sdk.folding import CellRow, Folded
from device_sdk.holder import Holder
from device_sdk.leases import Lease
from device_sdk.ledger_transaction import SEQ_END, Transaction
from device_sdk.meters import MeterCount
from device_sdk.own_cells import OwnCells
from meterkit import ids
from meterkit.clocks import Instant
from meterkit.entitlements import Allowed, Denied
from meterkit.errors import LedgerError, MeterkitError
from meterkit.tokens import Token


def release(
    tx: Transaction, file: CellFile, count: MeterCount, *, returned: int, taken: int, now: Instant, sure: bool
) -> None:
    """Give back to the ledger what failed calls and ended leases left, which is noted after the commit.

    Where it is not known what the ledger says of the lease, it is told anew: what memory and cells hold, read in
    the order in which a unit moves (unused, started, given back), so that none is missed.
    """
    if sure:
        folding.change_lease(tx, file.name, count.meter, -returned, now.boot)
        return
    unused = count.unused()
    unfolded = folding.unfolded(tx, file, count.meter)
    since = count.returned - returned
    folding.set_lease(tx, file.name, count.meter, unused + unfolded + since + taken, now.boot)


def grant(
    tx: Transaction,
    holder: Holder,
    own: OwnCells,
    count: MeterCount,
    *,
    units: int,
    now: Instant,
    commit_ns: int,
    connection: int,
    folded: Folded,
) -> Lease | Denied | MeterkitError:
    """Decide at this edge, and take a lease if the call is allowed."""
    counted = (count.meter, count.digest)
    try:
        token = holder.current_token()
        deciding.check_serial(tx.token_before(SEQ_END), token)
    except LedgerError:
        raise
    except MeterkitError as fault:
        return fault
    decision = deciding.decide(tx, token, counted, units, now)
    over = not isinstance(decision, Allowed) or "over_limit" in decision.flags
    if over and not count.over_limit:
        # Units that a process took and did not use are free again once it is gone.
        folding.fold_all(tx, own.directory, now, folded)
        decision = deciding.decide(tx, token, counted, units, now)
    if isinstance(decision, Denied):
        return decision
    count.over_limit = "over_limit" in decision.flags
    leased = units if count.exact else _size(count, units, decision.left_units, commit_ns)
    scarce = decision.left_units is not None and leased >= leases.share_of(decision.left_units)
    file, _ = own.place()
    folding.change_lease(tx, file.name, count.meter, leased, now.boot)
    standing = _standing(token, decision, now, connection)
    return deciding.make_lease(leased, standing, token, now, scarce=scarce)


def extend(
    tx: Transaction,
    holder: Holder,
    own: OwnCells,
    count: MeterCount,
    *,
    now: Instant,
    commit_ns: int,
    connection: int,
) -> int:
    """Lease more units ahead of need, on the same standing as the lease in hand; gives how many.

    None are taken past an edge: what happens there is for the call that comes to it. What is left of a limit is
    left to whoever asks, where there is little.
    """
    lease = count.lease
    token = holder.current_token()
    named = tx.token_before(SEQ_END)
    if lease is None or named is None or named.jti != token.jti:
        return 0
    decision = deciding.decide(tx, token, (count.meter, count.digest), 0, now)
    if isinstance(decision, Denied):
        return 0
    standing = _standing(token, decision, now, connection)
    if standing != lease.standing:
        return 0
    held = leases.held(left_units=decision.left_units, pace_per_s=count.pace_per_s, commit_ns=commit_ns)
    units = max(0, held - count.unused())
    file, _ = own.place()
    folding.change_lease(tx, file.name, count.meter, units, now.boot)
    return units


def _standing(token: Token, decision: Allowed, now: Instant, connection: int) -> Standing:
    return Standing(
        window=now.window,
        token=token.jti,
        flags=decision.flags,
        provisional=now.provisional,
        connection=connection,
    )


def _size(count: MeterCount, units: int, left_units: int | None, commit_ns: int) -> int:
    return leases.size(units=units, left_units=left_units, pace_per_s=count.pace_per_s, commit_ns=commit_ns)


def renew_cell(
    tx: Transaction, own: OwnCells, count: MeterCount, cell: Cell | None, *, standing: Standing, now: Instant
) -> CellRow | None:
    """Past an edge, fold a thread's cell and state what its next record will say.

    Gives the row of a new cell where the thread has none yet, the token is another, or the slot is worn, else
    None.
    """
    model, unit = count.meter
    file, spare = own.place()
    worn = cell is not None and file.is_worn(cell.slot)
    if cell is not None and cell.standing == standing and not worn:
        return None
    row = folding.get_cell(tx, cell.id) if cell is not None else None
    if cell is not None and row is not None:
        folding.fold_cell(tx, row, file.read(cell.slot), now)
        if row.token == standing.token and not worn:
            folding.update_standing(tx, cell.id, standing.flags, provisional=standing.provisional)
            return None
    fresh = CellRow(
        cell=ids.make("cel", os.urandom(16)),
        file=file.name,
        slot=spare,
        token=standing.token,
        model=model,
        unit=unit,
        digest=count.digest,
        flags=standing.flags,
        provisional=standing.provisional,
        boot=now.boot,
        mark=file.count_at(spare),
    )
    folding.insert_cell(tx, fresh)
    file.prepare(spare, standing.window)
    return fresh
