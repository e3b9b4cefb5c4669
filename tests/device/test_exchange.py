"""What a device hands over, and what it takes: part by part, verified before anything is stored."""

import itertools
import json
import threading

import pytest
import vendor as vendors
from device_site import MUL, PATIENCE_S, START_S, Site, records, session, unchanged, use
from vendor import Vendor

from device_sdk.gate import call_gate
from meterkit import limits
from meterkit.exchange import Batch, Reply, open_batch
from meterkit.positions import Position

WINDOW_S = limits.WINDOW_S


def opened(site: Site, texts: list[str]) -> list[Batch]:
    return [open_batch(text, lambda kid: site.vendor.keys[kid])[1] for text in texts]


def kinds(batch: Batch) -> list[str]:
    return [json.loads(body)["kind"] for body in batch.bodies]


def codes(outcome) -> dict[str, list[str | None]]:
    return {
        part: [each.code for each in group]
        for part, group in itertools.groupby(outcome.taken, key=lambda each: each.part)
    }


@pytest.fixture
def device(site):
    return site.activated(MUL)


@pytest.fixture
def running(device):
    return session(device)


# -- batches


def test_a_batch_holds_everything_from_the_genesis_on(site, device, running):
    use(running, 3)
    (batch,) = opened(site, device.make_batches())
    assert kinds(batch) == ["genesis", "token", "usage"]
    assert (batch.seq_from, batch.seq_to, batch.license_id) == (1, 3, site.vendor.license_id)
    assert batch.through == site.time.now_s // WINDOW_S * WINDOW_S
    assert batch.made_at == site.time.now_s
    assert (batch.has.serial, batch.has.keyring) == (START_S + 1, 1)
    assert (batch.has.revocations, batch.has.receipt) == (0, None)


def test_once_receipted_there_is_an_empty_batch(site, device, running):
    use(running, 3)
    site.sync(device)
    (batch,) = opened(site, device.make_batches())
    assert batch.bodies == ()
    assert (batch.seq_from, batch.seq_to) == (4, 3)
    assert batch.head == batch.prev == records_hash(device, 3)
    assert batch.has.receipt is not None
    site.sync(device)
    use(running)
    (batch,) = opened(site, device.make_batches())
    assert kinds(batch) == ["usage"]


def records_hash(device, seq: int) -> str:
    with device.counter.transaction() as tx:
        return tx.hash_at(seq)


def test_batches_may_be_made_one_after_another_before_any_reply_comes(site, device, running):
    use(running, 2)
    first = device.make_batches()
    use(running, 3)
    second = device.make_batches()
    replies = [site.vendor.accept(batches) for batches in (first, second)]
    assert site.vendor.units("mul") == 5
    for reply in reversed(replies):
        device.take_reply(reply)
    assert device.status().unreceipted_records == 0


def test_before_activation_a_device_has_only_its_genesis_to_tell(site):
    device = site.open()
    site.vendor.keys[device.keys.sign.kid] = device.keys.sign.verify_key
    (batch,) = opened(site, device.make_batches())
    assert kinds(batch) == ["genesis"]
    assert batch.license_id is None
    assert batch.through == 0


def test_a_batch_is_cut_where_the_license_changes(site, device, running):
    use(running, 2)
    first = site.vendor.license_id
    site.vendor.license_id = vendors.new_id("lic")
    site.activate(device, MUL)
    use(running, 3)
    old, new = opened(site, device.make_batches())
    assert (old.license_id, kinds(old)) == (first, ["genesis", "token", "usage"])
    assert (new.license_id, kinds(new)) == (site.vendor.license_id, ["token", "usage"])
    assert (new.seq_from, new.prev) == (old.seq_to + 1, old.head)
    site.sync(device)
    assert site.vendor.units("mul") == 5


def test_more_records_than_a_batch_holds_are_cut(site, device, running, monkeypatch):
    monkeypatch.setattr(limits, "BATCH_RECORDS_MAX", 4)
    windows = []
    for _ in range(9):
        windows.append(site.time.now_s // WINDOW_S)
        use(running)
        site.time.run_on(WINDOW_S)
    batches = opened(site, device.make_batches())
    assert [len(batch.bodies) for batch in batches] == [4, 4, 3]
    for before, after in itertools.pairwise(batches):
        assert after.start == before.end
    # What the next batches bring is still to come while only the first has arrived.
    assert [batch.through // WINDOW_S for batch in batches] == [windows[2], windows[6], windows[8] + 1]


def test_ten_thousand_records_and_more(site, device, running):
    """Ledger of 12,000 records: each batch within its limits, grouped into requests within theirs."""
    use(running)
    with device.counter.fold_everything() as (tx, now, _):
        for _ in range(12_000):
            tx.append({"kind": "recovery", "code": "test", "cell": None}, time=now.effective_s, boot=now.boot)
    texts = device.make_batches()
    batches = opened(site, texts)
    assert sum(len(batch.bodies) for batch in batches) == 12_003
    assert all(len(batch.bodies) <= limits.BATCH_RECORDS_MAX for batch in batches)
    assert all(len(text) <= limits.EXCHANGE_WIRE_BYTES_MAX for text in texts)

    class Posts:
        def __init__(self):
            self.sizes = []

        def deliver(self, message):
            self.sizes.append(len(message.body))
            lines = message.body.decode().split()
            assert len(lines) <= limits.EXCHANGE_BATCHES_MAX
            return site.vendor.accept(lines)

    posts = Posts()
    outcomes = device.sync(posts)
    assert len(outcomes) == len(posts.sizes) > 1
    assert max(posts.sizes) <= limits.EXCHANGE_WIRE_BYTES_MAX
    assert device.status().unreceipted_records == 0


def test_through_stops_at_a_call_in_flight(site, device):
    admitted, answer = threading.Event(), threading.Event()

    def slow(*_args) -> str:
        admitted.set()
        assert answer.wait(PATIENCE_S)
        return "answer"

    window = site.time.now_s // WINDOW_S
    gate = call_gate(device.counter, device.counter.meter(MUL.meter), MUL.sha256[0], slow)
    caller = threading.Thread(target=gate, args=(None, {}, None))
    caller.start()
    assert admitted.wait(PATIENCE_S)
    site.time.run_on(5 * WINDOW_S)
    (before,) = opened(site, device.make_batches())
    answer.set()
    caller.join()
    (after,) = opened(site, device.make_batches())
    assert before.through == window * WINDOW_S
    assert after.through == (window + 5) * WINDOW_S
    assert [(each["window"], each["units"]) for each in records(device, "usage")] == [(window, 1)]


# -- receipts


def test_a_receipt_of_another_branch_is_refused(site, device, running):
    use(running, 2)
    batches = device.make_batches()
    site.vendor.accept(batches)
    chain = site.vendor.chains[opened(site, batches)[0].epoch]
    here = chain.position
    for position in (
        Position(epoch=here.epoch, seq=here.seq, head="0" * 63 + "1"),
        Position(epoch=here.epoch, seq=here.seq + 1, head=here.head),
        Position(epoch=here.epoch, seq=here.seq - 1, head=here.head),
        Position(epoch=here.epoch, seq=10**9, head=here.head),
    ):
        site.vendor.chains[here.epoch] = chain._replace(position=position)
        reply = Reply(receipts=(site.vendor._receipt(device.id, here.epoch),)).to_bytes()
        with unchanged(site.path, "sync.json", "ledger.sqlite"):
            assert codes(device.take_reply(reply)) == {"receipt": ["receipt_foreign"]}
        assert device.status().unreceipted_records == 3


def test_a_receipt_of_an_unknown_epoch_covers_nothing(site, device, running):
    use(running, 2)
    batches = device.make_batches()
    site.vendor.accept(batches)
    epoch = opened(site, batches)[0].epoch
    elsewhere = Position(epoch="ep_" + "a" * 26, seq=3, head="1" * 64)
    site.vendor.chains[epoch] = site.vendor.chains[epoch]._replace(position=elsewhere)
    device.take_reply(Reply(receipts=(site.vendor._receipt(device.id, epoch),)).to_bytes())
    assert device.status().unreceipted_records == 3
    assert device.holder.receipt() is None


def test_forged_and_misdirected_receipts_are_refused(site, device, running):
    use(running, 2)
    batches = device.make_batches()
    site.vendor.accept(batches)
    epoch = opened(site, batches)[0].epoch
    good = site.vendor._receipt(device.id, epoch)
    forger = Vendor(now=START_S)
    forger.chains = site.vendor.chains
    head, payload, signature = good.split(".")
    bad = {
        "key_unknown": forger._receipt(device.id, epoch),
        "subject_wrong": site.vendor._receipt("dev_" + "A" * 43, epoch),
        "signature_bad": f"{head}.{payload}.{signature[:-4]}AAAA",
        "wrong_type": site.vendor.token(device.id, Position(epoch=epoch), [MUL]),
    }
    for code, text in bad.items():
        before = device.status()
        with unchanged(site.path, "sync.json"):
            assert codes(device.take_reply(Reply(receipts=(text,)).to_bytes())) == {"receipt": [code]}
        assert device.status().unreceipted_records == before.unreceipted_records == 3
    device.take_reply(Reply(receipts=(good,)).to_bytes())
    assert device.status().unreceipted_records == 0


def test_an_older_receipt_does_not_replace_a_newer_one(site, device, running):
    use(running, 2)
    older = site.vendor.accept(device.make_batches())
    use(running, 2)
    newer = site.vendor.accept(device.make_batches())
    device.take_reply(newer)
    held = device.holder.receipt()
    device.take_reply(older)
    assert device.holder.receipt() == held


def test_a_server_that_has_forgotten_what_it_confirmed_is_told_again(site, device, running):
    use(running, 2)
    site.vendor.accept(device.make_batches())
    epoch = opened(site, device.make_batches())[0].epoch
    backup = site.vendor.chains[epoch]
    use(running, 2)
    device.take_reply(site.vendor.accept(device.make_batches()))
    first = opened(site, device.make_batches())[0].seq_from
    assert first > backup.position.seq + 1
    site.vendor.chains[epoch] = backup
    same_time = Reply(receipts=(site.vendor._receipt(device.id, epoch),)).to_bytes()
    device.take_reply(same_time)  # as old as the one held: nothing that was asked since
    assert opened(site, device.make_batches())[0].seq_from == first
    site.vendor.now += 1
    asked = Reply(receipts=(site.vendor._receipt(device.id, epoch),)).to_bytes()
    device.take_reply(asked)
    assert opened(site, device.make_batches())[0].seq_from == backup.position.seq + 1
    device.take_reply(site.vendor.accept(device.make_batches()))
    device.take_reply(asked)
    assert device.status().unreceipted_records == 0
