"""The session tests on the oldest ONNX Runtime that is supported and on the newest: `make runtimes`.

Makes one environment for each under build/runtimes/VERSION, with what the device needs and the tests use, runs
the tests of sessions and run paths there, and prints which ways to run that version has and which are gated.
"""

import json
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "runtimes"
TESTS = ("test_session*.py", "test_run_*.py")
SURFACE = """
import json, onnxruntime
from device_sdk import LicensedSession
plain = onnxruntime.InferenceSession
found = [name for name in dir(plain) if name.startswith("run")]
own = [name for name in found if getattr(LicensedSession, name) is not getattr(plain, name)]
print(json.dumps([onnxruntime.__version__, found, own]))
"""


def oldest() -> str:
    """The floor in pyproject.toml: the first release that meets it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    floor = next(line for line in extras["device"] if line.startswith("onnxruntime"))
    version = re.fullmatch(r"onnxruntime>=([0-9.]+)", floor)
    if version is None:
        raise SystemExit(f"no plain floor: {floor}")
    return version.group(1)


def newest() -> str:
    """The release that pip would install today."""
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    report = subprocess.run(
        [*argv, "--dry-run", "--ignore-installed", "--report", "-", "onnxruntime"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(report.stdout)["install"][0]["metadata"]["version"]


def environment(version: str) -> Path:
    """The Python of an environment with that version; made once, and again when what is needed changes."""
    home = BUILD / version
    python = home / "bin" / "python"
    ready = home / "ready"
    if not ready.exists() or ready.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        venv.create(home, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--editable", f"{ROOT}[device,test]", f"onnxruntime=={version}"], check=True)
        ready.touch()
    return python


def check(version: str) -> bool:
    """Run the tests under one version, and say which of its ways to run are gated."""
    python = environment(version)
    here = ROOT / "tests" / "device"
    tests = sorted(path for pattern in TESTS for path in here.glob(pattern))
    # The fixtures of the whole suite want the server, which no device has: only those of the device are taken.
    argv = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--confcutdir", here, *tests]
    passed = subprocess.run(argv, cwd=ROOT, check=False).returncode == 0
    told = subprocess.run([python, "-c", SURFACE], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    running, found, own = json.loads(told.stdout)
    print(f"ONNX Runtime {running}:", ", ".join(f"{name} {'gated' if name in own else 'OPEN'}" for name in found))
    return passed and running == version and found == own


def main() -> None:
    versions = dict.fromkeys([oldest(), newest()])
    failed = [version for version in versions if not check(version)]
    if failed:
        raise SystemExit(f"not on ONNX Runtime {', '.join(failed)}")


if __name__ == "__main__":
    main()
