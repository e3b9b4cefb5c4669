"""Requests that share a transaction: each is answered, and stored, as if it had come alone."""

import asyncio
import threading

import pytest
import sqlalchemy as sa
from fleet import claims_of
from lively_fleet import DAY, decide_all, lively

from licensing_server.database import metadata, read
from licensing_server.devices import decisions
from licensing_server.devices import service as devices
from licensing_server.devices.token_store import exposures, tokens
from licensing_server.grouping import ASKED_MAX, Grouping
from licensing_server.licenses import service as licenses
from licensing_server.licenses.store import license_units
from licensing_server.usage import answering, grouped, plain, service
from licensing_server.usage.store import usage_records
from meterkit import limits
from meterkit.envelopes import REVOCATIONS
from meterkit.errors import ServiceError, TrustError
from meterkit.exchange import Has, read_reply


@pytest.fixture
def twins(first_fleet, tmp_path):
    """Two fleets of the same seed: what happens to both alike must leave the same behind."""
    made = [first_fleet.copy(tmp_path / name, seed=2) for name in ("together", "alone")]
    yield made
    for each in made:
        each.remove()


def stored(fleet):
    """All that a database holds."""
    with read(fleet.server) as connection:
        tables = metadata.sorted_tables
        return {table.name: sorted(map(repr, connection.execute(sa.select(table)).all())) for table in tables}


@pytest.fixture
def judged(monkeypatch):
    """What was judged, and whether it was plain."""
    found = []
    judge = plain.judge

    def judge_and_note(*args):
        found.append(judge(*args))
        return found[-1]

    monkeypatch.setattr(plain, "judge", judge_and_note)
    return found


def closely(monkeypatch):
    """From now on every request gets a closer look."""
    monkeypatch.setattr(plain, "judge", lambda *_: None)


@pytest.mark.parametrize("seed", range(2))
def test_a_closer_look_comes_to_the_same(twins, judged, monkeypatch, seed):
    together, alone = twins
    for fleet in twins:
        if fleet is alone:
            assert 5 < sum(each is not None for each in judged) < len(judged)
            closely(monkeypatch)
        chance, _ = lively(fleet, seed, steps=80)
        decide_all(fleet, chance)
    assert stored(together) == stored(alone)


def steady(fleet):
    """A quarter: pools in all and by the month, tokens installed as they come, two batches a request. The
    second device of each pool finds nothing left of it, and says so twice: the first time it is looked at.
    """
    by_month = fleet.grant(pool_units=5_000, pool_per="period")
    in_all = fleet.grant(pool_units=9_000, token_units_max=None)
    made = [fleet.device(license_id) for license_id in (by_month, by_month, in_all, in_all)]
    for step in range(40):
        fleet.clock.advance(2 * DAY)
        device = made[step % 4]
        first = device.open_receipt(device.receipt).position.seq + 1 if device.receipt else 1
        texts = []
        for units in (3, 5):
            device.use(units + step, unsettled=step % 2)
            texts.append(device.batch(first=first))
            first = len(device.entries) + 1
        device.take(fleet.exchange(*texts))
        device.install()


def test_a_steady_fleet_is_taken_plainly_and_the_same(twins, judged, monkeypatch):
    together, alone = twins
    steady(together)
    assert [number for number, each in enumerate(judged) if each is None] == [1, 3]
    assert len(judged) == 40
    closely(monkeypatch)
    steady(alone)
    assert stored(together) == stored(alone)


def held_and_reset(fleet):
    """A device whose fork waits for a person begins a new ledger: still no token."""
    device = fleet.device(fleet.grant(fork_policy="hold"))
    device.use(3)
    clone = device.clone()
    clone.use(1)
    clone.sync()
    device.use(2)
    assert device.sync().token is None
    device.reset()
    device.install()
    device.use(4)
    device.sync()
    device.use(5)
    assert device.sync().token is None


def expired_and_its_place_taken(fleet):
    """The one place went to another device while this one was away: receipts only."""
    license_id = fleet.grant(devices_max=1)
    device = fleet.device(license_id)
    device.use(3)
    device.sync()
    fleet.clock.advance(200 * DAY)
    fleet.device(license_id).sync()
    device.use(4, at=fleet.clock.now - 199 * DAY)  # when its token was good: nothing else is odd
    assert device.sync().token is None


def with_revocations_to_come(fleet):
    """It holds a list that this server never signed, as after a backup: the next one has a higher number."""
    device = fleet.device(fleet.grant())
    device.use(3)
    device.sync(has=Has(serial=device.serial, keyring=1, revocations=7))
    devices.revoke(fleet.server, "token", device.token.jti)
    device.use(3)
    reply = device.sync()
    assert claims_of(REVOCATIONS, reply.revocations)["version"] == 8


def branches_that_go_on(fleet):
    """What a forked ledger's tokens let it reach is measured against all of its branches."""
    device = fleet.device(fleet.grant(pool_units=10**6))
    device.use(3)
    device.sync()
    clone = device.clone()
    for each, units in ((clone, 1), (device, 70), (clone, 1), (clone, 1), (device, 13)):
        each.use(units)
        each.sync()


def with_a_clock_set_back(fleet):
    """No unit used before an instant is still to come: said once, that stays said."""
    device = fleet.device(fleet.grant())
    for back_s in (0, 5 * DAY, 3 * DAY):
        device.use(3)
        device.sync(through=fleet.clock.now - back_s)


ODD = (
    held_and_reset,
    expired_and_its_place_taken,
    with_revocations_to_come,
    branches_that_go_on,
    with_a_clock_set_back,
)


@pytest.mark.parametrize("story", ODD)
def test_a_device_that_is_odd_by_what_is_known_of_it_is_looked_at(twins, monkeypatch, story):
    together, alone = twins
    story(together)
    closely(monkeypatch)
    story(alone)
    assert stored(together) == stored(alone)


def test_a_group_answers_each_and_leaves_what_is_odd(fleet):
    license_id = fleet.grant()
    good, forked, stranger = fleet.device(license_id), fleet.device(license_id), fleet.device()
    forked.use(1)
    clone = forked.clone()
    clone.use(5)
    clone.sync()
    for device in (good, forked):
        device.use(7)
    stranger.begin()
    requests = [
        [good.batch()],
        ["not a batch"],
        [forked.batch()],
        [stranger.batch(license_id=None)],
        [good.batch()],
    ]
    replies = service.take_together(fleet.server, requests)
    assert [reply is not None for reply in replies] == [True, False, False, False, False]
    assert good.open_receipt(replies[0].receipts[0]).position == good.position
    assert fleet.units(license_id) == 6 + 7
    again = service.exchange(fleet.server, requests[4])
    assert again.receipts == replies[0].receipts
    assert fleet.units(license_id) == 6 + 7
    with pytest.raises(TrustError, match="key_unknown"):
        service.exchange(fleet.server, requests[3])


def test_a_receipt_that_only_a_later_batch_brings_is_looked_at(twins, judged):
    """A server put back from a backup has forgotten it; the batch before it was made when there was none."""
    forgetful, ahead = twins
    texts = []
    for fleet in (ahead, forgetful):
        device = fleet.device(fleet.grant())
        device.use(3)
        texts = [*texts, device.batch()]
        device.use(2)
        if fleet is ahead:
            device.sync()
            brought = device.receipt
        judged.clear()
        later = device.batch(first=4, has=Has(serial=device.serial, keyring=1, revocations=0, receipt=brought))
        service.exchange(fleet.server, [texts[-1], later])
        assert judged == [None]


def test_devices_of_one_group_share_what_is_left_of_a_pool(fleet):
    license_id = fleet.grant(pool_units=1_000, token_units_max=None)
    made = [fleet.device(license_id)]
    made[0].use(900)
    made[0].sync()
    made[0].install()
    made[0].sync()
    made += [fleet.device(license_id) for _ in range(3)]
    for device in made:
        device.begin()
        device.use(0)
    replies = service.take_together(fleet.server, [[device.batch()] for device in made])
    for device, reply in zip(made, replies, strict=True):
        device.take(reply)
    left = [device.token.models[0].limit for device in made]
    assert sum(left) == 1_000 - 900
    assert fleet.units(license_id) == 900


def test_what_fails_in_a_group_stores_nothing_of_it(fleet, monkeypatch):
    license_id = fleet.grant()
    made = [fleet.device(license_id) for _ in range(3)]
    for device in made:
        device.use(4)
    requests = [[device.batch()] for device in made]
    answer = answering.answer

    def fail_at_the_last(server, known, judged, now):
        if judged.device.id == made[-1].id:
            raise ServiceError("signing_unavailable")
        return answer(server, known, judged, now)

    before = stored(fleet)
    with monkeypatch.context() as failing:
        failing.setattr(answering, "answer", fail_at_the_last)
        assert service.take_together(fleet.server, requests) == [None] * 3
    assert stored(fleet) == before
    assert all(service.take_together(fleet.server, requests))
    assert fleet.units(license_id) == 12


def suspend(fleet, device):
    licenses.change_state(fleet.server, device.token.license_id, "suspended")


def revoke(fleet, device):
    devices.revoke(fleet.server, "token", device.token.jti)


def hear_it_elsewhere(fleet, device):
    service.take_alone(fleet.server, [device.batch()])


def write_off(fleet, device):
    decisions.write_off(fleet.server, device.id, epoch=device.epoch, why="lost", who="clerk")


@pytest.mark.parametrize("happens", [suspend, revoke, hear_it_elsewhere, write_off])
def test_what_changed_since_it_was_judged_is_judged_anew(twins, monkeypatch, happens):
    """As if it had happened before: a token that is no longer due is not given, and nothing is counted twice."""
    judge = grouped._judge
    for fleet in twins:
        first, second = (fleet.device(fleet.grant()) for _ in range(2))
        for device in (first, second):
            device.use(4)
            device.sync()
            device.use(5)
        if fleet is twins[0]:
            waiting = [happens]

            def judge_and_let_it_happen(*args, fleet=fleet, device=first, waiting=waiting):
                answered = judge(*args)
                for each in waiting[:1]:
                    waiting.clear()
                    each(fleet, device)
                return answered

            monkeypatch.setattr(grouped, "_judge", judge_and_let_it_happen)
        else:
            happens(fleet, first)
        replies = service.take_together(fleet.server, [[first.batch()], [second.batch()]])
        assert [reply is not None for reply in replies] == [False, True]
        service.take_alone(fleet.server, [first.batch()])
        assert fleet.units(first.token.license_id) == fleet.units(second.token.license_id) == 9
    assert standing(twins[0]) == standing(twins[1])


def test_nobody_else_takes_of_a_pool_while_a_group_is_judged_by_it(fleet, monkeypatch):
    """At the begin of a month there is something left of it for whoever asks first."""
    license_id = fleet.grant(pool_units=1_000, pool_per="period", token_units_max=None, token_life_s=60 * DAY)
    first, second = fleet.device(license_id), fleet.device(license_id)
    first.use(400)
    first.sync()
    fleet.clock.advance(32 * DAY)
    first.use(10)
    second.use(0)
    texts = [second.batch()]
    judge, asking = grouped._judge, []

    def ask():
        second.take(service.take_alone(fleet.server, texts).reply)

    def judge_and_let_another_ask(*args):
        answered = judge(*args)
        if not asking:
            asking.append(threading.Thread(target=ask))
            asking[0].start()
            asking[0].join(1)  # it is done by now only if nothing is held
        return answered

    monkeypatch.setattr(grouped, "_judge", judge_and_let_another_ask)
    (reply,) = service.take_together(fleet.server, [[first.batch()]])
    asking[0].join()
    first.take(reply)
    assert first.token.models[0].limit > 0
    assert sum(device.token.models[0].limit for device in (first, second)) <= 1_000 - 10


def standing(fleet):
    """What is accepted, granted and found, without what the dice made of it."""
    with read(fleet.server) as connection:
        return [
            sorted(map(repr, connection.execute(sa.select(*columns)).all()))
            for columns in (
                (usage_records.c.units, usage_records.c.service_at, usage_records.c.seq),
                (exposures.c.device, exposures.c.units, exposures.c.unbounded),
                (tokens.c.device, tokens.c.serial, tokens.c.anchor_seq, tokens.c.superseded),
                (license_units.c.units, license_units.c.unsettled),
            )
        ]


def test_a_group_is_told_that_the_database_is_away(fleet, monkeypatch):
    device = fleet.device(fleet.grant())
    device.use(4)

    def gone(*_):
        raise ServiceError("database_unavailable")

    monkeypatch.setattr(grouped, "take", gone)
    with pytest.raises(ServiceError, match="database_unavailable"):
        service.take_together(fleet.server, [[device.batch()]])


# -- the queue


def test_what_is_asked_meanwhile_is_the_next_group():
    groups, at_work, go_on = [], threading.Event(), threading.Event()

    def work(asked):
        groups.append(list(asked))
        at_work.set()
        assert go_on.wait(20)
        return [each * 2 for each in asked]

    async def play():
        grouping = Grouping(list, work)
        first = asyncio.create_task(grouping.ask(0))
        await asyncio.to_thread(at_work.wait, 20)
        others = [asyncio.create_task(grouping.ask(number)) for number in range(1, ASKED_MAX + 10)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(play()) == [2 * number for number in range(ASKED_MAX + 10)]
    assert list(map(len, groups)) == [1, ASKED_MAX, 9]


def test_what_comes_while_a_group_is_prepared_joins_it():
    groups = []
    preparing, go_on = threading.Event(), threading.Event()

    def prepare(asked):
        preparing.set()
        assert go_on.wait(20)
        return [2 * number for number in asked]

    def work(prepared):
        groups.append(prepared)
        return prepared

    async def play():
        grouping = Grouping(prepare, work)
        first = asyncio.create_task(grouping.ask(0))
        await asyncio.to_thread(preparing.wait, 20)
        others = [asyncio.create_task(grouping.ask(number)) for number in range(1, ASKED_MAX + 10)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(play()) == [2 * number for number in range(ASKED_MAX + 10)]
    assert list(map(len, groups)) == [ASKED_MAX, 10]


def test_a_failure_reaches_all_of_its_group_and_no_other():
    def work(asked):
        if "bad" in asked:
            raise ServiceError("database_unavailable")
        return asked

    async def play():
        grouping = Grouping(list, work)
        outcomes = await asyncio.gather(grouping.ask("bad"), grouping.ask("with it"), return_exceptions=True)
        return [*outcomes, await grouping.ask("later")]

    first, second, later = asyncio.run(play())
    assert isinstance(first, ServiceError)
    assert isinstance(second, ServiceError)
    assert later == "later"


def test_who_stops_waiting_holds_up_nobody():
    async def play():
        grouping = Grouping(list, list)
        gone, there = asyncio.create_task(grouping.ask(1)), asyncio.create_task(grouping.ask(2))
        await asyncio.sleep(0)
        gone.cancel()
        return await there

    assert asyncio.run(play()) == 2


def test_a_request_too_large_to_share_is_taken_all_the_same(fleet, client, judged):
    device = fleet.device(fleet.grant())
    for _ in range(700):
        device.use(1)
    body = device.batch().encode()
    assert 256 * 1024 < len(body) < limits.EXCHANGE_WIRE_BYTES_MAX
    answer = client.post("/v1/exchanges", content=body, headers={"content-type": "application/x-mk-batch"})
    assert answer.status_code == 200
    assert device.open_receipt(read_reply(answer.content).receipts[0]).position == device.position
    assert judged == []
