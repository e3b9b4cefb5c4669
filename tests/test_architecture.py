"""The import graph is the architecture: these tests hold it."""

import ast
import functools
import subprocess
import sys
import time
from pathlib import Path

import device_models
import pytest
from vendor import ISSUER, PRODUCT, Vendor, call_model, code

from device_sdk import Device

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("meterkit", "device_sdk", "licensing_server")
HOMES = {
    "jwt": {"meterkit.signing"},
    "msgspec": {"licensing_server.usage.usual"},
    "onnxruntime": {"device_sdk.runtime"},
    "sqlite3": {
        "device_sdk.ledger_faults",
        "device_sdk.ledger_store",
        "device_sdk.ledger_transaction",
        "licensing_server.database",
    },
    "sqlite_utils": {"device_sdk.ledger_schema"},
    "httpx2": {"device_sdk.transport"},
    "fpdf": {"licensing_server.billing.rendering.pdf"},
    "segno": {"licensing_server.billing.rendering.qr"},
    "standardwebhooks": {"licensing_server.webhook_endpoints.signing"},
    "stripe": {"licensing_server.billing.stripe_client"},
    "requests": {"licensing_server.billing.stripe_client"},  # what stripe sends with
}
IMPURE = {
    "os", "socket", "ssl", "http", "urllib", "pathlib", "shutil", "tempfile", "subprocess", "time",
    "random", "secrets", "uuid", "threading", "sqlite3", "logging",
}  # fmt: skip
IMPURE_BUILTINS = {"open", "print", "input"}
IMPURE_METHODS = {"now", "today", "utcnow", "time_ns", "urandom", "token_bytes"}
SHELLS = {"meterkit.cli", "meterkit.terminal"}
NOUNS = (
    *("audit_log", "webhook_endpoints", "catalog", "customers", "licenses", "devices", "usage", "reconciliation"),
    *("accounts", "billing"),
)


@functools.cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text("utf-8"))
    return found


def imports(tree: ast.Module, *, lazy: bool = True) -> set[str]:
    """What a module imports; without `lazy`, only what it imports when it is loaded itself."""
    nodes = ast.walk(tree) if lazy else top_level(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in module_names() else node.module)
    return found


@functools.cache
def module_names() -> frozenset[str]:
    return frozenset(modules())


def top_level(tree: ast.Module):
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def own(names: set[str]) -> set[str]:
    return {name for name in names if name in modules()}


def closure(name: str) -> set[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += own(imports(modules()[at]))
    return seen


def test_the_packages_point_inward():
    for name, tree in modules().items():
        package = name.split(".")[0]
        others = {each.split(".")[0] for each in imports(tree)} & set(PACKAGES) - {package}
        assert others <= ({"meterkit"} if package != "meterkit" else set()), name


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_named_library_stays_in_its_one_home(library):
    users = {name for name, tree in modules().items() if library in {i.split(".")[0] for i in imports(tree)}}
    assert users == HOMES[library]


def test_the_core_is_pure_and_is_told_the_time():
    for name, tree in modules().items():
        if not name.startswith("meterkit") or name in SHELLS:
            continue
        roots = {each.split(".")[0] for each in imports(tree)}
        assert not roots & IMPURE, f"{name} imports {roots & IMPURE}"
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        builtins = {func.id for func in called if isinstance(func, ast.Name)}
        methods = {func.attr for func in called if isinstance(func, ast.Attribute)}
        assert not builtins & IMPURE_BUILTINS, f"{name} calls {builtins & IMPURE_BUILTINS}"
        assert not methods & IMPURE_METHODS, f"{name} calls {methods & IMPURE_METHODS}"


def test_no_module_imports_itself_in_a_circle():
    for name, tree in modules().items():
        for imported in own(imports(tree, lazy=False)) - {name}:
            package = imported.count(".") == 0
            assert package or name not in top_closure(imported), f"{name} and {imported} import each other"


def top_closure(name: str) -> set[str]:
    seen: set[str] = set()
    todo = [name]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += own(imports(modules()[at], lazy=False))
    return seen


def test_the_gate_cannot_reach_the_network():
    reached = closure("device_sdk.gate")
    libraries = {each.split(".")[0] for name in reached for each in imports(modules()[name])}
    assert not libraries & {"socket", "ssl", "http", "urllib", "httpx2", "asyncio"}
    assert "device_sdk.transport" not in reached


def test_sql_is_in_stores_and_http_in_routes():
    for name, tree in modules().items():
        if not name.startswith("licensing_server"):
            continue
        roots = {each.split(".")[0] for each in imports(tree)}
        leaf = name.split(".")[-1]
        if "fastapi" in roots or "starlette" in roots:
            assert leaf in {"routes", "app", "auth", "problems", "bodies", "parameters", "heads"}, name
        if "pydantic" in roots:
            assert "schemas" in leaf, name
        if leaf in {"routes", "schemas", "service"}:
            assert "sqlalchemy" not in roots, name


def test_a_command_loads_nothing_of_http():
    reached = top_closure("licensing_server.cli")
    libraries = {each.split(".")[0] for name in reached for each in imports(modules()[name], lazy=False)}
    assert not libraries & {"fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_has_the_same_furniture(noun):
    for piece in ("routes", "schemas", "service", "store", "commands"):
        assert f"licensing_server.{noun}.{piece}" in modules()


def test_a_noun_reads_only_nouns_to_its_left():
    for name, tree in modules().items():
        parts = name.split(".")
        if parts[0] != "licensing_server" or len(parts) < 3 or parts[1] not in NOUNS:
            continue
        right = set(NOUNS[NOUNS.index(parts[1]) + 1 :])
        used = {each.split(".")[1] for each in imports(tree) if each.startswith("licensing_server.")}
        assert not used & right, f"{name} reads {used & right}"


def test_functions_fit_a_screen_and_files_a_sitting():
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno + 1 <= 70, f"{name}.{node.name}"
        lines = max((getattr(node, "end_lineno", 0) for node in ast.walk(tree)), default=0)
        history = ".migrations.versions." in name  # one step of the schema's history is one file
        assert history or lines <= 400, f"{name} has {lines} lines"


def test_no_bare_assert_guards_anything():
    for name, tree in modules().items():
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), name


def test_named_tuples_are_those_that_cost_a_start_little():
    for name, tree in modules().items():
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "typing"]
        uses = any(alias.name == "NamedTuple" for node in froms for alias in node.names)
        assert not uses or name == "meterkit.tuples", name


PLAIN = """
import sys, numpy, onnxruntime
onnxruntime.InferenceSession({model!r}).run(None, {{"X": numpy.ones((3, 2), numpy.float32)}})
print(*sys.modules)
"""
LICENSED = """
import sys, numpy
from device_sdk import Device, LicensedSession, Trust
device = Device.open({directory!r}, trust=Trust(issuer={issuer!r}, roots=({root!r},)), product={product!r})
session = LicensedSession({model!r}, device=device, model="mul")
session.run(None, {{"X": numpy.ones((3, 2), numpy.float32)}})
print(*sys.modules)
"""
EXCHANGE_SIDE = {
    "device_sdk.background", "device_sdk.deadline", "device_sdk.exchanging", "device_sdk.inbox",
    "device_sdk.ledger_schema", "device_sdk.outbox", "device_sdk.requests", "device_sdk.schedule",
    "device_sdk.standings", "device_sdk.transport", "meterkit.activation", "meterkit.exchange", "meterkit.signing",
}  # fmt: skip
LIBRARIES_NEEDED = {"cryptography", "_cffi_backend", "_openssl", *PACKAGES}
# What of a library, or beside it, costs a start more than it gives; most come in by one careless import.
COSTLY = {
    "asyncio", "base64", "cryptography.hazmat.backends", "cryptography.hazmat.primitives.ciphers",
    "cryptography.hazmat.primitives.serialization", "cryptography.x509", "dataclasses", "decimal", "email",
    "hashlib", "hmac", "http", "importlib.metadata", "ipaddress", "logging", "pathlib", "platform", "random",
    "secrets", "socket", "ssl", "subprocess", "tempfile", "urllib", "uuid", "zipfile",
}  # fmt: skip


@pytest.fixture(scope="module")
def modules_loaded(tmp_path_factory) -> tuple[set[str], set[str]]:
    """What two fresh processes have imported after their first answer: plain, and licensed with a receipt held."""
    work = tmp_path_factory.mktemp("start")
    model = work / "mul.onnx"
    model.write_bytes(device_models.mul())
    vendor = Vendor(now=int(time.time()))
    terms = [call_model("mul", device_models.digest(model.read_bytes()))]
    with Device.open(work / "device", trust=vendor.trust, product=PRODUCT) as device:
        device.take_reply(vendor.answer_activation(device.request_activation(code()), terms))
        device.take_reply(vendor.accept(device.make_batches()))
        assert device.holder.receipt() is not None
    root = vendor.root.verify_key.text
    names = {"model": str(model), "directory": str(work / "device"), "issuer": ISSUER, "root": root}
    return tuple(loaded(program.format(**names, product=PRODUCT)) for program in (PLAIN, LICENSED))


def loaded(program: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_way_to_the_first_answer_does_not_load_the_exchange(modules_loaded):
    _, licensed = modules_loaded
    assert modules().keys() >= EXCHANGE_SIDE
    assert {"device_sdk.counter", "meterkit.tokens"} <= licensed
    assert not EXCHANGE_SIDE & licensed


def test_the_way_to_the_first_answer_loads_no_library_but_the_one_that_verifies(modules_loaded):
    plain, licensed = modules_loaded
    roots = {name.partition(".")[0] for name in licensed - plain}
    assert roots - sys.stdlib_module_names <= LIBRARIES_NEEDED


def test_the_way_to_the_first_answer_loads_nothing_costly(modules_loaded):
    plain, licensed = modules_loaded
    assert not COSTLY & (licensed - plain)
