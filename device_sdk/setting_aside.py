"""Setting a ledger aside that cannot go on: its good part is handed over, and its live rows move to the next one.

Nothing of it is needed on the way to an answer: it is loaded when a ledger is damaged, or handed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from device_sdk import epochs, folding, timekeeper
from device_sdk.files import remove_file, sync_directory
from device_sdk.ledger_store import LedgerStore
from device_sdk.ledger_transaction import Transaction
from device_sdk.readings import Clocks
from device_sdk.vault import Vault
from meterkit import ledger, usage
from meterkit.errors import LedgerError, MeterkitError
from meterkit.ledger import Chain, Entry
from meterkit.positions import Position
from meterkit.tuples import NamedTuple
from meterkit.usage import record_shape


class _Found(NamedTuple):
    """What could be read of a ledger: how far it holds, where it ends, and its live rows."""

    live: dict[str, list[tuple[object, ...]]]
    good: Position | None = None
    end_seq: int = 0
    token: dict[str, Any] | None = None


def set_aside(vault: Vault, clocks: Clocks, device: str, known: list[Position], *, signed_s: int) -> None:
    """Put a ledger that cannot go on aside, and begin a new epoch in its place.

    The good part stays where it can be handed over. What no longer holds is named as lost; live cells and
    leases move to the new ledger, so that what they count is not lost with the old one. A kill at any moment
    leaves either the old ledger in place or the new one; where another process was faster, nothing is done.
    """
    with vault.locked(), ExitStack() as held:
        try:
            tx = held.enter_context(LedgerStore(vault.ledger, lenient=True).write())
        except LedgerError as fault:
            if fault.code != "ledger_damaged":
                raise
            found = _Found(live={})
        else:  # nobody folds into the old ledger any more until the new one is in its place
            if _is_sound(tx, device, known):
                return
            found = _Found(live={}) if _is_foreign(tx, device) else _find(tx, device, known)
        _begin_anew(vault, clocks, device, found, known, signed_s=signed_s)


def _find(tx: Transaction, device: str, known: list[Position]) -> _Found:
    good, end_seq = _good_end(tx, device)
    live = _live_rows(tx)
    if _is_of_the_past(tx, known):
        live = {"state": live.get("state", [])}
    return _Found(good=good, end_seq=end_seq, token=_last_token(tx), live=live)


def _is_of_the_past(tx: Transaction, known: list[Position]) -> bool:
    """Whether the server has accepted more than is here. Before that was signed, every cell was folded: what the
    cells and leases of this ledger would still prove has been recorded, and billed, already.
    """
    try:
        end = tx.position()
    except LedgerError:
        return False
    return any(at.epoch == end.epoch and at.seq > end.seq for at in known)


def _is_foreign(tx: Transaction, device: str) -> bool:
    """Whether it is another device's: its tokens, cells and leases are nothing to this one."""
    try:
        genesis = json.loads(next(tx.bodies(1)))
        return bool(genesis["device"] != device)
    except (LedgerError, StopIteration, ValueError, TypeError, KeyError):
        return False


def _begin_anew(
    vault: Vault, clocks: Clocks, device: str, found: _Found, known: list[Position], *, signed_s: int
) -> None:
    good = found.good
    known = [at for at in known if good is None or at.epoch == good.epoch]
    lost = (good.seq + 1, found.end_seq) if good is not None and found.end_seq > good.seq else None
    fresh = os.path.join(vault.directory, ".ledger-next.sqlite")
    try:
        _unlink_ledger(fresh)
        store = LedgerStore(fresh)
        with store.write() as tx:
            _restore_rows(tx, found.live if found.token else {"state": found.live.get("state", [])})
            previous = epochs.newest([good, *known] if good else known)
            epochs.start(tx, clocks, device, previous, signed_s=signed_s, lost=lost)
            now = timekeeper.observe(tx, clocks)
            entry = tx.append(usage.recovery("ledger_set_aside"), time=now.effective_s, boot=now.boot)
            if found.token is not None:  # what live cells count is recorded under its license
                tx.append(found.token, time=now.effective_s, boot=now.boot)
            timekeeper.carry_over(tx, entry.seq)
        store.drop()
        _keep(vault, f"ledger-{good.epoch if good else os.urandom(16).hex()}.sqlite")
        sync_directory(vault.directory)  # or a power loss might leave the old ledger with neither name
        os.replace(fresh, vault.ledger)
        _unlink_ledger(fresh)
        sync_directory(vault.directory)
    except OSError as fault:
        raise LedgerError("ledger_unwritable", fault.strerror or "") from None


def _keep(vault: Vault, name: str) -> None:
    """Give the old ledger its second name. A journal with something in it belongs to it, and goes with it."""
    old, kept = vault.ledger, os.path.join(vault.directory, name)
    if os.path.exists(kept) and not (os.path.exists(old) and os.path.samefile(kept, old)):
        kept = f"{kept.removesuffix('.sqlite')}-{os.urandom(4).hex()}.sqlite"
    journal = _journal(old)
    if os.path.exists(journal) and os.path.getsize(journal):
        os.replace(journal, _journal(kept))
    if os.path.exists(old) and not os.path.exists(kept):
        os.link(old, kept)


def _journal(ledger_path: str) -> str:
    return f"{ledger_path}-journal"


def _unlink_ledger(path: str) -> None:
    for each in (path, _journal(path)):
        remove_file(each)


_LIVE = {
    "cells": "INSERT INTO cells VALUES (?,?,?,?,?,?,?,?,?,?,?)",
    "leases": "INSERT INTO leases VALUES (?,?,?,?,?)",
    "state": "INSERT INTO state VALUES (?,?)",
}
_READ = {
    "cells": "SELECT * FROM cells",
    "leases": "SELECT * FROM leases",
    "state": "SELECT * FROM state WHERE name IN ('clock', 'mended')",
}


_HOLDS: dict[str, Callable[[tuple[Any, ...]], bool]] = {
    "cells": folding.is_cell,
    "leases": folding.is_lease,
    "state": lambda row: tuple(map(type, row)) == (str, str),
}


def _live_rows(tx: Transaction) -> dict[str, list[tuple[object, ...]]]:
    live: dict[str, list[tuple[object, ...]]] = {}
    for table, sql in _READ.items():
        with suppress(LedgerError):
            live[table] = list(filter(_HOLDS[table], tx.rows(sql)))
    try:
        timekeeper.load(tx)
    except LedgerError:
        live["state"] = [row for row in live.get("state", []) if row[0] != "clock"]
    return live


def _last_token(tx: Transaction) -> dict[str, Any] | None:
    """What the ledger's last readable `token` record says, to be said again in the next epoch."""
    try:
        rows = tx.rows("SELECT body FROM records WHERE kind = 'token' ORDER BY seq DESC LIMIT 1")
        claims = [json.loads(body) for (body,) in rows]
        members = ("kind", "jti", "serial", "iat", "license", "anchor")
        found = [{name: claim[name] for name in members} for claim in claims]
        for each in found:
            record_shape({"v": 1, "seq": 1, "time": 0, "boot": "0" * 36, **each}, "token")
    except (MeterkitError, ValueError, TypeError, KeyError):
        return None
    return found[0] if found else None


def _restore_rows(tx: Transaction, live: dict[str, list[tuple[object, ...]]]) -> None:
    for table, rows in live.items():
        for row in rows:
            tx.execute(_LIVE[table], row)


def _is_sound(tx: Transaction, device: str, known: list[Position]) -> bool:
    """Whether a ledger can go on: all of it holds, and each kind of row can be written."""
    try:
        epochs.check(tx, known)
        first = tx.cut() + 1
        after, _, fault = ledger.good_prefix(tx.chain_before(first, device), tx.bodies(first))
        whole = fault is None and after.position == tx.position()
        structure = tx.rows("PRAGMA integrity_check(1)")
        rows = all(_HOLDS[table](row) for table, sql in _READ.items() for row in tx.rows(sql))
        timekeeper.load(tx)
        with tx.trial():
            tx.append(usage.recovery("ledger_set_aside"), time=0, boot="0" * 36)
            folding.try_rows(tx)
    except LedgerError as fault:
        if fault.code == "ledger_unwritable":
            raise
        return False
    return whole and rows and structure == [("ok",)] and tx.has_schema()


def good_part(tx: Transaction, chain: Chain) -> list[Entry]:
    """The records that follow a chain, as far as they hold: in form and place, and by the hashes beside them.

    A record that is altered and still well formed shows in every hash after it, and ends the good part. The
    last one has none after it: whether its bytes or its hash are wrong is not known, and its usage is not lost.
    """
    _, entries, _ = ledger.good_prefix(chain, tx.bodies(chain.position.seq + 1))
    noted = tx.noted_hashes(chain.position.seq + 1)
    proved = max(
        (place for place, entry in enumerate(entries, 1) if noted.get(entry.seq) == entry.hash), default=0
    )
    return entries if len(entries) == proved + 1 else entries[:proved]


def _good_end(tx: Transaction, device: str) -> tuple[Position | None, int]:
    """How far a damaged ledger still holds, and where it ended."""
    try:
        chain = tx.chain_before(tx.cut() + 1, device)
        entries = good_part(tx, chain)
    except LedgerError:
        return None, 0
    good = ledger.after(chain.position, entries[-1]) if entries else chain.position
    if good.seq == 0:
        return None, 0
    try:
        return good, tx.position().seq
    except LedgerError:
        return good, good.seq


def finish(vault: Vault, device: str, position: Position) -> None:
    """Once the server has receipted all that is good of a ledger set aside, stop handing it over.

    The file is kept, as evidence, under another name. A receipt for an epoch that is not here is passed over.
    """
    for path in vault.set_aside():
        store = LedgerStore(path, lenient=True)
        try:
            with store.write() as tx:
                good, _ = _good_end(tx, device)
        except LedgerError:
            continue
        finally:
            store.drop()
        if good is None or good.epoch != position.epoch:
            continue
        if good == position or good.seq < position.seq:
            name = os.path.basename(path).removeprefix("ledger-")
            os.rename(path, os.path.join(vault.directory, f"receipted-{name}"))
