"""The vendor's program on the device: it tells file types with a licensed model, online or not.

    demo_device.py DIRECTORY ISSUER ROOT activate CODE SERVER
    demo_device.py DIRECTORY ISSUER ROOT classify LIST START ARRAY

`classify` reads the file names in LIST from START on and hands the model arrays of ARRAY files. Before each
call it writes a line `call N`, and after it, for each answer that the model delivered, `answer LABEL`. A
refusal is one line `refused SENTENCE`, and exit status 3.
"""

import sys
from pathlib import Path

import numpy as np
from magika_input import features, labels, model_directory

from device_sdk import DenialError, Device, LicensedSession, Trust

PRODUCT = "file-sorter"
MODEL = "magika"


def say(line: str) -> None:
    """Write one line to whoever reads the pipe."""
    print(line, flush=True)


def classify(device: Device, listed: Path, start: int, array: int) -> int:
    """Tell the types of the listed files; returns the exit status."""
    names = labels()
    session = LicensedSession(model_directory() / "model.onnx", device=device, model=MODEL)
    paths = [Path(line) for line in listed.read_text("utf-8").splitlines()][start:]
    for at in range(0, len(paths), array):
        rows = np.stack([features(path) for path in paths[at : at + array]])
        say(f"call {len(rows)}")
        try:
            (scores,) = session.run(None, {"bytes": rows})
        except DenialError as denial:
            say(f"refused {denial}")
            return 3
        for best in scores.argmax(axis=1):
            say(f"answer {names[best]}")
    return 0


def main() -> int:
    """Run one of the two."""
    directory, issuer, root, verb, *rest = sys.argv[1:]
    with Device.open(directory, trust=Trust(issuer=issuer, roots=(root,)), product=PRODUCT) as device:
        if verb == "activate":
            device.activate(rest[0], server=rest[1])
            say(device.id)
            return 0
        return classify(device, Path(rest[0]), int(rest[1]), int(rest[2]))


if __name__ == "__main__":
    sys.exit(main())
