"""Following batches again: chains, branches, attribution."""

import billing_terms as bt
import core_world as world
import evidence_world as ew
import pytest
from evidence_world import DAY, START

from meterkit.attribution import service_time
from meterkit.errors import LedgerError
from meterkit.exchange import read_batch
from meterkit.replay import Replay

PLAN = bt.plan_json(bt.usage_charge(bt.per_unit("1"), model="detector"))
NONE: frozenset[tuple[str, str]] = frozenset()


@pytest.fixture
def shop() -> ew.Shop:
    return ew.Shop(PLAN)


def batches(shop: ew.Shop):
    return [read_batch(ew.payload(shop.parts[name])) for name in sorted(shop.parts) if name.startswith("batches/")]


def test_a_record_is_known_by_its_chain_and_its_batch(shop):
    crane = shop.device("crane")
    crane.install("one", 1)
    crane.use(5, 2, unsettled=3)
    crane.send(3)
    (record,) = shop.replays[crane.id].records(1, NONE)
    assert (record.units, record.unsettled, record.acceptance, record.seq) == (5, 3, 1, 3)
    assert record.license_id == bt.LICENSE
    assert record.service_at == START + 2 * DAY
    assert record.branch == crane.chain.position.head


@pytest.mark.parametrize(("window_start", "expected"), [(0, 100), (100, 100), (150, 150), (200, 200), (900, 200)])
def test_service_is_held_between_the_token_and_the_reception(window_start, expected):
    assert service_time(window_start, token_iat=100, received_at=200) == expected


def test_a_token_that_lies_about_the_future_moves_nothing_past_the_reception():
    assert service_time(0, token_iat=500, received_at=200) == 200


def test_the_same_batch_again_and_overlapping_ones_count_once(shop):
    crane = shop.device("crane")
    crane.install("one", 0)
    crane.use(5, 1)
    crane.send(2)
    crane.use(7, 3)
    crane.send(4)
    one, two = batches(shop)
    again = Replay(crane.id)
    for number, batch in enumerate((one, one, two, two), start=1):
        again.add(batch, acceptance=number, received_at=START + 5 * DAY)
    records = {record.seq: (record.units, record.acceptance) for record in again.records(9, NONE)}
    assert records == {3: (5, 1), 4: (7, 3)}


def test_what_continues_nothing_is_refused(shop):
    crane = shop.device("crane")
    crane.install("one", 0)
    crane.send(1)
    crane.use(5, 2)
    crane.send(3)
    with pytest.raises(LedgerError) as error:
        Replay(crane.id).add(batches(shop)[1], acceptance=1, received_at=0)
    assert error.value.code == "batch_gap"


def test_another_device_s_genesis_is_refused(shop):
    crane = shop.device("crane")
    crane.send(1)
    with pytest.raises(LedgerError):
        Replay(world.DEVICE).add(batches(shop)[0], acceptance=1, received_at=0)


def test_what_lies_before_a_fork_is_cited_with_the_branch_accepted_first(shop):
    crane = shop.device("crane")
    crane.install("one", 0)
    crane.use(1, 1)
    crane.send(2)
    twin = crane.copy()
    crane.use(2, 3)
    twin.use(4, 3)
    twin.send(4)
    crane.send(5)
    replay = shop.replays[crane.id]
    before = {record.units: record.branch for record in replay.records(1, NONE)}
    after = {record.units: record.branch for record in replay.records(3, NONE)}
    assert len(before) == 1
    assert after == {1: twin.chain.position.head, 4: twin.chain.position.head, 2: crane.chain.position.head}


def test_an_implausible_rate_and_an_unknown_token_are_suspect(shop):
    crane = shop.device("crane")
    crane.install("one", 0)
    crane.use(10**6 * 900, 1)
    crane.use(10**6 * 900 + 1, 2)
    crane.install("forged", 3, forged=True)
    crane.use(1, 4)
    crane.send(5)
    suspects = shop.suspects()[crane.id]
    replay = shop.replays[crane.id]
    found = {record.seq for record in replay.records(1, suspects) if record.quarantined}
    assert found == {4, 6}
