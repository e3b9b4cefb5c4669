"""A process that writes to a device's ledger again and again, without a pause.

    device_folding.py DIRECTORY ISSUER ROOT PRODUCT

Says `ready` when it has written once, and ends when its standard input is closed. How often it has written is in
the ledger, under the name `written` and its process id.
"""

import itertools
import os
import select
import sys

from device_sdk import Device, Trust


def main() -> None:
    directory, issuer, root, product = sys.argv[1:]
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    for written in itertools.count(1):
        with device.counter.fold_everything() as (tx, _, _):
            tx.set_state(f"written {os.getpid()}", written)
        if written == 1:
            print("ready", flush=True)
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    device.close()


main()
