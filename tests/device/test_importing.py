"""Importing the SDK: what it leaves of the program's collector."""

import subprocess
import sys

import pytest

BEFORE = {
    "as it is": "",
    "turned off": "gc.disable()",
    "with objects frozen": "gc.freeze()",
}
REPORT = """
import gc
{before}
state = gc.isenabled(), gc.get_freeze_count() > 0
import device_sdk
device_sdk.LicensedSession
assert (gc.isenabled(), gc.get_freeze_count() > 0) == state
"""
COLLECTING = """
import gc
class Knot: pass
knot = Knot(); knot.itself = knot
gone = []
__import__("weakref").finalize(knot, gone.append, True)
del knot
import device_sdk
gc.collect()
assert gone
"""


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_programs_collector_is_left_as_it_was(before):
    run(REPORT.format(before=before))


def test_garbage_of_before_is_still_collected():
    run(COLLECTING)


def test_a_name_is_looked_for_once():
    run("""
import gc, device_sdk
device_sdk.LicensedSession
gc.freeze = None
device_sdk.LicensedSession
""")


def test_it_collects_again_where_an_import_fails():
    run("""
import gc
from device_sdk.importing import all_kept
try:
    with all_kept():
        import no_such_module
except ImportError:
    assert gc.isenabled()
else:
    raise AssertionError
""")


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)
