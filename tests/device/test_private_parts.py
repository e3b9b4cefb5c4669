"""Where ONNX Runtime's private parts are not what they were, the public way is taken, and all holds as before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Each private part, and the tests of those ways to run that it serves.
PARTS = {
    "_sess": ["test_session.py", "test_session_bindings.py", "test_run_paths.py"],
    "_iobinding": ["test_session_bindings.py", "test_run_paths.py"],
    "_validate_input": ["test_session.py"],
    "InferenceSession.run": ["test_session.py"],
    "InferenceSession.run_with_iobinding": ["test_session_bindings.py"],
    "InferenceSession.run_with_ortvaluevector": ["test_run_paths.py"],
    "EPFail": ["test_session.py"],
}
# Of the tests that take each way to run in turn, those are enough that take the way it serves.
WAYS = {
    "_iobinding": "test_session_bindings or run_with_iobinding",
    "InferenceSession.run_with_ortvaluevector": "run_with_ortvaluevector",
}


@pytest.mark.parametrize("part", PARTS)
def test_without_a_private_part_everything_holds(part):
    tests = ["-k", WAYS.get(part, ""), *(HERE / name for name in PARTS[part])]
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "renamed_runtime", "-p", "no:cacheprovider"]
    environment = {**os.environ, "METERKIT_TEST_RENAMED": part}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent / "support"), *sys.path])
    done = subprocess.run(
        [*argv, "--confcutdir", HERE, *tests],
        env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout


def test_a_part_that_is_nowhere_is_noticed():
    """Or the tests above would rename nothing, and pass."""
    environment = {**os.environ, "METERKIT_TEST_RENAMED": "_no_such_part"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent / "support"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", "import renamed_runtime, onnxruntime"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "_no_such_part is nowhere" in done.stderr
