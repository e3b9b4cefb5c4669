"""What is installed meets the floors that the metadata states, and what is shipped is what is meant."""

import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = [Requirement(line) for line in metadata.requires("meterkit") or []]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_the_running_version_meets_the_floor(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators == {">="}, "a floor, and no ceiling"
    assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)


def test_the_device_needs_neither_web_framework_nor_sql_toolkit():
    device = {each.name for each in REQUIREMENTS if each.marker and each.marker.evaluate({"extra": "device"})}
    assert {"onnxruntime", "sqlite-utils"} <= device
    assert not device & {
        "fastapi",
        "sqlalchemy",
        "alembic",
        "uvicorn",
        "rich",
        "pydantic",
        "msgspec",
        "pynacl",
        "standardwebhooks",
        "stripe",
    }


def test_the_wheel_holds_the_packages_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"meterkit", "device_sdk", "licensing_server"}
    assert {f"{package}/py.typed" for package in tops} <= set(names)
    assert any(name.startswith("licensing_server/migrations/versions/") for name in names)
    assert {f"licensing_server/billing/rendering/DejaVuSans.{kind}" for kind in ("ttf", "LICENSE")} <= set(names)
    assert not [name for name in names if name.endswith((".key", ".pem", ".sqlite", ".jws"))]
