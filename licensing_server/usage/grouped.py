"""Taking a group of plain requests: read once, judged in memory, stored set by set in one transaction."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from licensing_server.database import Connection, next_numbers, read, write
from licensing_server.devices import group_store, ledger_store, replies, token_store
from licensing_server.devices import store as device_store
from licensing_server.licenses import store as license_store
from licensing_server.server import Server
from licensing_server.usage import answering, known, plain, rollups, store
from licensing_server.usage.answering import Answered
from licensing_server.usage.known import Known, UnitsKey
from licensing_server.usage.opening import Opened
from licensing_server.usage.plain import Added
from meterkit.exchange import Reply
from meterkit.ledger import Total


def take(server: Server, group: Sequence[Opened]) -> list[Reply | None]:
    """Take those requests of a group that are plain; None for the others, of which nothing is stored.

    They are judged before the database's write lock is taken, unless they draw on a pool. What was judged by is
    then asked for again, and where it has changed, they are judged anew.

    Raises:
        ServiceError: `signing_unavailable`, `database_unavailable`; nothing of the group is acknowledged then.
    """
    now = server.clock()
    with read(server) as connection:
        found = known.read(connection, group)
    if not found.has_pools():  # then all that takes time, signing above all, is done while others write
        answered = _judge(server, found, group, now)
        with write(server) as connection:
            if found.is_current(connection):
                _store(connection, answered.values(), now)
                return _replies(server, found, answered, group)
    with write(server) as connection:
        found = known.read(connection, group)
        answered = _judge(server, found, group, now)
        _store(connection, answered.values(), now)
        return _replies(server, found, answered, group)


def _judge(server: Server, found: Known, group: Sequence[Opened], now: int) -> dict[str, Answered]:
    """What is plain, by device; of a device that asks twice, the first."""
    answered: dict[str, Answered] = {}
    for opened in group:
        judged = None if opened.device in answered else plain.judge(found, opened, now)
        if judged is not None:
            answered[opened.device] = answering.answer(server, found, judged, now)
    return answered


def _replies(
    server: Server, found: Known, answered: dict[str, Answered], group: Sequence[Opened]
) -> list[Reply | None]:
    made = [(opened, answered.get(opened.device)) for opened in group]
    return [
        _reply(server, found, each) if each is not None and each.plain.opened is opened else None
        for opened, each in made
    ]


def _store(connection: Connection, answered: Collection[Answered], now: int) -> None:
    if not answered:
        return
    batches: list[dict[str, Any]] = []
    rows: list[tuple[Any, ...]] = []
    brought: list[rollups.Brought] = []
    heads: list[ledger_store.Head] = []
    numbers = iter(next_numbers(connection, store.ACCEPTANCE, sum(len(each.plain.added) for each in answered)))
    for each in answered:
        own = {added.acceptance: next(numbers) for added in each.plain.added}
        for added in each.plain.added:
            number = own[added.acceptance]
            batches.append(_batch_row(added, own, now))
            rows += [(*row, number) for row in added.rows]
            brought.append(rollups.Brought(each.ledger, number, added.uses))
        heads += [replace(head, acceptance=own[head.acceptance]) for head in each.heads]
    store.insert_batches(connection, batches)
    store.insert_record_values(connection, rows)
    rollups.add(connection, brought)
    ended = [each.plain.start for each in answered if each.plain.start.position.seq]
    ledger_store.go_on(connection, ended, heads)
    ledger_store.insert_receipts(connection, [(each.heads[-1], each.receipt) for each in answered], now)
    group_store.supersede_all(connection, [jti for each in answered for jti in each.superseded])
    token_store.insert(connection, [each.issued for each in answered])
    exposures = [row for each in answered for row in each.exposures]
    group_store.replace_exposures(connection, [each.ledger for each in answered], exposures)
    license_store.put_units(connection, _added(answered))
    device_store.note_exchanges(connection, [each.device for each in answered])


def _added(answered: Collection[Answered]) -> dict[UnitsKey, Total]:
    """What is newly accepted of each license."""
    added: dict[UnitsKey, Total] = {}
    for each in answered:
        for key, total in each.added.items():
            added[key] = added.get(key, Total()).plus(*total)
    return added


def _batch_row(added: Added, numbers: dict[int, int], now: int) -> dict[str, Any]:
    batch = added.opened.batch
    return {
        **store.batch_row(batch, device=added.after.device),
        "received_at": now,
        "body": added.opened.packed,
        "acceptance": numbers[added.acceptance],
        "parent": added.parent if added.parent is None else numbers.get(added.parent, added.parent),
        "first_new": batch.seq_from,
    }


def _reply(server: Server, found: Known, answered: Answered) -> Reply:
    return replies.compose(
        server,
        found.newest_revocations,
        has=answered.plain.opened.last.has,
        receipts=(answered.receipt,),
        token=answered.issued.text,
        license_=answered.plain.license,
    )
