"""A process that runs a licensed model by one of the ways to run, and ends in a way that is named.

    device_endings.py DIRECTORY ISSUER ROOT PRODUCT WAY ENDING

Endings: `return`, `sys.exit`, `os._exit`, `exception`, `abandoned` (a generator that is never finished), `thread`
(a daemon thread is still running) make five short calls; none closes the device. `interrupted` makes long calls
until Ctrl-C comes in the midst of one. It says on stdout, as one line of JSON, what was delivered to it.
"""

import json
import os
import signal
import sys
import threading

import numpy as np
from device_models import MUL_FEED, looping, mul
from device_paths import WAYS, cpu, names, ort_value, vector
from device_site import quiet_options, quiet_run_options

from device_sdk import Device, LicensedSession, Trust

CALLS = 5
TRIPS = {"trips": np.array(400_000, np.int64)}  # about half a second


def say(**what) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def generate(running, way):
    """A generator that yields answers, as a host program's pipeline does."""
    while True:
        yield WAYS[way](running, MUL_FEED)


def end(running, way, ending) -> None:
    if ending == "abandoned":
        answers = generate(running, way)
        for _ in range(CALLS):
            next(answers)
        say(delivered=CALLS)
        return
    for _ in range(CALLS):
        WAYS[way](running, MUL_FEED)
    say(delivered=CALLS)
    if ending == "sys.exit":
        sys.exit(3)
    if ending == "os._exit":
        os._exit(3)
    if ending == "exception":
        raise LookupError("the host's own")
    if ending == "thread":
        running_on = threading.Event()
        threading.Thread(target=lambda: (running_on.set(), threading.Event().wait()), daemon=True).start()
        running_on.wait()


def until_interrupted(running, way) -> None:
    """Make long calls into memory of our own, until one is interrupted; say what of it can be read then."""
    into = np.array(-1, np.int64)
    call = caller(running, way, into)
    delivered = 0
    say(ready=True)
    try:
        while True:
            into[...] = -1
            call()
            delivered += 1
    except KeyboardInterrupt:
        say(delivered=delivered, interrupted=int(into) == int(TRIPS["trips"]))


def caller(running, way, into):
    """A call whose answer goes into the array, where the way to run allows that."""
    value = ort_value(into)
    if way == "run_with_iobinding":
        binding = running.io_binding()
        binding.bind_cpu_input("trips", TRIPS["trips"])
        binding.bind_ortvalue_output(names(running)[0], value)
        return lambda: running.run_with_iobinding(binding)
    if way == "run_with_ortvaluevector":
        rest = ["trips"], vector(TRIPS["trips"]), names(running), vector(into), [cpu()]
        return lambda: running.run_with_ortvaluevector(quiet_run_options(), *rest)
    return lambda: WAYS[way](running, TRIPS)


def main() -> None:
    directory, issuer, root, product, way, ending = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started it may have it ignored
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    if ending == "interrupted":
        until_interrupted(LicensedSession(looping(), quiet_options(), device=device, model="looping"), way)
    else:
        end(LicensedSession(mul(), quiet_options(), device=device, model="mul"), way, ending)


if __name__ == "__main__":
    main()
