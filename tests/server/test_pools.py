"""Pools: pool left = pool − accepted − Σ exposure (DESIGN §4), whatever devices do."""

import pytest
from exchanging import exposed, limit_of
from fleet import START_S
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from licensing_server.database import read
from licensing_server.devices import token_store
from licensing_server.usage.rebuild import rebuild
from meterkit.licenses import Policy


def test_without_a_pool_each_token_allows_the_same(fleet):
    license_id = fleet.grant(token_units_max=600)
    assert [limit_of(fleet.device(license_id)) for _ in range(3)] == [600, 600, 600]


def test_without_any_limit_there_is_none(fleet):
    license_id = fleet.grant(token_units_max=None)
    device = fleet.device(license_id)
    assert limit_of(device) is None
    with read(fleet.server) as connection:
        rows = connection.execute(token_store.exposures.select()).all()
    assert [(row.units, row.unbounded) for row in rows] == [(0, True)]


def test_devices_share_a_pool(fleet):
    license_id = fleet.grant(token_units_max=600, pool_units=1_000)
    one, two, three = (fleet.device(license_id) for _ in range(3))
    assert [limit_of(each) for each in (one, two, three)] == [600, 400, 0]


def test_what_a_device_may_reach_already_is_its_own_to_be_given_again(fleet):
    license_id = fleet.grant(token_units_max=600, pool_units=1_000)
    device = fleet.device(license_id)
    for _ in range(3):
        device.use(100)
        device.sync()
        device.install()
    assert limit_of(device) == 600
    device.use(500)
    device.sync()
    assert limit_of(device) == 200  # 1,000 − 800
    assert exposed(fleet, license_id) == 200


def test_an_unused_part_of_a_limit_comes_back_with_the_next_token_record(fleet):
    license_id = fleet.grant(token_units_max=600, pool_units=1_000)
    one = fleet.device(license_id)
    two = fleet.device(license_id)
    assert (limit_of(one), limit_of(two), exposed(fleet, license_id)) == (600, 400, 1_000)
    two.use(10)
    two.sync()
    two.install()
    two.use(1)
    two.sync()
    assert (limit_of(two), exposed(fleet, license_id)) == (389, 600 + 389)


def test_unsettled_units_use_the_pool_up(fleet):
    license_id = fleet.grant(token_units_max=600, pool_units=1_000)
    device = fleet.device(license_id)
    device.use(100, unsettled=300)
    device.sync()
    assert (limit_of(device), exposed(fleet, license_id)) == (600, 600)
    device.install()
    device.use(400)
    device.sync()
    assert limit_of(device) == 200


def test_expiry_gives_nothing_back(fleet):
    license_id = fleet.grant(token_units_max=900, pool_units=1_000, token_life_s=3_600, grace_s=0)
    fleet.device(license_id)
    fleet.clock.advance(10_000)
    assert limit_of(fleet.device(license_id)) == 100


def test_a_reset_leaves_the_exposure_of_the_old_ledger_out(fleet):
    license_id = fleet.grant(token_units_max=400, pool_units=1_000)
    device = fleet.device(license_id)
    device.use(100)
    device.sync()
    device.reset()
    device.activate(fleet.code(license_id))
    assert limit_of(device) == 400
    # 100 accepted; the old ledger may still reach 500, the new one 400
    assert exposed(fleet, license_id) == 400 + 400
    assert limit_of(fleet.device(license_id)) == 100


def test_a_limit_that_only_flags_leaves_the_exposure_unbounded(fleet):
    fleet.device(fleet.grant(token_units_max=50, policy=Policy(limit="flag")))
    with read(fleet.server) as connection:
        (row,) = connection.execute(token_store.exposures.select()).all()
    assert (row.units, row.unbounded) == (50, True)


def test_a_pool_per_period_is_full_again_in_the_next(fleet):
    license_id = fleet.grant(token_units_max=1_000, pool_units=1_000, pool_per="period")
    device = fleet.device(license_id)
    device.use(1_000)
    device.sync()
    assert limit_of(device) == 0
    device.install()
    fleet.clock.advance(31 * 86_400)
    late = device.use(0)
    assert late.claims["units"] == 0
    device.sync()
    assert limit_of(device) == 1_000


def test_late_usage_counts_in_the_pool_of_its_own_period(fleet):
    license_id = fleet.grant(token_units_max=1_000, pool_units=1_000, pool_per="period")
    device = fleet.device(license_id)
    fleet.clock.advance(40 * 86_400)
    device.use(700, at=START_S + 86_400)
    device.sync()
    device.install()
    device.use(300)
    device.sync()
    assert limit_of(device) == 700


def test_an_anchor_ahead_of_what_is_accepted_is_settled_when_its_records_come(fleet):
    license_id = fleet.grant(token_units_max=600, pool_units=1_000)
    device = fleet.device(license_id)
    device.sync()
    device.use(100)
    device.activate(fleet.code(license_id))  # anchored after the 100 that are not accepted yet
    assert device.token.anchor == device.position
    device.install()
    device.use(50)
    device.sync()
    with read(fleet.server) as connection:
        rows = connection.execute(token_store.token_limits.select()).all()
        waiting = token_store.waiting_anchors(connection, device.id, device.epoch)
    assert sorted(row.accepted_at_anchor for row in rows) == [0, 0, 100, 150]
    assert waiting == []
    assert exposed(fleet, license_id) == 600


def test_an_anchor_inside_an_accepted_batch_is_settled_with_the_next_one(fleet):
    license_id = fleet.grant(token_units_max=400, pool_units=2_000)
    device = fleet.device(license_id)
    device.use(60)
    device.use(30)
    device.sync()
    restored = device.clone()  # from an image made when it had used 60
    restored.entries = restored.entries[:-1]
    fleet.clock.advance(1)
    restored.activate(fleet.code(license_id))
    assert restored.token.anchor == device.at(3)
    fleet.clock.advance(1)
    device.use(1)
    device.sync()
    with read(fleet.server) as connection:
        rows = connection.execute(token_store.token_limits.select()).all()
        assert token_store.waiting_anchors(connection, device.id, device.epoch) == []
    assert sorted(row.accepted_at_anchor for row in rows) == [0, 60, 90, 91]
    assert rebuild(fleet.server, check=True)["items"] == []


def test_what_was_used_and_not_reported_before_an_activation_stays_within_the_pool(fleet):
    license_id = fleet.grant(token_units_max=600, pool_units=1_000)
    device = fleet.device(license_id)
    device.use(600)
    code = fleet.code(license_id)
    device.activate(code)
    assert (limit_of(device), exposed(fleet, license_id)) == (400, 1_000)  # 600 may be used already
    device.activate(code)
    assert (limit_of(device), exposed(fleet, license_id)) == (400, 1_000)  # asked again at the same position
    assert limit_of(fleet.device(license_id)) == 0
    device.install()
    device.sync()
    assert (limit_of(device), exposed(fleet, license_id)) == (400, 400)


def test_a_token_record_that_lies_gives_no_exposure_back(fleet):
    license_id = fleet.grant(token_units_max=900, pool_units=1_000)
    device = fleet.device(license_id)
    device.install(jti="tok_" + "a" * 26, serial=2**50)
    device.sync()
    assert exposed(fleet, license_id) >= 900
    assert limit_of(fleet.device(license_id)) <= 100


class Conservation(RuleBasedStateMachine):
    """Three honest devices on one pool, in any order: nothing beyond the pool can ever be used."""

    POOL = 1_000
    new_fleet = None  # set by the test

    def __init__(self):
        super().__init__()
        self.fleet = type(self).new_fleet()
        self.license_id = self.fleet.grant(token_units_max=400, pool_units=self.POOL)
        self.devices = [self.fleet.device(self.license_id) for _ in range(3)]
        self.used = [0, 0, 0]
        self.since = [0, 0, 0]
        self.turn = 0

    def pick(self):
        self.turn = (self.turn + 1) % 3
        return self.turn, self.devices[self.turn]

    @rule()
    def skip(self):
        self.pick()

    @rule()
    def use_all(self):
        self.spend(10**9)

    @rule()
    def use_some(self):
        self.spend(70)

    def spend(self, units):
        at, device = self.pick()
        units = min(units, limit_of(device) - self.since[at])
        if units:
            device.use(units)
            self.used[at] += units
            self.since[at] += units

    @rule()
    def sync(self):
        at, device = self.pick()
        serial = device.serial
        device.sync()
        if device.serial != serial:
            device.install()
            self.since[at] = 0

    @precondition(lambda self: self.turn != 1)
    @rule()
    def send_everything_again(self):
        _, device = self.pick()
        self.fleet.exchange(device.batch(1))

    @invariant()
    def nothing_beyond_the_pool_was_used(self):
        assert sum(self.used) <= self.POOL

    @invariant()
    def accepted_and_exposed_stay_within_the_pool(self):
        assert self.fleet.units(self.license_id) + exposed(self.fleet, self.license_id) <= self.POOL

    def teardown(self):
        self.fleet.remove()


def test_honest_devices_never_use_more_than_the_pool(first_fleet, tmp_path_factory):
    seeds = iter(range(10, 10_000))

    class Case(Conservation):
        @staticmethod
        def new_fleet():
            return first_fleet.copy(tmp_path_factory.mktemp("pool"), seed=next(seeds))

    test = Case.TestCase
    test.settings = settings(max_examples=15, stateful_step_count=25)
    test().runTest()


@pytest.mark.parametrize("units", [0, 1, 399])
def test_a_token_limit_counts_from_its_anchor(fleet, units):
    license_id = fleet.grant(token_units_max=400, pool_units=10_000)
    device = fleet.device(license_id)
    device.use(units)
    device.sync()
    assert limit_of(device) == 400
    assert device.token.anchor == device.position
