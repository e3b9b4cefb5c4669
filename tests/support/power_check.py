"""Judging what a device finds after a power loss, by what it had promised before."""

import shutil
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from device_site import Site, records, session, use
from power_disk import Tree
from power_trace import Told
from power_worker import clocks_afterwards, recorded_vendor

from device_sdk import Device, timekeeper
from device_sdk.ledger_transaction import SEQ_END
from meterkit.ledger import Total
from meterkit.positions import Position

_RECORDED = "SELECT model, SUM(units), SUM(units + unsettled) FROM records WHERE kind = 'usage' GROUP BY model"
# A lease that no cell counts for any more was not used: its threads have ended, and their cells are folded.
_USABLE = (
    "SELECT model, SUM(units) FROM leases WHERE EXISTS (SELECT 1 FROM cells WHERE cells.file = leases.file"
    " AND cells.model = leases.model AND cells.unit = leases.unit) GROUP BY model"
)
METERS = {"mul": ("mul", "call"), "rows": ("rows", "item")}


@dataclass
class Promises:
    """What was started, delivered and acknowledged up to one moment."""

    device: str | None = None
    serial: int = 0  # of the token that was installed last
    licenses: dict[str, str] = field(default_factory=dict)  # token → license, of all that were handed over
    keyring: int = 0
    revocations: int = 0
    certain_s: int = 0
    position: Position | None = None
    started: Counter = field(default_factory=Counter)
    delivered: Counter = field(default_factory=Counter)
    proved: Counter = field(default_factory=Counter)
    batches: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)  # files that they were written to
    damaged: bool = False  # somebody changed the ledger: it may be set aside, and another begun

    def take(self, told: Told) -> None:
        """Take in what the device said next."""
        what = told.what
        self.device = what.get("opened", self.device)
        self.serial = what.get("serial", self.serial)
        self.licenses |= what.get("licenses", {})
        self.keyring = what.get("keyring", self.keyring)
        self.revocations = what.get("revocations", self.revocations)
        self.certain_s = what.get("certain_s", self.certain_s)
        self.batches = self.batches + what.get("batches", [])
        if "carried" in what:
            self.carried = [*self.carried, what["carried"]]
        if "damaged" in what:
            self.damaged, self.position = True, None
        if "seq" in what:
            self.position = Position(epoch=what["epoch"], seq=what["seq"], head=what["head"])
        if "started" in what:
            self.started[what["started"]] += what["units"]
        if "delivered" in what:
            self.delivered[what["delivered"]] += what["units"]
        if what.get("delivered") == "rows":  # its session counts strictly
            self.proved["rows"] = self.delivered["rows"]
        if "proved" in what:
            self.proved = Counter(self.delivered)

    def key(self) -> tuple:
        """Moments with the same key promise the same."""
        counts = [tuple(sorted(each.items())) for each in (self.started, self.delivered, self.proved)]
        return self.device, self.serial, self.revocations, self.position, *counts, len(self.batches), self.damaged


def build(tree: Tree, path: Path) -> None:
    """Put the files of a tree into a directory of its own."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in tree.items():
        place = path / name
        if content is None:
            place.mkdir(mode=0o700)
        else:
            place.write_bytes(content)
            place.chmod(0o600)


def check(tree: Tree, promises: Promises, scratch: Path, *, battery: bool = True, use_first: bool = False) -> None:
    """Start a device on what the disk holds, under a new boot, and hold it to everything it had promised.

    It is used again before everything was folded and handed over, or after that.
    """
    _check_carried(tree, promises)
    build(tree, scratch)
    before = _ledger_totals(scratch)
    site = Site(scratch / "device", clocks_afterwards(battery=battery), recorded_vendor())
    try:
        device = site.open()
        assert promises.device in {None, device.id}
        _check_ledger(device, promises)
        used = _use_once(site, promises) if use_first else 0
        totals = _hand_over(site, device, promises)
        _check_units(totals, before, promises, used)
        _check_it_is_settled(site, device, promises)
        if not used:
            _use_once(site, promises)
    finally:
        site.close()


def _check_carried(tree: Tree, promises: Promises) -> None:
    """A file for the server is there once its writing was acknowledged, and whole whenever it is there."""
    found = {name: content for name, content in tree.items() if name.endswith(".mkbatch")}
    assert found.keys() >= set(promises.carried)
    assert all(content.endswith(b"\n") for content in found.values()), found
    written = b"".join(found[name] for name in promises.carried)
    assert written.decode().splitlines() == promises.batches


def _ledger_totals(scratch: Path) -> dict[str, tuple[int, int]]:
    """Units and unsettled units in the ledger as it was found, and how many are on lease; read from a copy."""
    found = scratch / "device" / "ledger.sqlite"
    copy = scratch / "copy"
    copy.mkdir()
    for path in (found, found.with_name("ledger.sqlite-journal")):
        if path.exists():
            shutil.copy(path, copy)
    connection = sqlite3.connect(copy / "ledger.sqlite")
    try:
        if not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            return {}
        leased = dict(connection.execute(_USABLE).fetchall())
        used = {model: (units, all_units) for model, units, all_units in connection.execute(_RECORDED)}
        models = used.keys() | leased.keys()
        return {
            model: (used.get(model, (0, 0))[0], used.get(model, (0, 0))[1] + leased.get(model, 0))
            for model in models
        }
    finally:
        connection.close()


def _check_ledger(device: Device, promises: Promises) -> None:
    """What was committed is there; no ledger had to be set aside, unless it was damaged."""
    assert promises.damaged or not device.vault.set_aside()
    at = promises.position
    if at is not None:
        with device.counter.transaction() as tx:
            assert (tx.epoch(), tx.hash_at(at.seq)) == (at.epoch, at.head)
    assert device.holder.revocations.version >= promises.revocations
    if promises.serial:
        assert device.holder.keyring.version >= max(1, promises.keyring)
        with device.counter.transaction() as tx:
            named, certain_s = tx.token_before(SEQ_END), timekeeper.certain_s(tx)
        assert certain_s >= promises.certain_s
        assert named is not None
        assert device.token().serial >= named.serial >= promises.serial


def _hand_over(site: Site, device: Device, promises: Promises) -> dict[str, Total]:
    """Fold everything and hand it over to a vendor who has what was handed over before; totals by model, over
    all epochs.
    """
    site.vendor.keys[device.keys.sign.verify_key.kid] = device.keys.sign.verify_key
    if promises.batches:
        site.vendor.accept(promises.batches)
    site.vendor.accept(device.make_batches())
    with device.counter.transaction() as tx:
        position = tx.position()
        assert tx.rows("SELECT * FROM cells") == tx.rows("SELECT * FROM leases") == []
    chains = site.vendor.chains
    assert chains[position.epoch].position == position
    assert promises.damaged or len(chains) == 1
    found: dict[str, Total] = {}
    for model, meter in METERS.items():
        totals = [chain.totals.get(meter, Total()) for chain in chains.values()]
        found[model] = Total(sum(each.units for each in totals), sum(each.unsettled for each in totals))
    return found


def _check_units(
    totals: dict[str, Total], before: dict[str, tuple[int, int]], promises: Promises, used: int
) -> None:
    for model, total in totals.items():
        again = used if model == "mul" else 0
        billed, used_up = total.units - again, total.units + total.unsettled - again
        assert promises.proved[model] <= billed <= promises.started[model], (model, total)
        assert promises.delivered[model] <= used_up, (model, total)
        if promises.damaged:
            continue
        billed_before, used_up_before = before.get(model, (0, 0))
        assert billed_before <= billed
        assert used_up == used_up_before, (model, total, before)  # what was on lease, and nothing else


def _check_it_is_settled(site: Site, device: Device, promises: Promises) -> None:
    """Each unit is under its token's license, and who opens the device again finds nothing left to do.

    What is unsettled is no unit: a lease that outlived its token is told of under the next one's license.
    """
    found = records(device)
    for record in records(device, "usage"):
        assert not record["units"] or promises.licenses[record["token"]] == record["license"], record
    assert not list(Path(device.vault.cells).iterdir())
    again = site.open()
    again.make_batches()
    assert records(again) == found
    again.close()


def _use_once(site: Site, promises: Promises) -> int:
    """It counts on where it was; gives how many units."""
    if not promises.serial:
        return 0
    with site.open() as device:
        use(session(device))
    return 1
