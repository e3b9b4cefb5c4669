"""Opening a device's directory: its keys, whose it is, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from device_site import NS, START_S, Site, digests, records
from vendor import PRODUCT, Vendor

from device_sdk import Device, DeviceError, Trust
from device_sdk import readings as readings_module
from device_sdk.vault import DeviceKeys
from meterkit.errors import InputError

OPEN_ONCE = """
import sys
from device_sdk import Device, Trust
trust = Trust(issuer=sys.argv[2], roots=(sys.argv[3],))
sys.stdin.readline()
print(Device.open(sys.argv[1], trust=trust, product=sys.argv[4]).id)
"""


def code_of(site: Site, **changes) -> str:
    values = {"trust": site.vendor.trust, "product": PRODUCT, "clocks": site.time.clocks, **changes}
    with pytest.raises((DeviceError, InputError)) as caught:
        Device.open(site.path, **values)
    return caught.value.code


def test_keys_are_made_here_and_only_the_owner_reads_them(site):
    device = site.open()
    assert (site.path / "device.key").stat().st_mode & 0o777 == 0o600
    assert site.path.stat().st_mode & 0o777 == 0o700
    for path in site.path.rglob("*"):
        if path.is_file() and not path.name.startswith("ledger.sqlite"):
            assert path.stat().st_mode & 0o077 == 0, path
    assert device.id == site.open().id


def test_a_key_says_nothing_of_itself(site):
    device = site.open()
    secrets = (site.path / "device.key").read_text().split()
    told = f"{device!r} {device.keys!r} {device.keys.sign!r} {vars(device)!r} {device.status()!r}"
    assert isinstance(device.keys, DeviceKeys)
    assert not any(secret in told or secret.partition(".")[2] in told for secret in secrets)


def test_processes_that_open_a_new_directory_at_once_get_one_key(tmp_path):
    vendor = Vendor(now=START_S)
    trust = vendor.trust
    argv = [sys.executable, "-c", OPEN_ONCE, tmp_path / "device", trust.issuer, trust.roots[0], PRODUCT]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0] * 6
    assert len(set(told)) == 1
    assert told[0].startswith("dev_")
    assert not list((tmp_path / "device").glob(".*"))


def test_a_directory_belongs_to_one_product_of_one_vendor(site):
    site.open()
    assert code_of(site, product="drone") == "product_wrong"
    other = Trust(issuer="other.example", roots=site.vendor.trust.roots)
    assert code_of(site, trust=other) == "product_wrong"
    assert site.open().product == PRODUCT


@pytest.mark.parametrize("product", ["", "Ümlaut", "a" * 65, "no space", None, 7])
def test_a_product_is_a_name(tmp_path, product):
    with pytest.raises(InputError):
        Device.open(tmp_path / "device", trust=Vendor(now=START_S).trust, product=product)
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_may_write_to_is_refused(site, mode):
    site.open()
    site.path.chmod(mode)
    assert code_of(site) == "directory_unusable"


def test_a_directory_that_is_none_is_refused(site):
    site.path.write_text("a file")
    assert code_of(site) == "directory_unusable"


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda key: key[:40],
        lambda key: key[:-5] + b"\n",
        lambda key: key.replace(b"mk-secret-x25519.", b"mk-secret-x25518."),
        lambda key: b"\xff" * len(key),
        lambda key: key + b"more\n",
        lambda key: b"\n".join(reversed(key.split())),
    ],
)
def test_a_damaged_key_is_refused_and_nothing_is_replaced(site, damage):
    site.open().close()
    path = site.path / "device.key"
    path.write_bytes(damage(path.read_bytes()))
    before = digests(site.path)
    assert code_of(site) == "device_key_bad"
    assert digests(site.path) == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused(site, mode):
    site.open().close()
    (site.path / "device.key").chmod(mode)
    assert code_of(site) == "device_key_bad"


def test_a_lost_key_is_another_device_in_the_same_ledger_directory(site):
    """The ledger of the device before is not wiped: it is set aside, for it belongs to another key."""
    first = site.open()
    name, before = first.id, records(first)
    first.close()
    (site.path / "device.key").unlink()
    second = site.open()
    assert second.id != name
    second.make_batches()
    assert records(second)[0]["device"] == second.id
    assert records(second)[0]["previous"] is None or records(second)[0]["previous"]["seq"] <= len(before)
    assert len(list(site.path.glob("ledger-*.sqlite"))) == 1


def test_elsewhere_than_linux_it_refuses(site, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert code_of(site) == "platform_unsupported"
    assert not site.path.exists()


def test_without_a_boot_id_it_refuses(site, monkeypatch, tmp_path):
    monkeypatch.setattr(readings_module, "_BOOT_ID", tmp_path / "no-such-file")
    readings_module.boot_id.cache_clear()
    try:
        assert code_of(site) == "platform_unsupported"
    finally:
        readings_module.boot_id.cache_clear()


def test_without_the_boot_clock_it_refuses(site, monkeypatch):
    monkeypatch.setattr(readings_module, "_CLOCK_BOOTTIME", None)
    assert code_of(site) == "platform_unsupported"


def test_the_real_clocks_are_read(tmp_path):
    device = Device.open(tmp_path / "device", trust=Vendor(now=START_S).trust, product=PRODUCT)
    genesis = records(device)[0]
    assert abs(genesis["time"] - (tmp_path / "device" / "device.key").stat().st_mtime_ns // NS) < 3_600
    assert genesis["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    device.close()


def test_closing_twice_and_leaving_a_with_block_are_fine(site):
    with site.open() as device:
        pass
    device.close()
    assert (site.path / "ledger.sqlite").exists()


def test_leftovers_of_others_in_the_cells_directory_are_left_alone(site):
    site.open().close()
    stray = site.path / "cells" / "notes.txt"
    stray.write_text("not ours")
    ours = site.path / "cells" / "cells_leftover"
    ours.write_bytes(b"")
    (site.path / "cells" / "cells_directory").mkdir()
    with site.open().counter.fold_everything():
        pass
    assert stray.exists()
    assert not ours.exists()
