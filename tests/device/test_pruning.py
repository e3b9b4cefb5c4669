"""Records that were receipted long ago go; the chain starts at the cut, and nothing else changes."""

import itertools
import sqlite3

import pytest
from device_damage import flip, raw, set_body
from device_site import MUL, Site, limited, recorded, records, session, unchanged, use

from device_sdk import DenialError, Device
from device_sdk.keeper import tick
from meterkit import exchange, limits
from meterkit.positions import Position

DAY_S = 86_400
MONTH_S = 30 * DAY_S


def seqs(device: Device) -> list[int]:
    with device.counter.transaction() as tx:
        return [seq for (seq,) in tx.rows("SELECT seq FROM records ORDER BY seq")]


def cut(device: Device) -> int:
    with device.counter.transaction() as tx:
        return tx.cut()


def use_for_a_month(site: Site, device: Device, *, hours: int = 1) -> int:
    """Use a model now and then, then let the month pass; gives the units used."""
    running = session(device)
    for _ in range(hours * 4):
        use(running, 3)
        site.time.run_on(limits.WINDOW_S)
    site.time.run_on(MONTH_S - hours * 3600 - 10)
    return hours * 12


def fold(device: Device) -> None:
    with device.counter.fold_everything():
        pass


@pytest.fixture
def pruned(site):
    """A device after three months, synced monthly: 36 units handed over, the first month's records gone."""
    device = site.activated(limited(MUL, 1_000))
    for _ in range(3):
        use_for_a_month(site, device)
        site.sync(device, limited(MUL, 1_000))
    fold(device)
    assert cut(device) > 1
    return device


# -- what goes, and when


def test_what_was_receipted_35_days_ago_goes_and_what_it_says_stands_at_the_vendor(site, pruned):
    assert min(seqs(pruned)[1:]) == cut(pruned)
    assert site.vendor.units("mul") == 36
    use(session(pruned), 5)
    site.sync(pruned)
    assert site.vendor.units("mul") == 41


def test_the_records_of_35_days_stay(pruned):
    kept = [record for record in records(pruned, "usage") if record["seq"] > cut(pruned)]
    assert sum(record["units"] for record in kept) == 24


def test_a_day_too_few_and_nothing_goes(site):
    device = site.activated(MUL)
    use(session(device), 3)
    site.sync(device, MUL)
    site.time.run_on(limits.RECORD_KEPT_S - 1)
    fold(device)
    assert seqs(device)[0] == 1
    site.time.run_on(1)
    fold(device)
    assert seqs(device)[0] != 1


def test_what_no_receipt_covers_stays_for_ever(site):
    device = site.activated(MUL)
    use(session(device), 3)
    site.time.run_on(400 * DAY_S)
    fold(device)
    site.sync(device, MUL)
    fold(device)
    assert seqs(device)[0] == 1
    assert site.vendor.units("mul") == 3


def test_what_the_anchor_has_not_passed_stays(site):
    """The units after the anchor count against the limit: they must stay, receipted or not."""
    device = site.activated(limited(MUL, 100), life_s=300 * DAY_S)
    use(session(device), 40)
    site.sync(device)
    site.time.run_on(100 * DAY_S)
    fold(device)
    assert seqs(device)[0] == 1
    assert device.status().models[0].left_units == 60


def test_a_clock_that_is_set_forward_makes_nothing_older(site):
    device = site.activated(MUL)
    use(session(device), 3)
    site.sync(device, MUL)
    site.time.set_wall(40 * DAY_S)
    fold(device)
    assert seqs(device)[0] == 1


def test_many_receipts_a_day_are_remembered_once(site):
    device = site.activated(MUL)
    running = session(device)
    for _ in range(30):
        use(running)
        site.time.run_on(3_600)
        site.sync(device, MUL)
    with device.counter.transaction() as tx:
        assert len(tx.rows("SELECT seq FROM receipts")) == 2


def test_it_goes_in_small_steps_and_the_keeper_takes_them(site, monkeypatch):
    monkeypatch.setattr(limits, "PRUNED_RECORDS_MAX", 4)
    device = site.activated(MUL)
    use_for_a_month(site, device, hours=4)
    site.sync(device, MUL)
    running = session(device)
    use(running)
    site.time.run_on(limits.RECORD_KEPT_S)
    before = len(seqs(device))
    sizes = []
    while not sizes or sizes[-1] != before:
        before = len(seqs(device))
        tick(device.counter)
        sizes.append(len(seqs(device)))
    assert len(sizes) > 3
    assert all(size - after in (0, 4) or after == sizes[-1] for size, after in itertools.pairwise(sizes))
    use(running, 2)
    site.sync(device, MUL)
    assert site.vendor.units("mul") == 48 + 3


# -- what stays true after it


def test_limits_count_as_before(pruned):
    running = session(pruned)
    assert pruned.status().models[0].left_units == 1_000
    use(running, 1_000)
    with pytest.raises(DenialError) as caught:
        use(running)
    assert caught.value.code == "limit_reached"


def test_it_opens_again_and_hands_over_no_record_twice(site, pruned):
    pruned.close()
    again = site.open()
    use(session(again), 2)
    site.sync(again)
    assert site.vendor.units("mul") == 38
    assert not list(site.path.glob("ledger-*.sqlite"))


def test_nothing_is_written_once_it_is_done(site, pruned):
    tick(pruned.counter)
    with unchanged(site.path):
        for _ in range(5):
            site.time.run_on(60)
            pruned.status()
            tick(pruned.counter)


def test_without_its_receipt_a_device_says_the_one_at_the_cut(site, pruned):
    (site.path / "receipt.jws").unlink()
    (text,) = pruned.make_batches()
    _, batch = exchange.open_batch(text, lambda kid: site.vendor.keys[kid])
    assert batch.seq_from == cut(pruned) + 1
    held = pruned.holder.try_receipt(batch.has.receipt)
    assert (held.position.seq, held.position.head) == (cut(pruned), batch.prev)
    site.sync(pruned)
    assert site.vendor.units("mul") == 36


def test_a_receipt_of_what_is_gone_changes_nothing(site):
    device = site.activated(MUL)
    use(session(device), 3)
    early = site.vendor.accept(device.make_batches())
    for _ in range(3):
        use_for_a_month(site, device)
        site.sync(device, MUL)
    fold(device)
    held = device.holder.receipt_text()
    assert not device.take_reply(early).refused
    assert device.holder.receipt_text() == held
    use(session(device), 2)
    site.sync(device)
    assert site.vendor.units("mul") == 3 + 36 + 2


def test_a_token_anchored_at_what_is_gone_has_nothing_left(site, pruned):
    """As from a server that was restored: what came after it is not here to be counted against the limit."""
    with pruned.counter.transaction() as tx:
        epoch = tx.epoch()
        (token,) = tx.rows("SELECT seq, hash FROM records ORDER BY seq LIMIT 1")
    for seq, head in ((0, "0" * 64), token):
        anchor = Position(epoch=epoch, seq=seq, head=head)
        token = site.vendor.token(pruned.id, anchor, [limited(MUL, 1_000)])
        pruned.take_reply(exchange.Reply(token=token).to_bytes())
        with pytest.raises(DenialError) as caught:
            use(session(pruned))
        assert caught.value.code == "ledger_unanchored"


def test_the_license_is_known_when_its_token_record_is_far_behind(site):
    device = site.activated(MUL, life_s=300 * DAY_S)
    use(session(device), 3)
    outcome = site.sync(device, MUL, life_s=300 * DAY_S)
    assert not outcome.refused
    for _ in range(3):
        use_for_a_month(site, device)
        site.sync(device)
    # the anchor stays: only a new token lets records go
    site.sync(device, MUL)
    site.time.run_on(36 * DAY_S)
    site.sync(device, MUL)
    fold(device)
    assert seqs(device)[0] != 1
    use(session(device), 2)
    device.close()
    site.sync(site.open())
    assert site.vendor.units("mul") == 3 + 36 + 2


# -- damage after it


@pytest.mark.parametrize("seq_back", [0, 3])
def test_a_damaged_ledger_hands_over_its_good_part_from_the_cut(site, pruned, seq_back):
    running = session(pruned)
    for _ in range(4):
        use(running, 2)
        site.time.run_on(limits.WINDOW_S)
    fold(pruned)
    end = seqs(pruned)[-1]
    pruned.close()
    set_body(site, end - seq_back, flip)
    again = site.open()
    site.vendor.now = site.time.now_s
    site.vendor.accept(again.make_batches())
    assert records(again, "genesis")[0]["lost"] == {"from": end - seq_back, "to": end}
    assert site.vendor.units("mul") == 36 + 8 - 2 * (seq_back + 1)


def test_where_the_first_record_after_the_cut_is_damaged_the_next_epoch_names_all_that_is_lost(site, pruned):
    end, first = seqs(pruned)[-1], cut(pruned) + 1
    pruned.close()
    set_body(site, first, flip)
    (site.path / "receipt.jws").unlink()
    again = site.open()
    again.make_batches()
    genesis = records(again, "genesis")[0]
    assert genesis["lost"] == {"from": first, "to": end}
    site.activate(again, MUL)
    use(session(again), 2)
    assert recorded(again) == 2


def test_where_the_epoch_cannot_be_read_the_receipt_at_the_cut_names_it(site, pruned):
    use(session(pruned), 3)
    pruned.close()
    raw(site, "UPDATE state SET value = '\"ep_x' WHERE name = 'epoch'")
    site.vendor.now = site.time.now_s
    site.vendor.accept(site.open().make_batches())
    assert site.vendor.units("mul") == 36 + 3


def test_receipts_that_are_gone_lose_nothing(site, pruned):
    use(session(pruned), 3)
    pruned.close()
    raw(site, "DELETE FROM receipts")
    again = site.open()
    use(session(again), 2)
    site.sync(again, MUL)
    assert site.vendor.units("mul") == 36 + 3 + 2


# -- older ledgers


def test_a_ledger_of_the_version_before_is_brought_up_to_this_one(site):
    device = site.activated(MUL)
    use(session(device), 3)
    fold(device)
    before = records(device)
    device.close()
    with sqlite3.connect(site.path / "ledger.sqlite") as old:
        old.execute("DROP TABLE receipts")
        old.execute("PRAGMA user_version = 1")
    again = site.open()
    assert records(again)[: len(before)] == before
    use(session(again), 2)
    site.sync(again, MUL)
    assert site.vendor.units("mul") == 5
    site.time.run_on(limits.RECORD_KEPT_S)
    fold(again)
    assert cut(again) > 1
