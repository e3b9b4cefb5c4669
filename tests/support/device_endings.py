"""A process that runs a licensed model by one of the ways to run, and ends in a way that is named.

    device_endings.py DIRECTORY ISSUER ROOT PRODUCT WAY ENDING

Endings: `return`, `sys.exit`, `os._exit`, `exception`, `abandoned` (a generator that is never finished), `thread`
(a daemon thread is still running) make five short calls; none closes the device. `interrupted` makes them too, and
then one that lasts until stdin ends, so that Ctrl-C comes in the midst of it. It says on stdout, as one line of
JSON, what was delivered to it.
"""

import json
import os
import signal
import sys
import threading

import numpy as np
from device_models import MUL_FEED, holding, mul
from device_paths import WAYS, cpu, names, ort_value, vector
from device_site import quiet_options, quiet_run_options

from device_sdk import Device, LicensedSession, Trust

CALLS = 5


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
    """Make a call into memory of our own that is interrupted; say what of it can be read then."""
    feed, into = {"held": np.array(False)}, np.array(-1, np.int64)  # noqa: FBT003 - a tensor of it
    call = caller(running, way, feed, into)
    for _ in range(CALLS):
        call()
    into[...] = -1
    feed["held"][...] = True
    threading.Thread(target=let_go_at_the_end, args=(feed,), daemon=True).start()
    delivered = CALLS
    say(ready=True)
    try:
        call()
        delivered += 1
    except KeyboardInterrupt:
        say(delivered=delivered, interrupted=int(into) != -1)


def let_go_at_the_end(feed) -> None:
    sys.stdin.read()
    feed["held"][...] = False


def caller(running, way, feed, into):
    """A call whose answer goes into the array, where the way to run allows that."""
    value = ort_value(into)
    if way == "run_with_iobinding":
        binding = running.io_binding()
        binding.bind_cpu_input("held", feed["held"])
        binding.bind_ortvalue_output(names(running)[0], value)
        return lambda: running.run_with_iobinding(binding)
    if way == "run_with_ortvaluevector":
        rest = ["held"], vector(feed["held"]), names(running), vector(into), [cpu()]
        return lambda: running.run_with_ortvaluevector(quiet_run_options(), *rest)
    return lambda: WAYS[way](running, feed)


def main() -> None:
    directory, issuer, root, product, way, ending = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started it may have it ignored
    device = Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=product)
    if ending == "interrupted":
        until_interrupted(LicensedSession(holding(), quiet_options(), device=device, model="holding"), way)
    else:
        end(LicensedSession(mul(), quiet_options(), device=device, model="mul"), way, ending)


if __name__ == "__main__":
    main()
