"""A process that writes to a device's ledger again and again, without a pause.

    device_folding.py DIRECTORY ISSUER ROOT PRODUCT

Writes `ready` when it begins; ends when its standard input is closed, and then says how often it wrote.
"""

import select
import sys

from device_sdk import Device, Trust


def main() -> None:
    directory, issuer, root, product = sys.argv[1:]
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    written = 0
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        with device.counter.fold_everything() as (tx, _, _):
            tx.set_state("written", written)
        written += 1
    print(written, flush=True)
    device.close()


main()
